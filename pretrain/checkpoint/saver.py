"""Saving while training continues. The loop waits for the copy out of device memory; checksums and the disk have a thread of
their own."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import TracebackType

import numpy as np
import torch
import torch.distributed as dist

from pretrain.checkpoint.directory import RunDirectory, prune, seal
from pretrain.checkpoint.manifest import FORMAT, Manifest, TensorFileFacts, as_facts, read_manifest
from pretrain.checkpoint.state import ModelState
from pretrain.checkpoint.tensors import write_tensors
from pretrain.config import Run
from pretrain.config.run import Position
from pretrain.config.strict import one_line
from pretrain.errors import TrainingStopped
from pretrain.optim.interface import ModelOptimizer
from pretrain.ranks.process import Ranks
from pretrain.subnetwork.methods.base import Copies
from pretrain.versions import provenance

SLOW_SECONDS = 10.0
"""Seconds of waiting after which a warning is printed, and again."""
WAIT_SECONDS = 0.01
"""Seconds between two looks, where there is nothing to do but wait for the disk."""


class Saver:
    """Writes checkpoints, one at a time. Every method is called on all ranks at the same point of the loop."""

    def __init__(self, run: Run, optimizer: ModelOptimizer, ranks: Ranks, directory: RunDirectory, tokenizer_sha256: str) -> None:
        self.run, self.ranks, self.directory, self.tokenizer_sha256 = run, ranks, directory, tokenizer_sha256
        sharded = run.ds.zero_optimization.stage > 0  # else all replicas keep the same
        self.state = ModelState(optimizer, *((1, 0) if sharded else (run.data_parallel, ranks.data_parallel_rank)))
        self._pending: _Save | None = None
        self._buffer: torch.Tensor | None = None
        self._ending = False
        """The loop is over, so that a save that fails is the last one."""

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What is being written when all ranks stop together is still worth having."""
        self._ending = True
        if error is None or (isinstance(error, TrainingStopped) and error.everywhere):
            self.finish()

    def begin(self, position: Position, lr: float) -> None:
        """Copy the state after `position.step` and start to write it; waits for an earlier save, so that two never overlap.

        Raises:
            TrainingStopped: the earlier one failed, and the recipe says that training stops then; or as `finish`, where saving is
                synchronous.
        """
        self.finish()
        if self._buffer is None:  # kept: pinning memory, and touching it first, takes longer than the copy
            size = sum(self.state.lengths.values())
            self._buffer = torch.empty(size, dtype=torch.float32, pin_memory=self.ranks.device.type == "cuda")
        self.state.copy_to(self._buffer)
        save = _Save(self.directory.checkpoint(position.step), position, lr)
        file, numbers = f"rank_{self.ranks.rank:05d}.safetensors", self._buffer.numpy()
        writers = self.ranks.world_size
        save.start(lambda: _write(save.unfinished, file, self.state, numbers, writers))
        self._pending = save
        if not self.run.recipe.save_async:
            self.finish()

    def check(self) -> None:
        """Take a save that is under way a step further, if it is time; to be called after every step.

        Raises:
            TrainingStopped: some rank could not write, and the recipe says that training stops then.
        """
        save = self._pending
        if save is None:
            return
        busy, failed = self.ranks.on_any(save.job.is_alive(), save.failure is not None)
        if busy:
            return
        if failed:
            self._pending = None
            self._give_up(save)
        elif not save.sealing:
            self._seal(save)
        else:
            self._pending = None

    def finish(self) -> None:
        """Wait until nothing is being written, and say so if it takes long; raises what `check` does."""
        started, told = time.monotonic(), 0.0
        while self._pending is not None:
            self.check()
            if self._pending is not None and self._pending.job.is_alive():
                time.sleep(WAIT_SECONDS)
            waited = time.monotonic() - started
            if self._pending is not None and waited - told > SLOW_SECONDS and self.ranks.is_main:
                told = waited
                print(
                    f"WARNING: training waits for checkpoint {self._pending.folder}, for {waited:.0f} s so far; the file system"
                    " is slow",
                    flush=True,
                )

    def grow(self, start: Position, done: int, copies: Copies) -> None:
        """Make layers copies of others, weights and moments, as they are after step `done`.

        Read from the checkpoint of that step, which every layout can: the layers may be with other ranks.

        Args:
            start: where this process resumed.

        Raises:
            TrainingStopped: there is no such checkpoint, because it could not be written.
        """
        self.finish()
        ranks = self.ranks
        folder = start.checkpoint if start.step == done and start.checkpoint else self.directory.checkpoint(done)

        def manifest() -> Manifest:
            try:
                return read_manifest(folder)
            except ValueError as error:
                raise OSError(errno.ENODATA, f"layers are to be copied from it: {error}", str(folder)) from None

        facts = ranks.on_main(manifest)
        with ranks.all_or_none():
            self.state.load(folder, facts, copies)
        self.state.loaded(done)
        if ranks.is_main:
            print(
                f"step {done + 1}: layers {', '.join(str(new) for new, _ in copies)} begin as copies of"
                f" {', '.join(str(old) for _, old in copies)}",
                flush=True,
            )

    def _seal(self, save: "_Save") -> None:
        """All ranks have written their files: rank 0 makes a checkpoint of them."""
        ranks = self.ranks
        parts: list[_Part] = [(save.facts, self.state.shapes)] * ranks.world_size
        if ranks.world_size > 1:
            dist.gather_object(parts[0], parts if ranks.is_main else None)
        save.sealing = True

        def finish() -> None:
            if not ranks.is_main:
                return
            files = {f"rank_{rank:05d}.safetensors": facts for rank, (facts, _) in enumerate(parts) if facts is not None}
            shapes = {name: shape for _, own in parts for name, shape in own.items()}
            seal(save.unfinished, save.folder, self._manifest(save, files, shapes))
            prune(self.directory, self.run.recipe.keep_checkpoints, self.run.recipe.keep_every)

        save.start(finish)

    def _manifest(self, save: "_Save", files: dict[str, TensorFileFacts], shapes: dict[str, tuple[int, ...]]) -> Manifest:
        run = self.run
        return Manifest(
            format=FORMAT,
            step=save.position.step,
            samples=save.position.samples,
            lr=save.lr,
            layout=run.layout(),
            recipe=run.recipe.model_dump(mode="json"),
            ds_config=run.ds.model_dump(mode="json", exclude_none=True),
            versions=provenance(self.ranks.device.type),
            tokenizer_sha256=self.tokenizer_sha256,
            parameters=dict(sorted(shapes.items())),
            files=files,
        )

    def _give_up(self, save: "_Save") -> None:
        """A save that failed on some rank: nothing of it stays. Each rank that failed reports why."""
        if self.ranks.is_main:
            shutil.rmtree(save.unfinished, ignore_errors=True)
        stops = self._ending or self.run.recipe.on_save_failure == "stop"
        if save.failure is None:
            reason = f"checkpoint {save.folder}: another rank could not write its part, and reports why"
        else:
            older = self.directory.steps_saved()
            rest = f"older ones stay, the newest is {older[-1]}" if older else "there is no older one"
            free = shutil.disk_usage(self.directory.path).free / 2**20
            reason = (
                f"checkpoint {save.folder} could not be completed ({one_line(save.failure)}; {free:.0f} MiB free there); {rest}"
            )
        if stops:
            raise TrainingStopped.on_this_rank(reason) from save.failure
        if save.failure is not None:
            print(f"WARNING: rank {self.ranks.rank}: {reason}; training continues (on_save_failure: continue)", flush=True)


_Part = tuple[TensorFileFacts | None, dict[str, tuple[int, ...]]]
"""What a rank has written, and shapes of whole parameters by their names."""


class _Save:
    """One checkpoint on its way to the disk."""

    def __init__(self, folder: Path, position: Position, lr: float) -> None:
        self.folder, self.position, self.lr = folder, position, lr
        self.unfinished = folder.with_suffix(".unfinished")
        self.sealing = False
        self.facts: TensorFileFacts | None = None
        """Facts about this rank's file, if it has one, once it is written."""
        self.failure: Exception | None = None
        self.job: Thread

    def start(self, work: Callable[[], TensorFileFacts | None]) -> None:
        """Do something beside the training. The thread does not outlive a process that ends in haste."""

        def run() -> None:
            try:
                self.facts = work() or self.facts
            except Exception as error:
                self.failure = error

        self.job = Thread(target=run, name=f"save {self.folder.name}", daemon=True)
        self.job.start()


def _write(folder: Path, file: str, state: ModelState, numbers: np.ndarray, writers: int) -> TensorFileFacts | None:
    """This rank's file; none if other ranks write all that it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    if not state.lengths:
        return None
    # Others write about as much; and rows need room while this is tried.
    if shutil.disk_usage(folder).free < numbers.nbytes * writers:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    size, digest = write_tensors(folder / file, state.lengths, numbers)
    return as_facts(state.fragments, size, digest)
