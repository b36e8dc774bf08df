"""Flat groups of parameters: what is summed over replicas, updated and gathered in one piece."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.optim.model import ChunkedModel, is_decayed
from pretrain.optim.names import layer_of


@dataclass(frozen=True)
class Members:
    """The parameters of a group: matrices or vectors, of one layer or of all that is outside layers."""

    layer: int | None
    """Global number, counted from 0; None outside layers."""
    decays: bool
    """Whether weight decay acts on them: on matrices, not on norms and biases."""
    parameters: dict[str, torch.nn.Parameter]
    """By their names in the whole model."""


def members_by_layer(model: ChunkedModel) -> list[Members]:
    """Group a model's parameters, outside ones first, then layer by layer; matrices and vectors apart."""
    found: dict[tuple[int, bool], dict[str, torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer = layer_of(name)
        found.setdefault((-1 if layer is None else layer, not is_decayed(parameter)), {})[name] = parameter
    return [Members(None if key[0] < 0 else key[0], not key[1], found[key]) for key in sorted(found)]


class Stretch(NamedTuple):
    """The part of one parameter of a group that this rank keeps master and moments of."""

    name: str
    parameter: torch.nn.Parameter
    start: int
    """First element, in the parameter flattened."""
    length: int
    offset: int
    """Where it begins in the rank's part of the group."""


class FlatGroup:
    """Members of a group one behind the other, cut into as many equal parts as there are replicas; this rank keeps one."""

    def __init__(self, members: Members, weights: Tensor, master: Tensor, replica: int) -> None:
        """
        Args:
            weights: [replicas * part], which the model computes with; its parameters are views of it.
            master: [part] fp32.
        """
        self.layer, self.members = members.layer, members.parameters
        self.is_matrices = members.decays
        self.weights, self.master, self.replica = weights.detach(), master, replica
        self.part = master.numel()
        self.gradients: Tensor | None = None
        self.reduced: Tensor | None = None
        """[part], own part of the gradient's mean over replicas, once it is there."""
        self.stale = False
        """Whether `weights` are older than the masters of all replicas."""

    @property
    def size(self) -> int:
        return self.weights.numel()

    @property
    def own_weights(self) -> Tensor:
        return self.weights.narrow(0, self.replica * self.part, self.part)

    def need_gradients(self) -> Tensor:
        """Return the buffer in which gradients are summed, [replicas * part]; zeros if there was none."""
        if self.gradients is None:
            self.gradients = torch.zeros(self.size, dtype=torch.float32, device=self.weights.device)
        return self.gradients

    def need_weights(self) -> Tensor:
        """Return `weights`, with room for them."""
        storage = self.weights.untyped_storage()
        if storage.size() == 0:
            storage.resize_(self.weights.numel() * self.weights.element_size())
        return self.weights

    def give_back_weights(self) -> None:
        """Free their memory. Parameters, and what autograd has saved of them, are views, good again after `need_weights`."""
        self.weights.untyped_storage().resize_(0)

    def own_reduced(self) -> Tensor:
        """Return `reduced`, which is known to be there."""
        assert self.reduced is not None, "gradients are summed before they are used"
        return self.reduced

    def views(self) -> Iterator[tuple[torch.nn.Parameter, int]]:
        """Parameters with where each begins in the group."""
        begin = 0
        for parameter in self.members.values():
            yield parameter, begin
            begin += parameter.numel()

    def stretches(self) -> Iterator[Stretch]:
        """What this rank keeps, parameter by parameter; of some it keeps nothing."""
        first, last = self.replica * self.part, (self.replica + 1) * self.part
        for name, (parameter, begin) in zip(self.members, self.views()):
            start, end = max(first, begin), min(last, begin + parameter.numel())
            if start < end:
                yield Stretch(name, parameter, start - begin, end - start, start - first)
