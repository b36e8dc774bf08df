"""A rank that no longer makes progress writes its stack to a file and ends; so the job ends, and can be started again."""

import faulthandler
import os
import socket
import threading
import time
from pathlib import Path

import torch

from pretrain.job.events import report_to_job, this_start

OTHERS_SECONDS = 2.0
"""Seconds for the other ranks to write their stacks, before one that ends takes them along."""
EXIT_CODE = 70


class Watchdog:
    """A thread beside the training, which must hear of every step.

    It runs as long as the interpreter does: PyTorch waits for collectives without holding it.
    """

    def __init__(self, run_dir: Path, rank: int, seconds: float) -> None:
        self.run_dir, self.rank, self.seconds = run_dir, rank, seconds
        self._alive: float | None = None
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def alive(self) -> None:
        """A step has ended, or something else that all ranks do together. The first call is where the watch begins."""
        self._alive = time.monotonic()

    def close(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 10)):
            if self._alive is not None and time.monotonic() - self._alive > self.seconds:
                self._give_up()

    def _give_up(self) -> None:
        job, restart = this_start(os.environ)
        folder = self.run_dir / "stacks"
        text = f"no step for {self.seconds:g} s (watchdog_seconds); a rank that left no stack in {folder} is the one that hangs"
        try:
            folder.mkdir(exist_ok=True)
            with (folder / f"job_{job}_start_{restart}_rank_{self.rank:05d}.txt").open("w") as file:
                file.write(f"rank {self.rank} on {socket.gethostname()}: {text}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            report_to_job(self.run_dir, "hung", text, self.rank)
            # A rank that cannot even say what its collectives were must end all the same.
            name = f"nccl_job_{job}_start_{restart}_rank_{self.rank}"
            threading.Thread(target=_write_collectives, args=(folder / name,), daemon=True).start()
        finally:
            time.sleep(OTHERS_SECONDS)
            os._exit(EXIT_CODE)


def _write_collectives(file: Path) -> None:
    """Write what NCCL's flight recorder knows of the last collectives; nothing without GPUs. NCCL itself would do so only after
    its own limit of half an hour, and this process ends before. `torchfrtrace` reads files whose names end with the rank."""
    dump = getattr(getattr(torch._C, "_distributed_c10d", None), "_dump_nccl_trace", None)
    if dump is not None:
        file.write_bytes(dump())
