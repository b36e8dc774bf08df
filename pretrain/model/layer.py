"""The layer that a path may skip."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn import Module
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from pretrain.model.linear import ColumnLinear, RowLinear, Weights
from pretrain.ranges import named
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.units import Units
from pretrain.subnetwork.width import COLUMNS, GROUPS, Chosen, Width

Recompute = Literal["none", "layer", "selective"]

KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_mm_v2.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.wait_tensor.default,
]
"""Results that selective recomputation keeps: matrix products, attention, and what came from other ranks."""


GRAPHS = 128
"""Graphs of a layer's function that may be compiled: two for each stage that runs other parts of layers. PyTorch's own limit, 8,
tells of graphs that nobody meant to have."""


@dataclass(frozen=True)
class LayerInputs:
    """What every layer of a micro-batch reads beside the residual stream. Travels as Megatron-Core's `attention_mask`, which its
    model and block pass on untouched."""

    mask: Tensor | BlockMask | None
    """[b, 1, s, s] to be added to attention scores, or the block mask of flex attention (attention.py); None where every sample
    is one example, read from left to right."""
    path: LayerPath
    rotary: Tensor | None = None
    """[s, b, 1, 2 d], of RotaryTables, where positions are not those within the sample, as when a context has several
    continuations."""


class SkippableLayer(TransformerLayer):
    """Megatron-Core's layer, run or skipped as the path says.

    A skipped layer hands its input on: no matrix product, no collective, no activation. Dropping it here, before any
    of the layer's own code, keeps the decision out of whatever is traced, compiled or recomputed.
    """

    def __init__(
        self, *args: Any, recompute: Recompute, compiles: bool, norm_after: type[Module] | None = None, **kwargs: Any
    ) -> None:
        """norm_after: of a branch's output; none where Megatron-Core's own norms, which are before a branch, are there."""
        super().__init__(*args, **kwargs)
        self.recompute, self.compiles = recompute, compiles
        size, eps = self.config.hidden_size, self.config.layernorm_epsilon
        self.post_self_attn_layernorm, self.post_mlp_layernorm = (
            IdentityOp() if norm_after is None else norm_after(self.config, size, eps) for _ in range(2)
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: LayerInputs,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
        **attention: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Run or skip the layer.

        Args:
            hidden_states: [s, b, h], or [s / tensor ranks, b, h] under sequence parallelism.
            attention: what Megatron-Core gives self-attention beside the mask, rotary frequencies among it.
        """
        mask, path, layer = attention_mask.mask, attention_mask.path, self.layer_number - 1
        if attention_mask.rotary is not None:
            attention = {**attention, "rotary_pos_emb": attention_mask.rotary}
        if not path.active[layer]:
            # The schedule needs a graph between a chunk's input and output, even if no layer of it is active.
            return hidden_states.clone() if hidden_states.is_leaf else hidden_states, context
        if self.compiles:
            # A number would be a constant of the graph: one graph for each scale. A tensor on the CPU is handed to kernels as is.
            scale: float | Tensor = torch.tensor(path.scale[layer], dtype=torch.float32)
            function = compiled(selective if self._selects else SkippableLayer.compute)
        else:
            scale = path.scale[layer]
            function = selective if self._selects else SkippableLayer.compute
        compute = partial(function, self, mask=mask, scale=scale, attention=attention)
        if path.width is not None:
            compute = partial(compute, part=self._part(path.width[layer]))
        with named(f"layer {layer}"):
            if self.recompute == "layer" and self.training:
                return tensor_parallel.checkpoint(compute, False, hidden_states), context
            return compute(hidden_states), context

    @property
    def _selects(self) -> bool:
        return self.recompute == "selective" and self.training

    def cut(self, units: Units) -> None:
        """Cut the width into the blocks that run or sleep by themselves, where there are any."""
        ranks = self.self_attention.linear_qkv.tp_group.size()
        for kind, count, linears in ((GROUPS, units.groups, self._of_groups), (COLUMNS, units.columns, self._of_columns)):
            for linear in linears if count else ():
                linear.cut(kind, count // ranks)

    @property
    def _of_groups(self) -> tuple[ColumnLinear, RowLinear]:
        return self.self_attention.linear_qkv, self.self_attention.linear_proj

    @property
    def _of_columns(self) -> tuple[ColumnLinear, RowLinear]:
        return self.mlp.linear_fc1, self.mlp.linear_fc2

    def _part(self, width: Width) -> "LayerPart":
        """What of a width this tensor rank runs."""
        group = self.self_attention.linear_qkv.tp_group

        def weights(chosen: Chosen | None, linears: tuple[ColumnLinear, RowLinear]) -> tuple[Weights, Weights] | None:
            if chosen is None:
                return None
            own = chosen.of_rank(group.rank(), group.size())
            return linears[0].weights(own), linears[1].weights(own)

        return LayerPart(weights(width.groups, self._of_groups), weights(width.columns, self._of_columns))

    def compute(
        self,
        hidden_states: Tensor,
        mask: Tensor | BlockMask | None,
        scale: float | Tensor,
        attention: dict[str, Any],
        part: "LayerPart | None" = None,
    ) -> Tensor:
        """Add both branches, attention and feed-forward, to the residual stream, which itself is never scaled.

        Args:
            scale: factor on both branches.
            part: what runs of the width; all of it if None.
        """
        part = part or LayerPart()
        normed = self.input_layernorm(hidden_states)
        output, bias = self.self_attention(normed, attention_mask=mask, groups=part.groups, **attention)
        hidden_states = add_scaled(hidden_states, self.post_self_attn_layernorm(_sum(output, bias)), scale)
        normed = self.pre_mlp_layernorm(hidden_states)
        output, bias = self.mlp(normed) if part.columns is None else self._feed_forward(normed, *part.columns)
        return add_scaled(hidden_states, self.post_mlp_layernorm(_sum(output, bias)), scale)

    def _feed_forward(self, normed: Tensor, first: Weights, second: Weights) -> tuple[Tensor, Tensor | None]:
        """Megatron-Core's feed-forward block with some blocks of its columns alone."""
        inner = _sum(*self.mlp.linear_fc1(normed, first))
        gate, up = inner.chunk(2, -1) if self.config.gated_linear_unit else (inner, None)
        activated = self.config.activation_func(gate)
        return self.mlp.linear_fc2(activated if up is None else activated * up, second)


class LayerPart(NamedTuple):
    """What a tensor rank runs of a layer's width: weights rather than their numbers, which would be constants of a graph."""

    groups: tuple[Weights, Weights] | None = None
    """Weights of the groups of heads that run, of both projections; all if None."""
    columns: tuple[Weights, Weights] | None = None
    """Weights of the feed-forward columns that run, of both linears; all if None."""


def _sum(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias


def add_scaled(residual: Tensor, output: Tensor, scale: float | Tensor) -> Tensor:
    """residual + scale output, [s, b, h]; rounded once where the type is narrower than the scale's."""
    if isinstance(scale, Tensor):
        return (residual.float() + scale * output.float()).to(residual.dtype)
    return residual.add(output, alpha=scale)


def selective(layer: SkippableLayer, hidden_states: Tensor, **inputs: Any) -> Tensor:
    """Compute a layer, keeping what is dear to make again and making the rest again in the backward pass."""
    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(
        partial(layer.compute, **inputs), hidden_states, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a layer's function compiled: one graph, which all layers share and which no break divides; where stages run parts of
    layers, one for each number of them."""
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    return torch.compile(function, fullgraph=True, dynamic=False)
