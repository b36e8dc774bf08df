"""Saving while training continues. The loop waits for the copy out of device memory; checksums and the disk have a thread of
their own."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

import numpy as np
import torch

from pretrain.checkpoint.directory import RunDirectory, prune, seal
from pretrain.checkpoint.manifest import FORMAT, Manifest, RankPart, as_facts, read_manifest
from pretrain.checkpoint.state import ModelState
from pretrain.checkpoint.tensors import write_tensors
from pretrain.config import Run
from pretrain.config.run import Position
from pretrain.data.identity import TOKENIZER
from pretrain.errors import TrainingStopped, one_line, with_file
from pretrain.files import write_whole
from pretrain.optim.interface import ModelOptimizer
from pretrain.ranks.process import Ranks
from pretrain.subnetwork.methods.base import Copies
from pretrain.versions import provenance

SLOW_SECONDS = 10.0
"""Seconds of waiting after which a warning is printed, and again."""
WAIT_SECONDS = 0.01
"""Seconds between two looks, where there is nothing to do but wait for the disk."""
SEEN_SECONDS = 90.0
"""Seconds until rank 0 must see what all have written: a network file system remembers for a minute what was not there."""
LAST_SECONDS = 10.0
"""Seconds for which rank 0, if it fails, waits for what others are writing when its own file is written."""


class Saver:
    """Writes checkpoints, one at a time. Every method is called on all ranks at the same point of the loop."""

    def __init__(
        self, run: Run, optimizer: ModelOptimizer, ranks: Ranks, directory: RunDirectory, data: Mapping[str, str]
    ) -> None:
        """data: checksums of tokenizer and token files, as `RunData.checksums`."""
        self.run, self.ranks, self.directory, self.data = run, ranks, directory, data
        sharded = run.ds.zero_optimization.stage > 0  # else all replicas keep the same
        self.state = ModelState(optimizer, *((1, 0) if sharded else (run.data_parallel, ranks.data_parallel_rank)))
        self._pending: _Save | None = None
        self._buffer: torch.Tensor | None = None
        self._warned: set[str] = set()
        self._ending = False
        """The loop is over, so that a save that fails is the last one."""

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What is being written is still worth having, whatever ended the loop."""
        self._ending = True
        if error is None or (isinstance(error, TrainingStopped) and error.everywhere):
            self.finish()
        elif self._pending is not None and isinstance(error, Exception):
            # The others cannot be asked any more. Each rank finishes its file, however long that takes (the watchdog looks on);
            # those of others, which are as large, should be there by then for rank 0 to finish the checkpoint.
            while self._pending.job.is_alive() and not self._pending.written.is_set():
                self._pending.job.join(WAIT_SECONDS)
            self._pending.job.join(LAST_SECONDS)

    def begin(self, position: Position, lr: float) -> None:
        """Copy the state after `position.step` and start to write it; waits for an earlier save, so that two never overlap.

        Raises:
            TrainingStopped: the earlier one failed, and the recipe says that training stops then; or as `finish`, where saving is
                synchronous.
        """
        self.finish()
        if self._buffer is None:  # kept: pinning memory, and touching it first, takes longer than the copy
            self._buffer = _host_memory(sum(self.state.lengths.values()), self.ranks.device.type == "cuda")
        self.state.copy_to(self._buffer)
        save, numbers = (
            _Save(self.directory.checkpoint(position.step), position, lr, self.state.optimizer.updates),
            self._buffer.numpy(),
        )
        self._pending = save
        save.start(lambda: self._write_and_seal(save, numbers))
        if not self.run.recipe.save_async:
            self.finish()

    def check(self) -> None:
        """See whether a save that is under way is done, or has failed; to be called after every step.

        Raises:
            TrainingStopped: some rank could not write, and the recipe says that training stops then.
        """
        save = self._pending
        if save is None:
            return
        busy, writing, failed = self.ranks.on_any(save.job.is_alive(), not save.written.is_set(), save.failure is not None)
        if failed:
            save.cancelled.set()
        elif not writing:
            save.all_written.set()
        if not busy:
            self._pending = None
            if failed:
                self._give_up(save)

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
        self.state.loaded(facts, copies)
        if ranks.is_main:
            print(
                f"step {done + 1}: layers {', '.join(str(new) for new, _ in copies)} begin as copies of"
                f" {', '.join(str(old) for _, old in copies)}",
                flush=True,
            )

    def _write_and_seal(self, save: "_Save", numbers: np.ndarray) -> None:
        """Write this rank's part; on rank 0, make a checkpoint of all parts. Nothing waits for the loops of other ranks, which
        may be in an evaluation that never ends."""
        _write(save.unfinished, self.ranks.rank, self.state, numbers, self.ranks.world_size)
        save.written.set()
        if not self.ranks.is_main:
            return
        parts = [part for rank in range(self.ranks.world_size) if (part := save.await_part(rank)) is not None]
        if len(parts) < self.ranks.world_size:
            return  # cancelled
        seal(save.unfinished, save.folder, self._manifest(save, parts))
        try:
            problems = prune(self.directory, self.run.recipe.keep_checkpoints, self.run.recipe.keep_every)
        except OSError as error:
            problems = [f"{self.directory.checkpoints}: old checkpoints are not removed ({with_file(error)})"]
        for problem in problems:
            if problem not in self._warned:
                print(f"WARNING: {problem}", flush=True)
        self._warned.update(problems)

    def _manifest(self, save: "_Save", parts: Sequence[RankPart]) -> Manifest:
        run, units, even = self.run, self.run.method.units, set(save.updates) <= {save.position.step}
        shapes = {name: shape for part in parts for name, shape in part.shapes.items()}
        return Manifest(
            format=FORMAT,
            step=save.position.step,
            samples=save.position.samples,
            lr=save.lr,
            layout=run.layout(),
            recipe=run.recipe.model_dump(mode="json"),
            ds_config=run.ds.model_dump(mode="json", exclude_none=True),
            versions=provenance(self.ranks.device.type),
            tokenizer_sha256=self.data[TOKENIZER],
            updates=None if even else save.updates,
            cut=None if even or units.in_layer == 1 else (units.groups, units.columns),
            data={name: checksum for name, checksum in self.data.items() if name != TOKENIZER},
            parameters=dict(sorted(shapes.items())),
            files={_file_of(rank): part.file for rank, part in enumerate(parts) if part.file is not None},
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


class _Save:
    """One checkpoint on its way to the disk."""

    def __init__(self, folder: Path, position: Position, lr: float, updates: tuple[int, ...]) -> None:
        self.folder, self.position, self.lr, self.updates = folder, position, lr, updates
        self.unfinished = folder.with_suffix(".unfinished")
        self.written = Event()
        """This rank's part is on disk."""
        self.all_written = Event()
        """So are those of all ranks, as far as this one knows."""
        self.cancelled = Event()
        """Some rank could not write."""
        self.failure: Exception | None = None
        self.job: Thread

    def start(self, work: Callable[[], None]) -> None:
        """Do something beside the training. The thread does not outlive a process that ends in haste."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                self.failure = error

        self.job = Thread(target=run, name=f"save {self.folder.name}", daemon=True)
        self.job.start()

    def await_part(self, rank: int) -> RankPart | None:
        """Wait for a rank's part to be on disk; None if the save is cancelled.

        Raises:
            OSError: the rank has written it, and it is not seen here.
        """
        file, since = self.unfinished / RankPart.name(rank), None
        while not file.is_file():
            if self.cancelled.is_set():
                return None
            if self.all_written.is_set():
                since = since or time.monotonic()
                if time.monotonic() - since > SEEN_SECONDS:
                    raise OSError(
                        errno.EIO,
                        f"rank 0 does not see what another rank wrote, {file.name}; do all nodes share this file system?",
                        str(file),
                    )
            time.sleep(WAIT_SECONDS)
        return RankPart.model_validate_json(file.read_bytes())


def _host_memory(numbers: int, for_gpu: bool) -> torch.Tensor:
    """Return room for fp32 numbers, which a GPU can copy to beside other work. Registered rather than allocated as pinned: of
    that torch takes a power of two, up to twice as much."""
    room = torch.empty(numbers, dtype=torch.float32)
    if for_gpu and numbers:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(room.data_ptr(), room.nbytes, 0))
    return room


def _file_of(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _write(folder: Path, rank: int, state: ModelState, numbers: np.ndarray, writers: int) -> None:
    """Write this rank's numbers, if it has any that others do not write, and then what they are, which says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = None
    if state.lengths:
        # Others write about as much; and rows need room while this is tried.
        if shutil.disk_usage(folder).free < numbers.nbytes * writers:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        facts = as_facts(state.fragments, *write_tensors(folder / _file_of(rank), state.lengths, numbers))
    write_whole(folder / RankPart.name(rank), RankPart(file=facts, shapes=state.shapes).model_dump_json())
