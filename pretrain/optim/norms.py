"""The gradient's norm, over all ranks, and clipping by it."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from pretrain.model.split import is_split
from pretrain.optim.groups import FlatGroup
from pretrain.optim.model import ChunkedModel, gradient_of


@torch.no_grad()
def global_norm(model: ChunkedModel) -> Tensor:
    """Return the norm of the whole model's gradient, a scalar: every weight once, however many ranks hold parts or copies of
    it."""
    counted = [gradient_of(parameter) for parameter in model.parameters() if counts_here(model, parameter)]
    square = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in counted]).pow(2).sum()
    dist.all_reduce(square, group=parallel_state.get_model_parallel_group())
    return square.sqrt()


def counts_here(model: ChunkedModel, parameter: torch.nn.Parameter) -> bool:
    """Whether this rank counts a parameter in the norm; of copies one rank counts one."""
    return not model.is_copy(parameter) and (is_split(parameter) or parallel_state.get_tensor_model_parallel_rank() == 0)


def clip(gradients: Iterable[Tensor], norm: Tensor, largest: float) -> None:
    """Scale gradients of this norm down to `largest`; DeepSpeed adds as much to the norm. 0 leaves them alone.

    The factor stays on the device, in float64, as if it were a number of Python.
    """
    if largest:
        ratio = (largest / (norm.double() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(ratio)


class GroupNorm:
    """The norm of what replicas have summed, each its part."""

    def __init__(self, model: ChunkedModel, groups: Sequence[FlatGroup]) -> None:
        self.counted = {group: [s for s in group.stretches() if counts_here(model, s.parameter)] for group in groups}
        self.size = sum(map(len, self.counted.values()))
        self.device = groups[0].master.device
        self.places: dict[FlatGroup, Tensor] = {}
        """Where each parameter's square stands, so that who sleeps does not change the order in which they are added up."""
        begin = 0
        for group, stretches in self.counted.items():
            self.places[group] = torch.arange(begin, begin + len(stretches), device=self.device)
            begin += len(stretches)

    @torch.no_grad()
    def __call__(self, awake: Sequence[FlatGroup]) -> Tensor:
        """Return the norm over all ranks, a scalar; groups that are not `awake` have a gradient of 0."""
        squares = torch.zeros(self.size, device=self.device)
        views = [group.own_reduced().narrow(0, s.offset, s.length) for group in awake for s in self.counted[group]]
        if views:
            squares[torch.cat([self.places[group] for group in awake])] = torch.stack(torch._foreach_norm(views)).square()
        square = squares.sum()
        dist.all_reduce(square)
        return square.sqrt()
