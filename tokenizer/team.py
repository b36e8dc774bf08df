"""Processes that encode together: alone, or under mpiexec or srun with the same command."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from pretrain.errors import UserError
from pretrain.place import MPICH, OPEN_MPI, foreign_mpi

T = TypeVar("T")
J = TypeVar("J")
R = TypeVar("R")

LAUNCHED = ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID")
"""Variables that an MPI launcher sets for its processes."""

WANTED, RESULT = "wanted", "result"
"""What a rank says to rank 0."""

IDLE_SECONDS = 0.001
"""Seconds between two looks for a message; a block takes some hundred times longer."""


@dataclass(frozen=True)
class Team:
    """This process among the others. Rank 0 hands out work, and does some itself where handing out is quick; alone it does
    all."""

    comm: Any
    """mpi4py's communicator; None alone."""
    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(
        self,
        jobs: Iterable[Any],
        work: Callable[[Any], Any],
        told: Callable[[Any], None],
        quick: Callable[[Any], bool] = lambda job: False,
    ) -> None:
        """Have every job worked on by somebody; `told` gets each result, on rank 0. Jobs are made there too, one ahead of need.

        An exception of `work` ends the sharing and is raised on every rank.

        Args:
            quick: of jobs that take no time to make and to send. Rank 0 works on them like the others, which ask for the next one
                before they need it.
        """
        if self.comm is None:
            for job in jobs:
                told(work(job))
        elif self.is_main:
            self._raise_together(self._hand_out(jobs, work, told, quick))
        else:
            self._raise_together(self._take(work, quick))

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0, on every rank, or its UserError."""
        outcome: Any = None
        if self.is_main:
            try:
                outcome = action()
            except UserError as error:
                outcome = error
        self.wait()
        if self.comm is not None:
            outcome = self.comm.bcast(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    def wait(self) -> None:
        """Wait until all ranks are here. MPI would wait at full speed; a sleeping rank leaves its core to those that work."""
        if self.comm is not None:
            arrived = self.comm.Ibarrier()
            while not arrived.Test():
                time.sleep(IDLE_SECONDS)

    def _hand_out(
        self, jobs: Iterable[Any], work: Callable[[Any], Any], told: Callable[[Any], None], quick: Callable[[Any], bool]
    ) -> UserError | None:
        from mpi4py import MPI

        asking, away, failure, status = self.size - 1, 0, None, MPI.Status()
        sent: dict[int, Any] = {}
        upcoming: Iterator[Any] = iter(jobs)
        job = _next(upcoming)
        while asking or away:
            if isinstance(job, UserError):
                failure = failure or job
            if failure is not None:
                job = None
            try:
                if job is not None and quick(job) and not self.comm.iprobe(source=MPI.ANY_SOURCE):
                    told(work(job))
                    job = _next(upcoming)
                    continue
                kind, result = self._receive(MPI.ANY_SOURCE, status)
                if kind == RESULT:
                    away -= 1
                    if isinstance(result, UserError):
                        raise result
                    if failure is None:
                        told(result)
            except UserError as error:
                failure = failure or error
                continue
            if kind == WANTED:
                other = status.Get_source()
                if other in sent:
                    sent[other].wait()  # it has taken that one, since it asks again
                # It may be sending a large result, and each would wait for the other to take what it sends.
                sent[other] = self.comm.isend(job, dest=other)
                asking -= job is None
                away += job is not None
                job = None if job is None else _next(upcoming)
        MPI.Request.waitall(list(sent.values()))
        return failure

    def _take(self, work: Callable[[J], R], quick: Callable[[J], bool]) -> UserError | None:
        self.comm.send((WANTED, None), dest=0)
        failed = None
        while (job := self._receive(0)) is not None:
            if quick(job):
                self.comm.send((WANTED, None), dest=0)  # the next one is here when this one is done
            result: R | UserError
            try:
                result = work(job)
            except UserError as error:
                result = failed = error
            self.comm.send((RESULT, result), dest=0)
            if not quick(job):
                self.comm.send((WANTED, None), dest=0)
        return failed

    def _receive(self, source: int, status: Any = None) -> Any:
        """Wait for a message, as `wait` does for ranks."""
        while not self.comm.iprobe(source=source):
            time.sleep(IDLE_SECONDS)
        return self.comm.recv(source=source, status=status)

    def _raise_together(self, failure: UserError | None) -> None:
        self.wait()
        failures = self.comm.allgather(failure)
        first = next((error for error in failures if error is not None), None)
        if first is not None:
            raise first


ALONE = Team(None, 0, 1)
"""The team of one process."""


def _next(jobs: Iterator[J]) -> J | UserError | None:
    """The next job, None at the end, or the error that making it raised."""
    try:
        return next(jobs, None)
    except UserError as error:
        return error


def join() -> Team:
    """Meet the other processes, if an MPI launcher started any.

    Raises:
        UserError: there is a launcher and no MPI, or srun started tasks that know nothing of each other.
    """
    told = os.environ.get("SLURM_STEP_NUM_TASKS", "") if "SLURM_STEP_ID" in os.environ else ""
    tasks = int(told) if told.isdecimal() else 1
    launched = max((int(size) for _, name, *_ in (MPICH, OPEN_MPI) if (size := os.environ.get(name, "")).isdecimal()), default=1)
    if not any(name in os.environ for name in LAUNCHED) and tasks == 1:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"started by an MPI launcher, but MPI cannot be loaded ({error}); pip install mpich, or load a module"
        ) from None
    comm = MPI.COMM_WORLD
    if comm.size == 1 and tasks > 1:
        raise UserError(
            f"srun started {tasks} tasks that do not know of each other; srun --mpi=list shows what to pass as --mpi, as pmi2 or"
            " pmix"
        )
    if comm.size == 1 and launched > 1:
        raise foreign_mpi(launched, comm.size, MPI.get_vendor()[0])
    if comm.size > 1:
        sys.excepthook = _abort
    return Team(comm if comm.size > 1 else None, comm.rank, comm.size)


def _abort(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A rank that fails takes the others down; they would wait for it for ever."""
    from mpi4py import MPI

    traceback.print_exception(kind, error, trace)
    sys.stderr.flush()
    MPI.COMM_WORLD.Abort(1)
