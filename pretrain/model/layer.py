"""The layer that a path may skip."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pretrain.subnetwork import LayerPath


@dataclass(frozen=True)
class LayerInputs:
    """What every layer of a micro-batch reads beside the residual stream. Travels as Megatron-Core's `attention_mask`, which its
    model and block pass on untouched."""

    mask: Tensor | BlockMask
    """[b, 1, s, s] to be added to attention scores, or the block mask of flex attention (attention.py)."""
    path: LayerPath


class SkippableLayer(TransformerLayer):
    """Megatron-Core's layer, run or skipped as the path says.

    A skipped layer hands its input on: no matrix product, no collective, no activation. Dropping it here, before any
    of the layer's own code, keeps the decision out of whatever is traced, compiled or recomputed.
    """

    def __init__(self, *args: Any, recompute: bool, compiles: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute, self.compiles = recompute, compiles

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
        if not path.active[layer]:
            # The schedule needs a graph between a chunk's input and output, even if no layer of it is active.
            return hidden_states.clone() if hidden_states.is_leaf else hidden_states, context
        if self.compiles:
            # A number would be a constant of the graph: one graph for each scale. A tensor on the CPU is handed to kernels as is.
            scale = torch.tensor(path.scale[layer], dtype=torch.float32)
            compute = partial(compiled_compute(), self, mask=mask, scale=scale, attention=attention)
        else:
            compute = partial(self.compute, mask=mask, scale=path.scale[layer], attention=attention)
        if self.recompute and self.training:
            return tensor_parallel.checkpoint(compute, False, hidden_states), context
        return compute(hidden_states), context

    def compute(
        self, hidden_states: Tensor, mask: Tensor | BlockMask, scale: float | Tensor, attention: dict[str, Any]
    ) -> Tensor:
        """Add both branches, attention and feed-forward, to the residual stream, which itself is never scaled.

        Args:
            scale: factor on both branches.
        """
        output, bias = self.self_attention(self.input_layernorm(hidden_states), attention_mask=mask, **attention)
        hidden_states = add_scaled(hidden_states, output, bias, scale)
        output, bias = self.mlp(self.pre_mlp_layernorm(hidden_states))
        return add_scaled(hidden_states, output, bias, scale)


def add_scaled(residual: Tensor, output: Tensor, bias: Tensor | None, scale: float | Tensor) -> Tensor:
    """residual + scale (output + bias), [s, b, h]; rounded once where the type is narrower than the scale's."""
    output = output if bias is None else output + bias
    if isinstance(scale, Tensor):
        return (residual.float() + scale * output.float()).to(residual.dtype)
    return residual.add(output, alpha=scale)


@cache
def compiled_compute(backend: str = "inductor") -> Callable[..., Tensor]:
    """Return `SkippableLayer.compute`, compiled: one graph, which all layers share and which no break divides."""
    return torch.compile(SkippableLayer.compute, fullgraph=True, dynamic=False, backend=backend)
