"""`--profile-steps`: what some steps spend their time on, by PyTorch's profiler."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.files import write_whole

ROWS = 40
"""How many operators the table has, the dearest ones."""


class Profiler:
    """Records the steps from `first` to `last` of this rank into RUN/profile/: a Chrome trace, and a table by operator."""

    def __init__(self, first: int, last: int, directory: Path, rank: int, on_gpu: bool) -> None:
        self.first, self.last, self.folder, self.rank, self.on_gpu = first, last, directory / "profile", rank, on_gpu
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Called before a step is begun."""
        if self._profile is None and self.first <= step <= self.last:  # a resumed run may begin within them
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after(self, step: int) -> None:
        """Called when a step has been begun; after the last of the recorded ones both files are written."""
        if self._profile is not None and step == self.last:
            self.close()

    def close(self) -> None:
        """Write what has been recorded, also if the run ends before the last of the steps."""
        if self._profile is None:
            return
        found, self._profile = self._profile, None
        if self.on_gpu:
            torch.cuda.synchronize()
        found.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"steps_{self.first}-{self.last}_rank_{self.rank}"
        found.export_chrome_trace(str(self.folder / f"{name}.json.gz"))
        by = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
        write_whole(self.folder / f"{name}.txt", found.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=80))
