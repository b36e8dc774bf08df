"""What the engine and checkpoints ask of an optimizer. A new way to reduce gradients is a class beside
`deepspeed.py`, which `build_engine` (engine/engine.py) constructs.

One step in order: `begin` before the first forward pass, the schedule runs the chunks, hooks watch, `finish` when all
micro-batches are through. `wake` belongs to evaluations, `catch_up`, `shards`, `updates` and `restored` to checkpoints,
`settle` to whoever else reads weights between two steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from torch import Tensor

from pretrain.config.run import Batching
from pretrain.optim.shards import Shard
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.units import Units


@dataclass(frozen=True)
class Ran:
    """Which units of the model a step runs on any replica. Every rank computes it from the step's paths, without a message."""

    last_micro_batch: tuple[int | None, ...]
    """For each unit the last micro-batch of a rank in which some replica runs it, counted from 0; None if no replica does."""
    here: tuple[int, ...]
    """How many of this rank's own micro-batches run each unit."""
    by_micro_batch: tuple[frozenset[int], ...]
    """For each micro-batch of a rank, the units that some replica runs in it."""

    @classmethod
    def of(cls, paths: Sequence[LayerPath], units: Units, batching: Batching, replica: int) -> "Ran":
        """Find what a step runs whose micro-batches take `paths` as `Batching.path_index` says, `replica` being this rank's."""
        last: list[int | None] = [None] * units.count
        here = [0] * units.count
        used = [units.of_path(path) for path in paths]
        own = _micro_batches_of(batching, replica, len(paths))
        for run, micro_batch, count in zip(used, _last_micro_batches(batching, len(paths)), own):
            for unit in run:
                last[unit] = max(last[unit] or 0, micro_batch)
                here[unit] += count
        taken = _paths_of_micro_batches(batching, len(paths))
        together = tuple(frozenset(unit for index in indices for unit in used[index]) for indices in taken)
        return cls(tuple(last), tuple(here), together)

    @property
    def units(self) -> tuple[int, ...]:
        """Those that any replica runs."""
        return tuple(unit for unit, micro_batch in enumerate(self.last_micro_batch) if micro_batch is not None)


@cache
def _micro_batches_of(batching: Batching, replica: int, paths: int) -> tuple[int, ...]:
    """For each of so many paths, the number of a replica's micro-batches that take it."""
    count = [0] * paths
    for micro_batch in range(batching.micro_batches):
        count[batching.path_index(micro_batch, replica, paths)] += 1
    return tuple(count)


@cache
def _paths_of_micro_batches(batching: Batching, paths: int) -> tuple[frozenset[int], ...]:
    """For each micro-batch of a rank, which of so many paths some replica takes in it: the same in all steps of a stage."""
    return tuple(
        frozenset(batching.path_index(micro_batch, replica, paths) for replica in range(batching.replicas))
        for micro_batch in range(batching.micro_batches)
    )


@cache
def _last_micro_batches(batching: Batching, paths: int) -> tuple[int, ...]:
    """For each of so many paths, the last micro-batch in which some replica takes it."""
    taken = _paths_of_micro_batches(batching, paths)
    return tuple(max((n for n, indices in enumerate(taken) if path in indices), default=-1) for path in range(paths))


class ModelOptimizer(Protocol):
    """Reduces, clips, updates and shards; the same calls on every rank."""

    units: Units
    """What may sleep."""

    def begin(self, ran: Ran) -> None:
        """Get ready for a step that runs these parts."""

    def finish(self, lr: float, is_good: Tensor) -> Tensor:
        """Sum gradients over all ranks that share weights, clip, and update with this learning rate.

        Nothing is updated if `is_good`, a bool on the device and the same on all ranks, is false, or if the norm is not finite.

        Returns the norm of the whole model's gradient before clipping, a scalar on the device.
        """

    def fingerprint(self) -> int:
        """Return a 63-bit hash of what all ranks must agree on before a step: the units' counts of updates."""

    @property
    def updates(self) -> tuple[int, ...]:
        """AdamW's updates of each unit so far. What is outside layers is updated in every step."""

    def catch_up(self) -> None:
        """Bring masters and moments up to date, before shards are read."""

    def shards(self) -> list[Shard]:
        """Return all that this rank keeps of masters and moments."""

    def restored(self, step: int, updates: tuple[int, ...]) -> None:
        """Take over masters and moments that were written into the shards, as they are after `step`; called on all ranks."""

    def wake(self, path: LayerPath) -> None:
        """Get ready for forward passes through a path, outside a step; called on all ranks."""

    def settle(self) -> None:
        """Bring all weights up to date for a reader outside a step, until the next step; called on all ranks."""
