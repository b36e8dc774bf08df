"""metrics.jsonl: one JSON object a training step, and one an evaluation. Every step is there once, whatever happened."""

import errno
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from pretrain.errors import TrainingStopped, UserError

MetricsRow = dict[str, Any]
"""A line of metrics.jsonl: a training step, an evaluation, or the evaluation of parts of the model."""


def read_rows(path: Path) -> list[MetricsRow]:
    """All complete rows. A killed run may leave half a line at the end; that is no row.

    Raises:
        UserError: a complete line that is not a row.
    """
    return [row for row, _ in _rows(path)]


def training_rows(rows: list[MetricsRow]) -> list[MetricsRow]:
    return [row for row in rows if "loss" in row]


def evaluation_rows(rows: list[MetricsRow]) -> list[MetricsRow]:
    return [row for row in rows if "eval_loss" in row]


def parts_rows(rows: list[MetricsRow]) -> list[MetricsRow]:
    """Return the rows of the model's parts (`eval_parts`), if they were evaluated."""
    return [row for row in rows if "loss" not in row and "eval_loss" not in row]


class MetricsFile:
    """Appends rows; each is in the file, whole, when the step ends."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        """Cut what is beyond step `resumed_at`, leaving the bytes before it alone."""
        found = list(_rows(path)) if path.exists() else []
        self.restarts = 1 + max((row.get("restart", 0) for row, _ in found), default=-1)
        """How often the run has been resumed: 0 for the first start."""
        kept = [(row, end) for row, end in found if row["step"] <= resumed_at]
        self.last_row: MetricsRow | None = next((row for row, _ in reversed(kept) if "loss" in row), None)
        """The newest training row that stays."""
        self._file: FileIO = path.open("ab", buffering=0)
        os.truncate(path, kept[-1][1] if kept else 0)

    def append(self, row: MetricsRow) -> None:
        """Raises TrainingStopped if the row cannot be written, on a full disk for one."""
        try:
            line = (json.dumps(row, allow_nan=False) + "\n").encode()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrainingStopped.on_this_rank(f"{self._file.name}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        self._file.close()


def _rows(path: Path) -> Iterator[tuple[MetricsRow, int]]:
    """Pairs of a row and the offset at which its line ends, in order."""
    end = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError("step")
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: line {number} is not a row; restore the file or start in another run directory") from None
        yield row, end
