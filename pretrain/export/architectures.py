"""Our weights under transformers' names: LlamaForCausalLM or Qwen3ForCausalLM for decoders, MegatronBertForMaskedLM for BERT."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.config.recipe import Model, Recipe, RopeScaling
from pretrain.errors import UserError

Whole = Callable[[str], np.ndarray]
"""A parameter in full, by our name."""
TOKEN_TYPES = 2
"""Texts of a pair, in BERT."""
Weights = Iterator[tuple[str, np.ndarray]]
DECODERS: dict[tuple[bool | str, bool], tuple[str, str, dict[str, Any]]] = {
    (False, False): ("LlamaForCausalLM", "llama", {"attention_bias": False, "mlp_bias": False}),
    (False, True): ("Qwen3ForCausalLM", "qwen3", {"attention_bias": False, "use_sliding_window": False}),
    # Not Qwen2ForCausalLM: transformers reads folders of that type with Qwen's own tokenizer, whatever they say. Llama has one
    # bias more, which is exported as zeros.
    ("qkv", False): ("LlamaForCausalLM", "llama", {"attention_bias": True, "mlp_bias": False}),
}
"""Class, type and settings of their own, by biases and qk_norm."""


@dataclass(frozen=True)
class Architecture:
    """How a recipe's model is called elsewhere."""

    name: str
    config: dict[str, Any]
    weights: Callable[[Whole], Weights]


def architecture_of(recipe: Recipe, special: dict[str, int]) -> Architecture:
    """The class of transformers that computes the same.

    Args:
        special: ids of the tokenizer's special pieces, by transformers' names, as pad_token_id.

    Raises:
        UserError: there is none.
    """
    model = recipe.model
    shared = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": recipe.data.sequence_length,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
        **special,
    }
    if model.embedding_scale != 1 or model.logit_softcap is not None:
        raise UserError("no class of transformers that is exported to has an embedding_scale or a logit_softcap; train without")
    export_as = recipe.data.made_as.export_as
    ours = (model.norm, model.feed_forward, model.position_embedding, model.head)
    decoder = DECODERS.get((model.biases, model.qk_norm))
    if export_as == "LlamaForCausalLM" and ours == ("rmsnorm", "swiglu", "rope", "linear") and decoder is not None:
        name, model_type, own = decoder
        config = {
            "architectures": [name],
            "model_type": model_type,
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon,
            "num_key_value_heads": model.groups,
            "head_dim": model.head_size,
            "rope_theta": float(model.rotary_base),
            "rope_scaling": _rope_scaling(model.rope_scaling),
            "bos_token_id": None,
            **own,
        }
        return Architecture(name, {**shared, **config}, lambda whole: _decoder(model, whole))
    bert = ("layernorm", "gelu", "learned", "transform")
    plain = model.biases is True and not model.qk_norm and model.query_size == model.key_size == model.hidden_size
    if export_as == "MegatronBertForMaskedLM" and ours == bert and plain and model.tied_embeddings:
        config = {
            "architectures": ["MegatronBertForMaskedLM"],
            "model_type": "megatron-bert",
            "hidden_act": "gelu",
            "layer_norm_eps": model.norm_epsilon,
            "type_vocab_size": TOKEN_TYPES,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        return Architecture("MegatronBertForMaskedLM", {**shared, **config}, lambda whole: _bert(model, whole))
    raise UserError(
        f"no class of transformers is this model (norm {model.norm}, feed_forward {model.feed_forward}, biases {model.biases},"
        f" qk_norm {model.qk_norm}, position_embedding {model.position_embedding}, head {model.head}, objective"
        f" {recipe.data.objective}); recipes like ul2_*, gpt_* become LlamaForCausalLM, with qk_norm Qwen3ForCausalLM; recipes"
        " like bert_* MegatronBertForMaskedLM"
    )


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Return transformers' words for changed rotary frequencies."""
    if scaling is None:
        return None
    own = {
        "linear": {},
        "llama3": {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor},
        "yarn": {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow},
    }[scaling.type]
    before = {} if scaling.original_length is None else {"original_max_position_embeddings": scaling.original_length}
    return {"rope_type": scaling.type, "factor": scaling.factor, **before, **own}


def _decoder(model: Model, whole: Whole) -> Weights:
    yield "model.embed_tokens.weight", whole("embedding.word_embeddings.weight")[: model.vocab_size]
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        yield theirs + "input_layernorm.weight", whole(ours + "input_layernorm.weight")
        for kind in ("weight", "bias") if model.biases else ("weight",):
            for name, part in zip("qkv", _queries_keys_values(model, whole(f"{ours}self_attention.linear_qkv.{kind}"))):
                yield f"{theirs}self_attn.{name}_proj.{kind}", part
        for name in "qk" if model.qk_norm else "":
            yield f"{theirs}self_attn.{name}_norm.weight", whole(f"{ours}self_attention.{name}_layernorm.weight")
        yield theirs + "self_attn.o_proj.weight", whole(ours + "self_attention.linear_proj.weight")
        if model.biases:
            yield theirs + "self_attn.o_proj.bias", np.zeros(model.hidden_size, dtype=np.float32)
        yield theirs + "post_attention_layernorm.weight", whole(ours + "pre_mlp_layernorm.weight")
        gate, up = np.split(whole(ours + "mlp.linear_fc1.weight"), 2)
        yield theirs + "mlp.gate_proj.weight", gate
        yield theirs + "mlp.up_proj.weight", up
        yield theirs + "mlp.down_proj.weight", whole(ours + "mlp.linear_fc2.weight")
    yield "model.norm.weight", whole("decoder.final_layernorm.weight")
    if not model.tied_embeddings:
        yield "lm_head.weight", whole("output_layer.weight")[: model.vocab_size]


def _bert(model: Model, whole: Whole) -> Weights:
    words = whole("embedding.word_embeddings.weight")[: model.vocab_size]
    yield "bert.embeddings.word_embeddings.weight", words
    yield "bert.embeddings.position_embeddings.weight", whole("embedding.position_embeddings.weight")
    # There are none here. Rows of zeros change nothing, and two can learn to differ where pairs of texts are to be told apart.
    yield "bert.embeddings.token_type_embeddings.weight", np.zeros((TOKEN_TYPES, model.hidden_size), dtype=np.float32)
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}.", f"bert.encoder.layer.{layer}."
        same = {
            "attention.ln": "input_layernorm",
            "attention.output.dense": "self_attention.linear_proj",
            "ln": "pre_mlp_layernorm",
            "intermediate.dense": "mlp.linear_fc1",
            "output.dense": "mlp.linear_fc2",
        }
        for kind in ("weight", "bias"):
            for there, here in same.items():
                yield f"{theirs}{there}.{kind}", whole(f"{ours}{here}.{kind}")
            parts = _queries_keys_values(model, whole(f"{ours}self_attention.linear_qkv.{kind}"))
            for name, part in zip(("query", "key", "value"), parts):
                yield f"{theirs}attention.self.{name}.{kind}", part
    for kind in ("weight", "bias"):
        yield f"bert.encoder.ln.{kind}", whole(f"decoder.final_layernorm.{kind}")
        yield f"cls.predictions.transform.dense.{kind}", whole(f"head.dense.{kind}")
        yield f"cls.predictions.transform.LayerNorm.{kind}", whole(f"head.norm.{kind}")
    yield "cls.predictions.bias", whole("head.bias")[: model.vocab_size]


def _queries_keys_values(model: Model, together: np.ndarray) -> Iterator[np.ndarray]:
    """Megatron-Core keeps a group's queries, key and value together; [groups * (heads of a group + 2) * d, ...] becomes
    [heads * d, ...] and twice [groups * d, ...]."""
    share, rest = model.num_attention_heads // model.groups, together.shape[1:]
    apart = together.reshape(model.groups, share + 2, model.head_size, *rest)
    yield np.ascontiguousarray(apart[:, :share].reshape(model.query_size, *rest))
    for index in (share, share + 1):
        yield np.ascontiguousarray(apart[:, index].reshape(model.key_size, *rest))
