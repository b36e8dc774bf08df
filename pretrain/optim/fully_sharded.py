"""ZeRO stage 3: as stage 2 (layerwise.py), and a rank has the matrices of a layer only while a pass goes through it.

A pass takes one micro-batch forward or backward through the layers that some replica runs in it. All replicas send the same
messages in the same order: layer by layer its weights, then the next one's in advance, then, on the way back, its gradients. A
replica whose own path skips the layer, or parts of it, takes part with zeros.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.model.decoder import Decoder
from pretrain.model.layer import SkippableLayer
from pretrain.optim.groups import FlatGroup
from pretrain.optim.interface import Ran
from pretrain.optim.layerwise import LayerwiseOptimizer
from pretrain.optim.model import ChunkedModel
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.units import Units

LENT = 2
"""Layers whose weights a rank has at a time: the one that computes, and the next."""


class Stop(NamedTuple):
    """A layer that a pass goes through."""

    layer: int
    groups: tuple[FlatGroup, ...]
    """The matrices of it that any replica runs."""


class FullyShardedOptimizer(LayerwiseOptimizer):
    """A `ModelOptimizer` for replicas of a model in one chunk. Vectors, and what is outside layers, stay in full on all."""

    def __init__(self, model: ChunkedModel, config: TransformerConfig, ds: DeepSpeedConfig, units: Units) -> None:
        super().__init__(model, config, ds, units)
        self.matrices = {group.unit: group for group in self.groups if self._is_lent(group)}
        self._lent = set(self.matrices.values())
        self._units_of: Callable[[int], Collection[int]]
        """What any replica runs in a micro-batch."""
        self._micro_batch = -1
        self._pass: deque[Stop] = deque()
        """What the present pass has not left yet, in its order."""
        self._is_backward = False
        self._give_back_all()

    def _is_lent(self, group: FlatGroup) -> bool:
        return group.unit is not None and group.is_matrices

    def _watch(self) -> None:
        super()._watch()
        (chunk,) = self.model.chunks
        assert isinstance(chunk, Decoder)
        chunk.register_forward_pre_hook(lambda module, args: self._enter_forward())
        chunk.register_forward_hook(lambda module, args, losses: self._watch_way_back(losses[0]))
        for layer in chunk.decoder.layers:
            layer.register_forward_pre_hook(lambda layer, args: self._before(layer))
            layer.register_forward_hook(lambda layer, args, inputs, output: self._after(layer, inputs, output), with_kwargs=True)

    # Before and after passes.

    def _expect(self, ran: Ran) -> None:
        self._start(lambda micro_batch: ran.by_micro_batch[micro_batch])

    def wake(self, path: LayerPath) -> None:
        super().wake(path)
        used = frozenset(self.units.of_path(path))
        self._start(lambda micro_batch: used)

    def _start(self, units_of: Callable[[int], Collection[int]]) -> None:
        self._give_back_all()
        self._units_of, self._micro_batch = units_of, -1

    def settle(self) -> None:
        """Bring all weights together on every rank, where they stay until the next step or evaluation."""
        super().settle()
        for group in self.matrices.values():
            self._lend([group])
            self._arrived([group])

    def restored(self, step: int, updates: tuple[int, ...]) -> None:
        self._give_back_all()
        super().restored(step, updates)

    # Passes.

    def _enter_forward(self) -> None:
        self._micro_batch += 1
        self._enter(self._stops(), is_backward=False)

    def _stops(self) -> list[Stop]:
        """The layers of a pass in order, each with what of it any replica runs."""
        stops: dict[int, list[FlatGroup]] = {}
        for unit in sorted(self._units_of(self._micro_batch)):
            of_layer = stops.setdefault(self.units.layer_of(unit), [])
            if unit in self.matrices:  # a layer that is cut may have none of its own, and other tensor ranks have other blocks
                of_layer.append(self.matrices[unit])
        return [Stop(layer, tuple(groups)) for layer, groups in stops.items()]

    def _watch_way_back(self, loss: Tensor) -> None:
        if loss.requires_grad:
            stops = self._stops()[::-1]
            loss.register_hook(lambda gradient: self._enter_backward(stops))

    def _enter_backward(self, stops: Iterable[Stop]) -> None:
        self._enter(stops, is_backward=True)
        # When autograd is through with all that this rank's path runs; the others wait for it in what may be left.
        torch.autograd.Variable._execution_engine.queue_callback(self._pass_by_the_rest)

    def _enter(self, stops: Iterable[Stop], is_backward: bool) -> None:
        assert not self._pass, "a pass ends before the next begins"
        self._pass, self._is_backward = deque(stops), is_backward
        if self._pass:
            self._lend(self._pass[0].groups)

    def _before(self, layer: SkippableLayer) -> None:
        if self._pass and self._pass[0].layer == layer.layer_number - 1:
            self._come_to_first()

    def _after(self, layer: SkippableLayer, inputs: Mapping[str, Any], output: tuple[Tensor, Tensor | None]) -> None:
        number = layer.layer_number - 1
        if self._pass and self._pass[0].layer == number:
            self._leave_first()
        if output[0].requires_grad and inputs["attention_mask"].path.active[number]:
            path = inputs["attention_mask"].path
            output[0].register_hook(partial(self._come_back_to, number, frozenset(self.units.of_layer(path, number))))

    @torch.no_grad()
    def _come_back_to(self, layer: int, own: frozenset[int], gradient: Tensor) -> None:
        """Reach a layer of which this rank's own path runs some units."""
        while self._pass[0].layer != layer:
            self._pass_by_first()
        self._come_to_first()
        for group in self._pass[0].groups:
            self._left[group] = len(group.members) if group.unit in own else 0

    def _accumulate(self, group: FlatGroup, begin: int, parameter: torch.nn.Parameter) -> None:
        super()._accumulate(group, begin, parameter)
        if self._is_lent(group) and self._left[group] == 0:
            assert group in self._pass[0].groups, "a layer's gradients come before the pass reaches the next layer"
            if not any(self._left[other] for other in self._pass[0].groups):
                self._leave_first()

    @torch.no_grad()
    def _come_to_first(self) -> None:
        """Wait for the weights of the pass's first layer, while those of the second are on their way."""
        for stop in islice(self._pass, LENT):
            self._lend(stop.groups)
        first = self._pass[0].groups
        self._arrived(first)
        if self._is_backward:
            while any(piece.group in first for bundle, _ in self._sums for piece in bundle):
                self._receive()  # of an earlier micro-batch: the buffer is needed

    @torch.no_grad()
    def _leave_first(self) -> None:
        """Give the first layer's weights back, and on the way back send its gradients."""
        groups = self._pass.popleft().groups
        for group in groups:
            self._give_back(group)
        if self._is_backward:
            for bundle in self._bundles(groups, self.reduce_most):
                self._send(bundle)

    def _pass_by_first(self) -> None:
        """Do one's part for a layer that only other replicas run."""
        self._come_to_first()
        self._leave_first()

    def _pass_by_the_rest(self) -> None:
        while self._pass:
            self._pass_by_first()

    # Weights.

    def _lend(self, groups: Sequence[FlatGroup]) -> None:
        missing = [group for group in groups if group not in self._lent]
        for group in missing:
            self._lent.add(group)
            group.need_weights()
        self._gather(missing)

    def _give_back(self, group: FlatGroup) -> None:
        self._lent.remove(group)
        group.give_back_weights()

    def _give_back_all(self) -> None:
        for group in list(self._lent):
            self._give_back(group)
