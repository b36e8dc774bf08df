"""Flat groups of parameters: what is summed over replicas, updated and gathered in one piece."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from torch import Tensor

from pretrain.model.split import block_of
from pretrain.optim.model import ChunkedModel, is_decayed
from pretrain.optim.names import layer_of
from pretrain.subnetwork.units import Units


@dataclass(frozen=True)
class Members:
    """The parameters of a group: matrices or vectors, of one unit or of all that is outside layers."""

    unit: int | None
    """Number of what runs or sleeps by itself (subnetwork/units.py); None outside layers."""
    layer: int | None
    """The layer that it belongs to, counted from 0; None outside layers."""
    decays: bool
    """Whether weight decay acts on them: on matrices, not on norms and biases."""
    parameters: dict[str, torch.nn.Parameter]
    """By their names in the whole model."""


def members_by_unit(model: ChunkedModel, units: Units) -> list[Members]:
    """Group a model's parameters, outside ones first, then unit by unit; matrices and vectors apart."""
    found: dict[tuple[int, bool], dict[str, torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        unit = unit_of(name, parameter, units)
        found.setdefault((-1 if unit is None else unit, not is_decayed(parameter)), {})[name] = parameter
    members = []
    for unit, is_vector in sorted(found):
        parameters, outside = found[unit, is_vector], unit < 0
        layer = None if outside else units.layer_of(unit)
        members.append(Members(None if outside else unit, layer, not is_vector, parameters))
    return members


def unit_of(name: str, parameter: torch.Tensor, units: Units) -> int | None:
    """Return the unit that a parameter of this name in the whole model belongs to; None outside layers."""
    layer, block = layer_of(name), block_of(parameter)
    if layer is None:
        return None
    if block is None:
        return units.number(layer)
    first = parallel_state.get_tensor_model_parallel_rank() * block.of
    return units.number(layer, block.kind, first + block.number)


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
        self.unit, self.layer, self.members = members.unit, members.layer, members.parameters
        self.is_matrices = members.decays
        self.weights, self.master, self.replica = weights.detach(), master, replica
        self.part = master.numel()
        self.gradients: Tensor | None = None
        self._written: set[int] = set()
        """Where parameters begin that have a sum in `gradients`."""
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

    def add_gradient(self, begin: int, gradient: Tensor) -> None:
        """Add a parameter's gradient to its sum. The first of a step takes the place of whatever is there, so that nobody has to
        write zeros first.

        Args:
            begin: where the parameter begins in the group.
            gradient: [elements], in any type.
        """
        place = self._buffer().narrow(0, begin, gradient.numel())
        if begin in self._written:
            place.add_(gradient)
        else:
            place.copy_(gradient)
            self._written.add(begin)

    def need_gradients(self) -> Tensor:
        """Return the sums of gradients, [replicas * part]; zeros of parameters without any."""
        gradients = self._buffer()
        for parameter, begin in self.views():
            if begin not in self._written:
                gradients.narrow(0, begin, parameter.numel()).zero_()
                self._written.add(begin)
        return gradients

    def forget_gradients(self, keep_room: bool) -> None:
        """Begin new sums, in the same memory or, where that is not kept, in other."""
        self._written.clear()
        if not keep_room:
            self.gradients = None

    def _buffer(self) -> Tensor:
        """Return memory for sums, of which only what `_written` names has a meaning, and the padding is zero."""
        if self.gradients is None:
            self.gradients = torch.empty(self.size, dtype=torch.float32, device=self.weights.device)
            self.gradients[sum(parameter.numel() for parameter in self.members.values()) :].zero_()
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
