"""metrics.jsonl: one JSON object a training step, and one an evaluation. Every step is there once, whatever happened."""

import errno
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from pretrain.errors import TrainingStopped, UserError, reason
from pretrain.files import write_whole

MetricsRow = dict[str, Any]
"""A line of metrics.jsonl: a training step, an evaluation, that of parts of the model, or tasks."""


def read_rows(path: Path) -> list[MetricsRow]:
    """All complete rows. A killed run may leave half a line at the end; that is no row.

    Raises:
        UserError: a complete line that is not a row.
    """
    return [row for row, _ in _rows(path)]


def training_rows(rows: list[MetricsRow]) -> list[MetricsRow]:
    return [row for row in rows if "loss" in row]


def layers_run(row: MetricsRow, layers: int) -> float:
    """Return how many of a model's layers a run has taken its batches through up to a row; where parts of layers run, in whole
    layers' operations."""
    return round((1 - row["layer_flops_saved"]) * row["step"] * layers, 6)


def evaluation_rows(rows: list[MetricsRow]) -> list[MetricsRow]:
    return [row for row in rows if "eval_loss" in row]


def parts_rows(rows: list[MetricsRow]) -> list[MetricsRow]:
    """Return the rows of the model's parts (`eval_parts`), if they were evaluated."""
    return [row for row in rows if "loss" not in row and "eval_loss" not in row and not is_of_tasks(row)]


def is_of_tasks(row: MetricsRow) -> bool:
    """Whether a row is of tasks that were scored during training."""
    return any(name.startswith("task_") for name in row)


def evaluations_at(rows: list[MetricsRow], step: int) -> int:
    """Count the rows of a step's evaluations: held-out losses with all layers, with parts of them, and tasks."""
    return sum("loss" not in row for row in rows if row["step"] == step)


class MetricsFile:
    """Appends rows; each is in the file, whole, when the step ends."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        """Cut what is beyond step `resumed_at`, leaving the bytes before it alone; damaged rows are put aside."""
        found = _without_damage(path) if path.exists() else []
        self.restarts = 1 + max((row.get("restart", 0) for row, _ in found), default=-1)
        """How often the run has been resumed: 0 for the first start."""
        kept = [(row, end) for row, end in found if row["step"] <= resumed_at]
        self.last_row: MetricsRow | None = next((row for row, _ in reversed(kept) if "loss" in row), None)
        """The newest training row that stays."""
        self.evaluated = evaluations_at([row for row, _ in kept], resumed_at)
        """Number of rows of evaluations of step `resumed_at`."""
        self._file: FileIO = path.open("ab", buffering=0)
        os.truncate(path, kept[-1][1] if kept else 0)

    def append(self, row: MetricsRow) -> None:
        """Raises TrainingStopped if the row cannot be written, on a full disk for one."""
        try:
            line = (json.dumps(row, allow_nan=False) + "\n").encode()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrainingStopped.on_this_rank(f"{self._file.name}: cannot be written ({reason(error)})") from error

    def close(self) -> None:
        self._file.close()


def _without_damage(path: Path) -> list[tuple[MetricsRow, int]]:
    """Return the rows as `_rows`; lines that are none are moved into a file beside."""
    damaged: list[int] = []
    found = list(_rows(path, damaged))
    if not damaged:
        return found
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged{number}")).exists():
        number += 1
    lines = path.read_bytes().split(b"\n")
    write_whole(aside, b"".join(lines[number - 1] + b"\n" for number in damaged))
    write_whole(path, b"\n".join(line for number, line in enumerate(lines, start=1) if number not in damaged))
    are = f"line {damaged[0]} is not a row; it is" if len(damaged) == 1 else f"{len(damaged)} lines are not rows; they are"
    print(f"WARNING: {path}: {are} now in {aside.name}", flush=True)
    return list(_rows(path))


def _rows(path: Path, damaged: list[int] | None = None) -> Iterator[tuple[MetricsRow, int]]:
    """Pairs of a row and the offset at which its line ends, in order.

    Args:
        damaged: gets the numbers of lines that are no rows, instead of an error.
    """
    end = 0
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError("step")
        except (ValueError, TypeError, KeyError):
            if damaged is not None:
                damaged.append(number)
                continue
            raise UserError(f"{path}: line {number} is not a row; restore the file or start in another run directory") from None
        yield row, end
