"""ZeRO stage 3: as stage 2 (layerwise.py), and a rank has the matrices of a layer only while a pass goes through it.

A pass takes one micro-batch forward or backward through the layers that some replica runs in it. All replicas send the same
messages in the same order: layer by layer its weights, then the next one's in advance, then, on the way back, its gradients. A
replica whose own path skips the layer takes part with zeros.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import islice
from typing import Any

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

LENT = 2
"""Layers whose weights a rank has at a time: the one that computes, and the next."""


class FullyShardedOptimizer(LayerwiseOptimizer):
    """A `ModelOptimizer` for replicas of a model in one chunk. Vectors, and what is outside layers, stay in full on all."""

    def __init__(self, model: ChunkedModel, config: TransformerConfig, ds: DeepSpeedConfig, layers: int) -> None:
        super().__init__(model, config, ds, layers)
        self.matrices = {group.layer: group for group in self.groups if self._is_lent(group)}
        self._lent = set(self.matrices.values())
        self._layers_of: Callable[[int], Collection[int]]
        """Which layers any replica runs in a micro-batch."""
        self._micro_batch = -1
        self._pass: deque[FlatGroup] = deque()
        """What the present pass has not left yet, in its order."""
        self._is_backward = False
        self._give_back_all()

    def _is_lent(self, group: FlatGroup) -> bool:
        return group.layer is not None and group.is_matrices

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
        self._start(lambda micro_batch: path.layers)

    def _start(self, layers_of: Callable[[int], Collection[int]]) -> None:
        self._give_back_all()
        self._layers_of, self._micro_batch = layers_of, -1

    def settle(self) -> None:
        """Bring all weights together on every rank, where they stay until the next step or evaluation."""
        super().settle()
        for group in self.matrices.values():
            self._lend(group)
            self._arrived([group])

    def restored(self, step: int, updates: tuple[int, ...]) -> None:
        self._give_back_all()
        super().restored(step, updates)

    # Passes.

    def _enter_forward(self) -> None:
        self._micro_batch += 1
        self._enter(sorted(self._layers_of(self._micro_batch)), is_backward=False)

    def _watch_way_back(self, loss: Tensor) -> None:
        if loss.requires_grad:
            layers = sorted(self._layers_of(self._micro_batch), reverse=True)
            loss.register_hook(lambda gradient: self._enter_backward(layers))

    def _enter_backward(self, layers: Collection[int]) -> None:
        self._enter(layers, is_backward=True)
        # When autograd is through with all that this rank's path runs; the others wait for it in what may be left.
        torch.autograd.Variable._execution_engine.queue_callback(self._pass_by_the_rest)

    def _enter(self, layers: Collection[int], is_backward: bool) -> None:
        assert not self._pass, "a pass ends before the next begins"
        self._pass, self._is_backward = deque(self.matrices[layer] for layer in layers), is_backward
        if self._pass:
            self._lend(self._pass[0])

    def _before(self, layer: SkippableLayer) -> None:
        if self._pass and self._pass[0].layer == layer.layer_number - 1:
            self._come_to_first()

    def _after(self, layer: SkippableLayer, inputs: Mapping[str, Any], output: tuple[Tensor, Tensor | None]) -> None:
        number = layer.layer_number - 1
        if self._pass and self._pass[0].layer == number:
            self._leave_first()
        if output[0].requires_grad and inputs["attention_mask"].path.active[number]:
            output[0].register_hook(partial(self._come_back_to, self.matrices[number]))

    @torch.no_grad()
    def _come_back_to(self, group: FlatGroup, gradient: Tensor) -> None:
        while self._pass[0] is not group:
            self._pass_by_first()
        self._come_to_first()
        self._left[group] = len(group.members)

    def _accumulate(self, group: FlatGroup, begin: int, parameter: torch.nn.Parameter) -> None:
        super()._accumulate(group, begin, parameter)
        if self._is_lent(group) and self._left[group] == 0:
            assert self._pass[0] is group, "a layer's gradients come before the pass reaches the next layer"
            self._leave_first()

    @torch.no_grad()
    def _come_to_first(self) -> None:
        """Wait for the weights of the pass's first layer, while those of the second are on their way."""
        for group in islice(self._pass, LENT):
            self._lend(group)
        self._arrived([self._pass[0]])
        if self._is_backward:
            while any(piece.group is self._pass[0] for bundle, _ in self._sums for piece in bundle):
                self._receive()  # of an earlier micro-batch: the buffer is needed

    @torch.no_grad()
    def _leave_first(self) -> None:
        """Give the first layer's weights back, and on the way back send its gradients."""
        group = self._pass.popleft()
        self._give_back(group)
        if self._is_backward:
            for bundle in self._bundles([group], self.reduce_most):
                self._send(bundle)

    def _pass_by_first(self) -> None:
        """Do one's part for a layer that only other replicas run."""
        self._come_to_first()
        self._leave_first()

    def _pass_by_the_rest(self) -> None:
        while self._pass:
            self._pass_by_first()

    # Weights.

    def _lend(self, group: FlatGroup) -> None:
        if group not in self._lent:
            self._lent.add(group)
            group.need_weights()
            self._gather([group])

    def _give_back(self, group: FlatGroup) -> None:
        self._lent.remove(group)
        group.give_back_weights()

    def _give_back_all(self) -> None:
        for group in list(self._lent):
            self._give_back(group)
