"""Finished blocks on disk: what a restart goes on from, and what the token files are put together from."""

import json
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from pretrain.errors import UserError

PLAN = "plan.json"
INDEX_HEADER = struct.Struct("<9sQBQQ")
"""Of Megatron-Core's index: magic, version, type of the tokens, sequences, documents."""
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
    bad: list[tuple[str, int, str]] = field(default_factory=list)
    """(file, line, reason); line 0 stands for the file."""

    def add(self, other: "Tally") -> None:
        self.documents += other.documents
        self.tokens += other.tokens
        self.text_bytes += other.text_bytes
        self.empty += other.empty
        self.bad += other.bad


@dataclass(frozen=True)
class Parts:
    """The folder of finished blocks beside the token files that they will become."""

    folder: Path
    dtype: np.dtype

    @classmethod
    def of(cls, prefix: Path, vocab_size: int) -> "Parts":
        return cls(prefix.with_name(prefix.name + ".parts"), np.dtype(np.uint16 if vocab_size < 2**16 else np.int32))

    def claim(self, plan: dict[str, Any]) -> None:
        """Make the folder, or find in it what an earlier run of the same plan has finished; blocks of files that changed since go.

        Raises:
            UserError: it belongs to another plan.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / PLAN
        if file.exists():
            before = json.loads(file.read_text())
            if _apart_from_state(before) != _apart_from_state(plan):
                raise UserError(f"{self.folder}: left by a run on other inputs or with another tokenizer; remove it, or choose another --out")
            for index, (old, new) in enumerate(zip(before["files"], plan["files"])):
                if old != new:
                    for part in self.folder.glob(f"{index:06d}-*"):
                        part.unlink()
        _write_whole(file, (json.dumps(plan, indent=1) + "\n").encode())

    def finished(self) -> set[str]:
        """Names of the blocks that are there, whole."""
        return {file.stem for file in self.folder.glob("*.len")}

    def write(self, name: str, ids: np.ndarray, lengths: np.ndarray, tally: Tally) -> None:
        """One block: the tokens, then what came of it, then the lengths of its documents, whose file says that it is all there."""
        _write_whole(self.folder / f"{name}.bin", ids.astype(self.dtype).tobytes())
        _write_whole(self.folder / f"{name}.json", json.dumps(vars(tally)).encode())
        _write_whole(self.folder / f"{name}.len", lengths.astype(np.int32).tobytes())

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
        shutil.rmtree(self.folder)


def _apart_from_state(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan with the names of its files alone."""
    return {**plan, "files": [path for path, *_ in plan["files"]]}


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)
