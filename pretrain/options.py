"""What the command line of `train` says beyond recipe and JSON: where, and how far."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pretrain.checkpoint.directory import RunDirectory
from pretrain.config import Run
from pretrain.errors import UserError
from pretrain.job.events import this_start
from pretrain.observe.profile import Profiler
from pretrain.place import Place
from pretrain.ranks.process import Ranks
from pretrain.ranks.watchdog import Watchdog

LOCK_SECONDS = 120.0
"""Seconds for which a job that was queued again waits until its own earlier start lets go: a node that died holds its locks a
while over a network."""


@dataclass(frozen=True)
class TrainOptions:
    """Choices that are not the run's: they change nothing in what is trained."""

    run_dir: Path | None
    resume: str
    """auto, never, or a checkpoint's path."""
    changing: tuple[str, ...]
    """Settings that may differ from those of the run so far."""
    place: Place
    """How the processes were started."""
    stop_at: int | None
    """End after this step as if interrupted; schedules stay laid out over all steps. 0: save what the run begins with."""
    profile_steps: tuple[int, int] | None = None
    """The first and the last of the steps that are profiled."""

    def __post_init__(self) -> None:
        if self.stop_at is not None and self.stop_at < 0:
            raise UserError(f"--stop-at {self.stop_at}: steps count from 1, and 0 saves what the run begins with")

    def profiler(self, directory: Path, ranks: Ranks) -> Profiler | None:
        """Whoever records the steps that are to be profiled, on the ranks of the first replica."""
        if self.profile_steps is None or ranks.data_parallel_rank:
            return None
        return Profiler(*self.profile_steps, directory, ranks.rank, ranks.device.type == "cuda")

    def last_step(self, run: Run) -> int:
        """The step after which this process ends."""
        return run.steps if self.stop_at is None else min(run.steps, self.stop_at)

    def claim_directory(self, run: Run, ranks: Ranks) -> RunDirectory:
        """The run directory, made and checked by rank 0; its path is the first thing printed."""

        def claim() -> RunDirectory:
            directory = RunDirectory(self.run_dir or Path(f"runs/{run.name}-{run.method.name}-{datetime.now():%Y%m%d-%H%M%S}"))
            print(f"{directory.path}\n{self.place.in_words()}", flush=True)
            print("".join(f"{notice}\n" for notice in run.notices), end="", flush=True)
            ranks.hold(directory.lock(patience=LOCK_SECONDS if this_start(os.environ)[1] else 0.0))
            directory.claim(run, self.resume, self.changing)
            return directory

        directory = ranks.on_main(claim)
        with ranks.all_or_none():
            directory.require_seen()
        if ranks.world_size > 1:
            ranks.watchdog = Watchdog(directory.path, ranks.rank, run.recipe.watchdog_seconds)
            ranks.watchdog.alive()
        return directory
