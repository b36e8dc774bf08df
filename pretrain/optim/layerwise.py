"""ZeRO stages 1 and 2 by unit: a layer, or a part of one, that a step leaves out is neither summed, nor updated, nor gathered.
fully_sharded.py adds stage 3.

The flat groups are DeepSpeed's (deepspeed.py); what goes between replicas is in wire.py, who sleeps in sleep.py.
docs/communication.md follows one step.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.model.decoder import Decoder
from pretrain.optim.adamw import make_up, state_of, tensors_of
from pretrain.optim.deepspeed import flat_groups
from pretrain.optim.groups import FlatGroup, Stretch
from pretrain.optim.interface import Ran
from pretrain.optim.model import ChunkedModel, sum_over_model_ranks
from pretrain.optim.names import whole_name
from pretrain.optim.norms import GroupNorm, clip
from pretrain.optim.shards import Shard
from pretrain.optim.sleep import Sleepers
from pretrain.optim.wire import Bundle, Transfer, Wire, bundles
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.units import Units

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ON_THE_WAY = 2
"""Sums that may be under way in stage 2, with `overlap_comm`, before the buffers of older ones are given back."""


class LayerwiseOptimizer:
    """A `ModelOptimizer`. Gradients of a layer's matrices are summed as soon as its last backward pass is through, all others
    after the schedule; weights are gathered before the next step that runs them."""

    def __init__(self, model: ChunkedModel, config: TransformerConfig, ds: DeepSpeedConfig, units: Units) -> None:
        zero, self.units = ds.zero_optimization, units
        self.model, self.config, self.clipping = model, config, ds.gradient_clipping
        self.keeps_gradients = zero.stage == 1
        # Pipeline ranks of replicas on different paths would wait for each other in a circle if they waited amid the schedule.
        waits_early = not self.keeps_gradients and parallel_state.get_pipeline_model_parallel_world_size() == 1
        self.sends_early = zero.overlap_comm or waits_early
        self.on_the_way = math.inf if not waits_early else ON_THE_WAY if zero.overlap_comm else 0
        self.reduce_most, self.gather_most = zero.reduce_bucket_size, zero.allgather_bucket_size
        self.adamw, self.groups = flat_groups(model, ds, units)
        self.wire = Wire(
            parallel_state.get_data_parallel_group(), DTYPES[ds.communication_data_type], zero.reduce_scatter, zero.stage >= 2
        )
        self.wire.open(self.groups[0].master.device)
        self.sleepers = Sleepers(units.count, ds.progressive_subnetwork.skipped_update == "exact")
        self.norm = GroupNorm(model, self.groups)
        self._of_unit: dict[int, list[FlatGroup]] = {}
        for group in self.groups:
            if group.unit is not None:
                self._of_unit.setdefault(group.unit, []).append(group)
        self._awake: list[FlatGroup] = []
        self._awake_units: Collection[int] = ()
        self._waiting: list[Bundle] = []
        self._left: dict[FlatGroup, int] = {}
        self._sums: list[tuple[Bundle, Transfer]] = []
        self._gathers: dict[FlatGroup, list[Transfer]] = {}
        self._watch()

    def _watch(self) -> None:
        """Sum gradients in fp32 where they arise; have each layer wait for its own weights."""
        for group in self.groups:
            for parameter, begin in group.views():
                parameter.register_post_accumulate_grad_hook(partial(self._accumulate, group, begin))
        of_layer: dict[int | None, list[FlatGroup]] = {}
        for group in self.groups:
            of_layer.setdefault(group.layer, []).append(group)
        for chunk in self.model.chunks:
            assert isinstance(chunk, Decoder)
            chunk.register_forward_pre_hook(lambda module, args: self._arrived(of_layer.get(None, ())))
            for layer in chunk.decoder.layers:
                groups = of_layer[layer.layer_number - 1]
                layer.register_forward_pre_hook(lambda module, args, groups=groups: self._arrived(groups))

    # Before the schedule: weights.

    def begin(self, ran: Ran) -> None:
        """Wake what the step runs, and know in which order its gradients will be final."""
        self._awake_units = self._woken_by(ran)
        self._awake = self._wake(self._awake_units)
        self._expect(ran)

    def _expect(self, ran: Ran) -> None:
        last = [-1 if micro_batch is None else micro_batch for micro_batch in ran.last_micro_batch]
        own = [(group.unit, group) for group in self._awake if group.unit is not None and group.is_matrices]
        ordered = [group for _, group in sorted(own, key=lambda pair: (last[pair[0]], -pair[0]))]
        self._left = {group: ran.here[unit] * len(group.members) for unit, group in own}
        self._waiting = self._bundles(ordered, self.reduce_most)

    def _woken_by(self, ran: Ran) -> Collection[int]:
        return frozenset(ran.units)

    def _bundles(self, groups: Iterable[FlatGroup], most: int) -> list[Bundle]:
        return bundles(groups, most, self.wire.replicas)

    @torch.no_grad()
    def _wake(self, units: Collection[int]) -> list[FlatGroup]:
        """Make up for what units have missed, and start to gather weights that are not up to date. Returns the groups of these
        units, and those outside layers."""
        for unit in units:
            self._make_up(unit)
        awake = [group for group in self.groups if group.unit is None or group.unit in units]
        stale = [group for group in awake if group.stale and not self._is_lent(group)]
        self._gather(sorted(stale, key=lambda group: group.is_matrices))  # vectors share a message
        return awake

    def _is_lent(self, group: FlatGroup) -> bool:
        """Whether the weights of a group are on a rank only while a pass needs them (stage 3)."""
        return False

    def _gather(self, groups: Sequence[FlatGroup]) -> None:
        for group in groups:
            group.own_weights.copy_(group.master.detach())
            group.stale = False
        if self.wire.replicas > 1:
            for bundle in self._bundles(groups, self.gather_most):
                transfer = self.wire.start_gather(bundle)
                for piece in bundle:
                    self._gathers.setdefault(piece.group, []).append(transfer)

    def _make_up(self, unit: int) -> None:
        if rates := self.sleepers.missed(unit):
            for group in self._of_unit.get(unit, ()):
                matrices, vectors = self.adamw.param_groups
                make_up(self.adamw, matrices if group.is_matrices else vectors, group.master, rates)
                group.stale = True
            self.sleepers.made_up(unit)

    def _arrived(self, groups: Iterable[FlatGroup]) -> None:
        transfers = [transfer for group in groups for transfer in self._gathers.pop(group, ())]
        if transfers:
            with self.model.stopwatch.paused():
                for transfer in transfers:
                    transfer.wait()

    # During the schedule: gradients.

    @torch.no_grad()
    def _accumulate(self, group: FlatGroup, begin: int, parameter: torch.nn.Parameter) -> None:
        """Add a gradient that autograd has just made to the group's sum."""
        assert parameter.grad is not None
        group.add_gradient(begin, parameter.grad.view(-1))
        parameter.grad = None
        if group in self._left:
            self._left[group] -= 1
            assert self._left[group] >= 0, "a unit has more backward passes than its paths say"
        self._send_what_is_final()

    def _send_what_is_final(self) -> None:
        """Start the sums whose turn it is: the same order on all replicas, whatever each of them ran."""
        while self.sends_early and self._waiting and not any(self._left[piece.group] for piece in self._waiting[0]):
            self._send(self._waiting.pop(0))

    def _send(self, bundle: Bundle) -> None:
        if self.wire.replicas == 1:
            return
        self._sums.append((bundle, self.wire.start_sum(bundle)))
        while len(self._sums) > self.on_the_way:
            self._receive()

    def _receive(self) -> None:
        """Wait for the oldest sum; in stage 2 its buffer is given back."""
        bundle, transfer = self._sums.pop(0)
        transfer.wait()
        if not self.keeps_gradients:
            for piece in bundle:
                if piece.end == piece.group.part:
                    piece.group.forget_gradients(keep_room=False)

    # After the schedule: norm, update.

    @torch.no_grad()
    def finish(self, lr: float, is_good: Tensor) -> Tensor:
        """Complete the sums, clip, update what is awake."""
        self._arrived(list(self._gathers))  # of what only other replicas ran
        rest = [group for group in self._awake if group.unit is None or not group.is_matrices]
        self._complete_gradients(rest)
        for bundle in [*self._waiting, *self._bundles(rest, self.reduce_most)]:
            self._send(bundle)
        while self._sums:
            self._receive()
        self._waiting, self._left = [], {}
        for group in self._awake:
            if self.wire.replicas == 1:
                group.reduced = group.need_gradients()
            else:
                group.own_reduced().mul_(1 / self.wire.replicas)
        norm = self.norm(self._awake)
        clip((group.own_reduced() for group in self._awake), norm, self.clipping)
        self._update(is_good & torch.isfinite(norm), lr)
        return norm

    def _update(self, is_good: Tensor, lr: float) -> None:
        """Update what is awake, unless `is_good` is false. The fused kernel sees to that on the device, so that nobody waits;
        others cannot."""
        if self.adamw.defaults["fused"]:
            self.adamw.found_inf = (~is_good).float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler sets it
        elif not is_good:
            return
        for described in self.adamw.param_groups:
            described["lr"] = lr
        for group in self.groups:
            group.master.grad = None  # AdamW passes over what has no gradient
        for group in self._awake:
            tensors_of(self.adamw, group.master)
            group.master.grad = group.own_reduced()
        self.adamw.step()
        for group in self._awake:
            group.master.grad = group.reduced = None
            group.stale = True
            group.forget_gradients(self.keeps_gradients)
        self.sleepers.stepped(self._awake_units, lr)
        for unit in self.sleepers.overslept():
            self._make_up(unit)

    def _complete_gradients(self, groups: Sequence[FlatGroup]) -> None:
        """Sum what tensor and pipeline ranks share of these groups. Megatron-Core passes over parameters without gradients, those
        of sleeping layers."""
        for group in groups:
            gradients = group.need_gradients()
            for parameter, begin in group.views():
                gradient = gradients.narrow(0, begin, parameter.numel())
                parameter.main_grad = gradient.view_as(parameter)  # type: ignore[attr-defined]  # where Megatron-Core looks
        sum_over_model_ranks(self.model, self.config)
        for group in groups:
            for parameter in group.members.values():
                del parameter.main_grad  # type: ignore[attr-defined]

    # Between steps: checkpoints and other readers.

    @property
    def updates(self) -> tuple[int, ...]:
        return tuple(self.sleepers.updates)

    def fingerprint(self) -> int:
        return self.sleepers.fingerprint()

    def catch_up(self) -> None:
        for unit in range(self.units.count):
            self._make_up(unit)

    def wake(self, path: LayerPath) -> None:
        self._wake(frozenset(self.units.of_path(path)))

    def settle(self) -> None:
        self._arrived(self._wake(range(self.units.count)))

    def shards(self) -> list[Shard]:
        return [self._shard(group, stretch) for group in self.groups for stretch in group.stretches()]

    def _shard(self, group: FlatGroup, stretch: Stretch) -> Shard:
        name, parameter, start, length, offset = stretch
        tensors: Callable[[], Mapping[str, Tensor]] = partial(tensors_of, self.adamw, group.master)
        return Shard(whole_name(name), parameter, self.model.is_copy(parameter), start, length, offset, tensors)

    @torch.no_grad()
    def restored(self, step: int, updates: tuple[int, ...]) -> None:
        for group in self.groups:
            count = step if group.unit is None else updates[group.unit]
            tensors_of(self.adamw, group.master)
            state_of(self.adamw, group.master)["step"].fill_(count)
            group.stale = True
        self.sleepers.restored(step, updates)
