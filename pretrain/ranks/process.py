"""This process among the others: its rank and device, and how all of them come to the same conclusion."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.errors import TrainingStopped, UserError, with_file
from pretrain.place import this_node
from pretrain.ranks.signals import StopRequests
from pretrain.ranks.watchdog import Watchdog

T = TypeVar("T")


@dataclass
class Ranks:
    """What a process knows of itself once it has joined the others."""

    rank: int
    world_size: int
    device: torch.device
    stop_requests: StopRequests = field(default_factory=StopRequests)
    stopped_by: str | None = None
    """Name of the signal by which all ranks have agreed to stop."""
    watchdog: Watchdog | None = None
    nodes: list[str] = field(default_factory=lambda: [this_node(os.environ)])
    """The name of every rank's node."""
    _held: list[object] = field(default_factory=list)

    def hold(self, lock: object) -> None:
        """Hold on to a lock for the life of the process."""
        self._held.append(lock)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_parallel_rank(self) -> int:
        return parallel_state.get_data_parallel_rank()

    @property
    def needs_text(self) -> bool:
        """The first pipeline rank reads tokens and the last one labels; those between need neither."""
        return parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()

    @property
    def speaks_for_replica(self) -> bool:
        """Whether this is the one rank that reports a replica's losses, which the last pipeline rank has."""
        return parallel_state.is_pipeline_last_stage(ignore_virtual=True) and parallel_state.get_tensor_model_parallel_rank() == 0

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0; return its result, or raise its error, on every rank."""
        outcome: list[T | UserError | TrainingStopped | None] = [None]
        if self.is_main:
            try:
                outcome = [action()]
            except (UserError, OSError) as error:
                outcome = [_as_passed_on(error)]
        dist.broadcast_object_list(outcome)
        self._alive()
        if isinstance(outcome[0], (UserError, TrainingStopped)):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]  # None only where the action returned it

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Raise an error of any rank's block on every rank, with the numbers of the ranks that it comes from.

        Without it a rank that fails would leave the others waiting in their next collective. To be entered by all ranks.
        """
        complaint: UserError | TrainingStopped | None = None
        try:
            yield
        except (UserError, OSError) as error:
            complaint = _as_passed_on(error)
        complaints: list[UserError | TrainingStopped | None] = [None] * self.world_size
        dist.all_gather_object(complaints, complaint)
        self._alive()
        failed = {rank: error for rank, error in enumerate(complaints) if error is not None}
        if failed:
            first = next(iter(failed.values()))
            everywhere = len({str(error) for error in complaints}) == 1
            raise type(first)(("" if everywhere else f"rank {', '.join(map(str, failed))}: ") + str(first))

    def complaints_by_node(self, complaint: str | None) -> dict[str, str]:
        """Return the first complaint of each node's ranks, on every rank; empty if there is none."""
        complaints: list[str | None] = [None] * self.world_size
        dist.all_gather_object(complaints, complaint)
        return {node: why for node, why in reversed(list(zip(self.nodes, complaints))) if why is not None}

    def asked_to_stop(self) -> bool:
        """Whether a stop signal has reached any rank; the same answer on every rank."""
        soon, now = self.on_any(self.stop_requests.soon, self.stop_requests.now)
        self.stopped_by = "SIGTERM" if now else "SIGUSR1" if soon else None
        return soon or now

    def on_any(self, *flags: bool) -> list[bool]:
        """Make each flag true on every rank if it is true on any. To be called by all ranks once a step at least."""
        self._alive()
        if self.world_size == 1:
            return list(flags)
        votes = torch.tensor([int(flag) for flag in flags])  # on the CPU: the device may be busy for a while
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def _alive(self) -> None:
        if self.watchdog is not None:
            self.watchdog.alive()


def _as_passed_on(error: UserError | OSError) -> UserError | TrainingStopped:
    """Return an error as ranks pass it on; an OSError comes of the machine, and may be gone at the next try."""
    return error if isinstance(error, UserError) else TrainingStopped(with_file(error))
