"""Finished blocks on disk: what a restart resumes from, and what the token files are put together from."""

import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import UserError, reason
from pretrain.files import remove, write_whole

PLAN = "plan.json"
OURS = re.compile(r"plan\.json|\d{6,}-\d{8,}\.(bin|json|len)|\..*\.part")
"""Names of what is in the folder of blocks; the last is of a write that was killed."""
INDEX_HEADER = struct.Struct("<9sQBQQ")
"""Header of Megatron-Core's index: magic, version, type of the tokens, sequences, documents; then 4 and 8 bytes a sequence and 8
a document."""
MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
TYPE_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
COPY_BYTES = 2**24


@dataclass
class Tally:
    """What became of some documents."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0
    lines: int = 0
    """All that were read, whatever became of them."""
    bad: list[tuple[str, int, str]] = field(default_factory=list)
    """(file, line, reason); line 0 means the file. Lines of a block on disk count from its beginning."""

    def add(self, other: "Tally") -> None:
        self.documents += other.documents
        self.tokens += other.tokens
        self.text_bytes += other.text_bytes
        self.empty += other.empty
        self.lines += other.lines
        self.bad += other.bad


@dataclass(frozen=True)
class Parts:
    """The folder of finished blocks beside the token files that they will become."""

    folder: Path
    dtype: np.dtype

    @classmethod
    def of(cls, prefix: Path, vocab_size: int) -> "Parts":
        return cls(prefix.with_name(prefix.name + ".parts"), np.dtype(np.uint16 if vocab_size < 2**16 else np.int32))

    def claim(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Make the folder, or find in it what an earlier run of the same plan has finished; blocks of files that changed since
        go.

        Returns the plan with the size of blocks that the earlier run chose.

        Raises:
            UserError: it belongs to another plan, or holds other files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.is_symlink():
            raise UserError(f"{self.folder}: is a link; blocks of documents belong there, so remove it, or choose another --out")
        strange = [file.name for file in self.folder.iterdir() if not OURS.fullmatch(file.name)]
        if strange:
            raise UserError(
                f"{self.folder}: is for blocks of documents, and holds {min(strange)}; move that, or choose another --out"
            )
        file = self.folder / PLAN
        before = _read_plan(file)
        if before is not None and all(part.name == PLAN for part in self.folder.iterdir()):
            same = {**plan, "block_bytes": before["block_bytes"]}
            before = before if _apart_from_state(before) == _apart_from_state(same) else None  # another run's, which made nothing
        if before is None:  # nothing says what these blocks are of
            for part in self.folder.iterdir():
                part.unlink()
        else:
            plan = {**plan, "block_bytes": before["block_bytes"]}
            if before.get("cut") != plan["cut"]:
                raise UserError(
                    f"{self.folder}: left by another version of this program, which cut files elsewhere; remove it, or choose"
                    " another --out"
                )
            if _apart_from_state(before) != _apart_from_state(plan):
                raise UserError(
                    f"{self.folder}: left by a run on other inputs or with another tokenizer; remove it, or choose another --out"
                )
            for index, (old, new) in enumerate(zip(before["files"], plan["files"])):
                if old != new:
                    for part in self.folder.glob(f"{index:06d}-*"):
                        part.unlink()
        write_whole(file, json.dumps(plan, indent=1) + "\n")
        return plan

    def finished(self, without_bad: bool) -> set[str]:
        """Names of the blocks that are there, whole.

        Args:
            without_bad: leave out those with documents that could not be read, which must be found again.
        """
        return {file.stem for file in self.folder.glob("*.len") if self._is_whole(file.stem, without_bad)}

    def _is_whole(self, name: str, without_bad: bool) -> bool:
        try:
            tokens = int(np.fromfile(self.folder / f"{name}.len", np.int32).sum(dtype=np.int64))
            bad = self.tally(name).bad
            return (self.folder / f"{name}.bin").stat().st_size == tokens * self.dtype.itemsize and not (without_bad and bad)
        except (OSError, ValueError, TypeError):
            return False

    def write(self, name: str, ids: np.ndarray, lengths: np.ndarray, tally: Tally) -> None:
        """One block: the tokens, of the folder's dtype, then what came of it, then the lengths of its documents, whose file says
        that it is all there."""
        try:
            write_whole(self.folder / f"{name}.bin", ids.data)
            write_whole(self.folder / f"{name}.json", json.dumps(vars(tally)))
            write_whole(self.folder / f"{name}.len", lengths.astype(np.int32).data)
        except OSError as error:
            raise OSError(
                error.errno, f"{reason(error)}; finished blocks stay, and the same command resumes", str(self.folder)
            ) from None

    def tally(self, name: str) -> Tally:
        values = json.loads((self.folder / f"{name}.json").read_text())
        return Tally(**{**values, "bad": [tuple(bad) for bad in values["bad"]]})

    def copy(self, names: Sequence[str], out: Path, share: int, shares: int) -> None:
        """Copy this process's share of the blocks to where they belong in the token file, which exists at full size."""
        sizes = [(self.folder / f"{name}.bin").stat().st_size for name in names]
        begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        with out.open("r+b") as target:
            for index in range(share, len(names), shares):
                target.seek(int(begins[index]))
                with (self.folder / f"{names[index]}.bin").open("rb") as part:
                    shutil.copyfileobj(part, target, COPY_BYTES)
            target.flush()
            os.fsync(target.fileno())

    def size(self, names: Sequence[str]) -> int:
        """Bytes of the token file."""
        return sum((self.folder / f"{name}.bin").stat().st_size for name in names)

    def write_index(self, names: Sequence[str], out: Path) -> None:
        """Megatron-Core's index, one sequence a document, written as it is computed: a billion documents need no more memory."""
        counts = [(self.folder / f"{name}.len").stat().st_size // 4 for name in names]
        total = sum(counts)
        with out.open("wb") as file:
            file.write(INDEX_HEADER.pack(MAGIC, VERSION, TYPE_CODES[self.dtype], total, total + 1))
            for lengths in self._lengths(names):
                file.write(lengths.tobytes())
            at = 0
            for lengths in self._lengths(names):
                ends = at + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
                file.write(np.concatenate([[at], ends[:-1]]).astype(np.int64).tobytes())
                at = int(ends[-1])
            for first in range(0, total + 1, 2**20):
                file.write(np.arange(first, min(first + 2**20, total + 1), dtype=np.int64).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _lengths(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        for name in names:
            lengths = np.fromfile(self.folder / f"{name}.len", np.int32)
            if len(lengths):
                yield lengths

    def remove(self) -> None:
        """Gone at once, so that no later run finds a part of it. The token files are whole by then: what cannot be removed is for
        a person."""
        self.forget()
        try:
            os.replace(self.folder, self._going)
        except OSError as error:
            print(f"WARNING: {self.folder}: cannot be removed ({reason(error)}); remove it by hand", file=sys.stderr, flush=True)
        self.forget()

    def forget(self) -> None:
        """Remove what a removal that was killed has left, if anything."""
        if problem := remove(self._going):
            print(f"WARNING: {problem}", file=sys.stderr, flush=True)

    @property
    def _going(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.removed")


def _apart_from_state(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan with the names of its files alone."""
    return {**plan, "files": [path for path, *_ in plan["files"]]}


def _read_plan(file: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(file.read_text())
        return plan if isinstance(plan, dict) and {"files", "block_bytes"} <= plan.keys() else None
    except (OSError, ValueError):
        return None
