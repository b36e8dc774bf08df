"""What `train` is told on its command line beyond recipe and JSON: where, how long, on what."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from pretrain.checkpoint.directory import RunDirectory
from pretrain.config import Run
from pretrain.parallel.ranks import Ranks


@dataclass(frozen=True)
class TrainOptions:
    """Choices that are not the run's: they change nothing in what is trained."""

    run_dir: Path | None
    resume: str
    """auto, never, or a checkpoint's path."""
    stop_at: int | None
    """End after this step as if interrupted; schedules stay laid out over all steps."""
    device: torch.device

    def claim_directory(self, run: Run, ranks: Ranks) -> RunDirectory:
        """The run directory, made and checked by rank 0; its path is the first thing printed."""

        def claim() -> RunDirectory:
            directory = RunDirectory(self.run_dir or Path(f"runs/{run.name}-{run.method.name}-{datetime.now():%Y%m%d-%H%M%S}"))
            print(directory.path, flush=True)
            directory.claim(run, self.resume)
            return directory

        return ranks.on_main(claim)
