"""Megatron-Core's GPTModel as chunks of skippable layers, from a recipe."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from pretrain.config.model import Model
from pretrain.config.recipe import Recipe
from pretrain.model.attention import CoreAttention, SelfAttention
from pretrain.model.cross_entropy import Kernels, capped, compiled_kernels, linear_cross_entropy
from pretrain.model.head import Transform
from pretrain.model.layer import SkippableLayer
from pretrain.model.linear import ColumnLinear, Fp8ColumnLinear, Fp8RowLinear, RowLinear
from pretrain.model.norm import NORMS, KeyNorm, QueryNorm, RMSNorm
from pretrain.model.rotary import RotaryTables, scaled


def transformer_config(recipe: Recipe, dtype: torch.dtype, on_gpu: bool) -> TransformerConfig:
    """Megatron-Core's view of a recipe. Fusions that need CUDA extensions stay off: the same code runs everywhere."""
    model, layout = recipe.model, recipe.parallel
    interleaved = layout.virtual > 1
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.groups,
        kv_channels=model.head_size,
        # Has their gradients summed over tensor ranks, which have the same weights of one head; of all heads each has its own.
        qk_layernorm=model.qk_norm is True,
        ffn_hidden_size=model.ffn_hidden_size,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual if interleaved else None,
        sequence_parallel=layout.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        normalization="RMSNorm" if model.norm == "rmsnorm" else "LayerNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.feed_forward == "swiglu",
        activation_func=F.silu if model.feed_forward == "swiglu" else F.gelu,
        add_bias_linear=model.biases is True,
        add_qkv_bias=model.biases == "qkv",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # Weights come from weights.py, the same on every layout; here they are only allocated.
        perform_initialization=False,
        use_cpu_initialization=not on_gpu,
        # A step's loss is divided by the target tokens of the global batch, by the engine and nobody else.
        calculate_per_token_loss=True,
        # Outputs of interleaved chunks may not be freed on gloo, where a send can still be reading them.
        deallocate_pipeline_outputs=not interleaved,
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        batch_p2p_sync=False,
        persist_layer_norm=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
    )


def layer_spec(model: Model, compiles: bool, in_fp8: bool) -> ModuleSpec:
    """One skippable layer."""
    column, row = (Fp8ColumnLinear, Fp8RowLinear) if in_fp8 else (ColumnLinear, RowLinear)
    norm = NORMS[model.norm]
    before, after = (norm, None) if model.norm_placement == "before" else (IdentityOp, norm)
    query_norm, key_norm = {False: (IdentityOp, IdentityOp), True: (RMSNorm, RMSNorm), "whole": (QueryNorm, KeyNorm)}[
        model.qk_norm
    ]
    return ModuleSpec(
        module=SkippableLayer,
        params={"recompute": model.recompute, "compiles": compiles, "norm_after": after},
        submodules=TransformerLayerSubmodules(
            input_layernorm=before,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.arbitrary},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=CoreAttention,
                    linear_proj=row,
                    q_layernorm=query_norm,
                    k_layernorm=key_norm,
                ),
            ),
            pre_mlp_layernorm=before,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
        ),
    )


class Targets(NamedTuple):
    """The positions of a micro-batch whose losses are wanted, [n] each."""

    places: Tensor
    """int64: their numbers within [s, b], each once and in order."""
    labels: Tensor
    """int64."""
    factors: Tensor
    """float32: what each loss is multiplied with in the sum that is differentiated."""


def at(places: Tensor, hidden_states: Tensor) -> Tensor:
    """Return what stands at some places, in order, [n, h], of [s, b, h]."""
    flat = hidden_states.flatten(0, 1)
    return flat if len(places) == len(flat) else flat.index_select(0, places)


class Decoder(GPTModel):
    """One chunk of the model: all of it in a single process, some of its layers on a pipeline rank."""

    def __init__(self, recipe: Recipe, config: TransformerConfig, vp_stage: int | None = None) -> None:
        model = recipe.model
        compiles = recipe.compiles(on_gpu=not config.use_cpu_initialization)
        layers = get_num_layers_to_build(config, vp_stage=vp_stage)
        layer = layer_spec(model, compiles, in_fp8=recipe.precision == "fp8")
        spec = TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=NORMS[model.norm])
        super().__init__(
            config,
            spec,
            vocab_size=model.padded_vocab_size,
            max_sequence_length=recipe.data.sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            parallel_output=True,
            share_embeddings_and_output_weights=model.tied_embeddings,
            position_embedding_type="rope" if model.position_embedding == "rope" else "learned_absolute",
            rotary_base=model.rotary_base,
            vp_stage=vp_stage,
        )
        if model.position_embedding == "rope":
            angles = self.get_submodule("rotary_pos_emb")
            assert isinstance(angles, RotaryEmbedding)
            angles.inv_freq, sharpness = scaled(angles.inv_freq, model.rope_scaling)
            self.rotary_pos_emb = RotaryTables(angles, config.params_dtype, sharpness)
        self._softcap, self._z_loss = model.logit_softcap, model.z_loss
        self._pieces, self._kernels = model.vocab_size, compiled_kernels() if compiles else Kernels()
        if self.pre_process and model.embedding_scale != 1:
            self.embedding.register_forward_hook(lambda module, inputs, output: output * model.embedding_scale)
        if self.pre_process and model.position_embedding == "learned":
            self.embedding.position_embeddings.to(config.params_dtype)  # Megatron-Core leaves it in fp32
        self.head = Transform(config, model.padded_vocab_size) if self.post_process and model.head == "transform" else None
        self._mark_splits()

    def _postprocess(
        self,
        hidden_states: Tensor,
        *args: Any,
        labels: Targets | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """Do what comes after the last layer: the head, then logits, [b, s, padded vocabulary of this rank], or, where targets
        are given, their losses. Logits of other positions are not computed then.

        Returns:
            With targets, the sum of losses times factors, and [n] each losses, whether no token is likelier than the label, and
            the likeliest token, -1 in training.
        """
        if not self.post_process:
            return hidden_states
        if labels is None:
            hidden_states = hidden_states if self.head is None else self.head(hidden_states)
            return capped(super()._postprocess(hidden_states, *args, labels=None, **kwargs), self._softcap)
        return self._losses(hidden_states, labels)

    def rotary_of(self, positions: Tensor) -> Tensor | None:
        """Return the rotary tables of given positions, [b, s], as [s, b, 1, 2 d]; None for a model with learned positions."""
        if not isinstance(self.rotary_pos_emb, RotaryTables):
            return None
        return self.rotary_pos_emb(positions.shape[1])[:, 0, 0][positions.T][:, :, None]

    def _losses(self, hidden_states: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cross entropy over the tokenizer's pieces; rows that only pad the vocabulary are left out, so that they get no
        probability."""
        group, split = self.pg_collection.tp, self.config.sequence_parallel
        hidden = hidden_states if split else at(targets.places, hidden_states)
        if self.head is not None:
            hidden = self.head(hidden)
        if split:  # each rank has a stretch of every sample, and the head's weights gather what all of them add
            everything = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=group)
            hidden = at(targets.places, everything)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else self.output_layer.weight
        first = group.rank() * weight.shape[0]
        real = slice(0, max(0, self._pieces - first))
        return linear_cross_entropy(
            hidden,
            weight[real],
            None if self.head is None else self.head.bias[real],
            targets.labels - first,
            targets.factors,
            group,
            self._kernels,
            columns=weight.shape[0],
            softcap=self._softcap,
            z_loss=self._z_loss,
        )

    def _mark_splits(self) -> None:
        """Say how each weight is split over tensor ranks; Megatron-Core says it only where it initialises them itself."""
        for name, module in self.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding)) and weight is not None:
                matrices = 2 if name.endswith("linear_fc1") and self.config.gated_linear_unit else 1
                set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=0, stride=matrices)
                if getattr(module, "bias", None) is not None:
                    module.bias.partition_stride = matrices  # the rest Megatron-Core has marked
            elif isinstance(module, RowParallelLinear):
                set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=1, stride=1)

    def global_name(self, name: str) -> str:
        """A parameter's name in the whole model: chunks number their layers from 0, each in its own way."""
        if name.startswith("decoder.layers."):
            _, _, index, rest = name.split(".", 3)
            return f"decoder.layers.{self.decoder.layers[int(index)].layer_number - 1}.{rest}"
        if name == "output_layer.weight" and self.share_embeddings_and_output_weights:
            return "embedding.word_embeddings.weight"
        return name


def build_chunks(recipe: Recipe, config: TransformerConfig) -> list[Decoder]:
    """This rank's chunks, weights allocated and not yet set. Parallel groups must exist."""
    stages = range(recipe.parallel.virtual) if recipe.parallel.virtual > 1 else [None]
    return [Decoder(recipe, config, vp_stage=stage) for stage in stages]
