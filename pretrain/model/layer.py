"""The layer that a path may skip."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn import Module
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from pretrain.ranges import named
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.width import Chosen, Width

Recompute = Literal["none", "layer", "selective"]

KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
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


@dataclass(frozen=True)
class LayerInputs:
    """What every layer of a micro-batch reads beside the residual stream. Travels as Megatron-Core's `attention_mask`, which its
    model and block pass on untouched."""

    mask: Tensor | BlockMask
    """[b, 1, s, s] to be added to attention scores, or the block mask of flex attention (attention.py)."""
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
            compute = partial(compute, part=self._part(path.width[layer], hidden_states.device))
        with named(f"layer {layer}"):
            if self.recompute == "layer" and self.training:
                return tensor_parallel.checkpoint(compute, False, hidden_states), context
            return compute(hidden_states), context

    @property
    def _selects(self) -> bool:
        return self.recompute == "selective" and self.training

    def _part(self, width: Width, device: torch.device) -> "LayerPart":
        """What of a width this tensor rank runs."""
        group = self.self_attention.linear_qkv.tp_group
        groups, columns = (
            None if chosen is None else own_blocks(chosen, group.rank(), group.size(), device)
            for chosen in (width.groups, width.columns)
        )
        return LayerPart(groups, columns, 0 if width.columns is None else width.columns.of // group.size())

    def compute(
        self,
        hidden_states: Tensor,
        mask: Tensor | BlockMask,
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
        output, bias = self.mlp(normed) if part.columns is None else self._feed_forward(normed, part.columns, part.of)
        return add_scaled(hidden_states, self.post_mlp_layernorm(_sum(output, bias)), scale)

    def _feed_forward(self, normed: Tensor, columns: Tensor, of: int) -> tuple[Tensor, Tensor | None]:
        """Megatron-Core's feed-forward block with some blocks of its columns alone."""
        gated = self.config.gated_linear_unit
        inner = _sum(*self.mlp.linear_fc1.of_blocks(normed, columns, of, 2 if gated else 1))
        gate, up = inner.chunk(2, -1) if gated else (inner, None)
        activated = self.config.activation_func(gate)
        return self.mlp.linear_fc2.of_blocks(activated if up is None else activated * up, columns, of)


class LayerPart(NamedTuple):
    """What a tensor rank runs of a layer's width."""

    groups: Tensor | None = None
    """Numbers of groups of heads, of those that it holds; all if None."""
    columns: Tensor | None = None
    """Numbers of blocks of feed-forward columns, of those that it holds; all if None."""
    of: int = 0
    """Blocks of columns that it holds."""


@lru_cache(maxsize=4096)
def own_blocks(chosen: Chosen, rank: int, ranks: int, device: torch.device) -> Tensor:
    """Return the numbers of the blocks that a tensor rank runs, on its device: once for all micro-batches of a path."""
    numbers = torch.tensor(chosen.of_rank(rank, ranks))
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


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
    """Return a layer's function compiled: one graph, which all layers share and which no break divides."""
    return torch.compile(function, fullgraph=True, dynamic=False)
