"""The layer that a path may skip."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from pretrain.subnetwork import Path


@dataclass
class Route:
    """The path of the micro-batch whose forward pass is under way in a chunk.

    Read in the forward pass only. What a layer needs again when it is recomputed, by when another micro-batch may be
    under way, it has kept.
    """

    path: Path


class SkippableLayer(TransformerLayer):
    """Megatron-Core's layer, run or skipped as the route says.

    A skipped layer hands its input on: no matrix product, no collective, no activation. Dropping it here, before any
    of the layer's own code, keeps the decision out of whatever is traced, compiled or recomputed.
    """

    def __init__(self, *args: Any, route: Route, recompute: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.route = route
        self.recompute = recompute
        self._scale = 1.0
        self.self_attn_bda = self.mlp_bda = self._residual

    def forward(self, hidden_states: Tensor, context: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h], or [s / tensor ranks, b, h] under sequence parallelism."""
        path, layer = self.route.path, self.layer_number - 1
        if not path.active[layer]:
            # The schedule needs a graph between a chunk's input and output, even if no layer of it is active.
            return hidden_states.clone() if hidden_states.is_leaf else hidden_states, context
        run = partial(self._run, path.scale[layer], inputs)
        if self.recompute and self.training:
            return tensor_parallel.checkpoint(run, False, hidden_states), context
        return run(hidden_states), context

    def _run(self, scale: float, inputs: dict[str, Any], hidden_states: Tensor) -> Tensor:
        self._scale = scale
        return super().forward(hidden_states, **inputs)[0]

    def _residual(self, training: bool, fused: bool):
        """What Megatron-Core calls bias-dropout-add: the branch, scaled, joins the residual stream, which never is."""

        def add(output_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            assert dropout == 0.0, "this layer has no dropout"
            output, bias = output_and_bias
            branch = output if bias is None else output + bias
            return residual.add(branch, alpha=self._scale)

        return add
