"""What is kept of an evaluation: a row for each task, and every document's scores, without which nothing can be paired."""

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar
from zipfile import BadZipFile

import numpy as np
from pydantic import Field, ValidationError

from pretrain.errors import UserError, reason
from pretrain.evaluate.documents import half_width
from pretrain.evaluate.measure import Outcome
from pretrain.files import write_whole
from pretrain.schema import Count, Number, Strict


class Mean(Strict):
    """A metric of a task."""

    mean: Number
    error: Annotated[Number, Field(ge=0)] | None
    """Standard error, by clusters; None of a single one."""


class Seen(Strict):
    """What is known of a task's documents in the text that the model was trained on (contamination.py)."""

    documents: Count
    """How many have a stretch of 13 words in it."""
    unknown: Count
    """How many are too short to tell."""
    without: dict[str, Mean]
    """The metrics without those that were seen."""


class EvalRow(Strict):
    """What a checkpoint makes of a task."""

    task: str
    version: int
    metric: str
    """The one that is quoted first."""
    chance: Number | None
    metrics: dict[str, Mean]
    """Empty if all documents are too long."""
    documents: Count
    clusters: Count
    skipped: Count
    """Documents that are too long."""
    step: Count
    checkpoint: str
    """Name of its folder."""
    made_with: Annotated[tuple[str, ...], Field(strict=False)]
    """Versions, commit and checksum of the code that asked."""
    precision: str
    attention: str
    mode: str | None
    shots: Count
    draw: int
    """Seed of the documents and examples."""
    limit: Count | None
    data: str | None
    """Name and checksum of the file of documents."""
    requests: str
    """Checksum of all that was asked, as tokens, and of what counts as right; empty if nothing was."""
    tokenizer: str
    """Checksum."""
    examples: str | None = None
    """Name of the file that answered examples are of."""
    seen: Seen | None = None
    """None if nobody looked."""

    def half_width(self, metric: str) -> float | None:
        """Return half of the 95 % interval of a metric, over documents; None of a single cluster."""
        found = self.metrics[metric]
        return half_width(metric, found.mean, found.error, self.clusters)

    def comparable(self, other: "EvalRow") -> bool:
        """Whether both are about the same documents, asked in the same way."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("task", "version", "requests", "attention", "documents")
        )


def write_rows(file: Path, rows: Iterable[EvalRow], outcomes: Mapping[str, Outcome]) -> None:
    """Write rows, and beside them the scores of every document: FILE.jsonl and FILE.npz."""
    write_whole(scores_file(file), _scores(outcomes))
    write_whole(file, "".join(row.model_dump_json() + "\n" for row in rows))


def scores_file(file: Path) -> Path:
    """Return where the scores of documents are."""
    return file.with_suffix(".npz")


def _scores(outcomes: Mapping[str, Outcome]) -> bytes:
    """Arrays [documents] called TASK/METRIC; TASK/numbers and TASK/clusters say which documents these are."""
    arrays: dict[str, np.ndarray] = {}
    for name, outcome in outcomes.items():
        arrays[f"{name}/numbers"] = outcome.numbers.astype(np.int32)
        _, arrays[f"{name}/clusters"] = np.unique(np.array(outcome.clusters), return_inverse=True)
        arrays |= {f"{name}/{metric}": values.astype(np.float64) for metric, values in outcome.values.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    return content.getvalue()


R = TypeVar("R", bound=EvalRow)


def read_rows(file: Path, kind: type[R]) -> list[R]:
    """Read the rows of a file, one a line.

    Raises:
        UserError: not readable, or a line that is no row.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {reason(error)}") from None
    rows: list[R] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise UserError(
                f"{file}: line {number} is no row of an evaluation: {error.errors()[0]['msg']}; remove that line"
            ) from None
    return rows


@dataclass(frozen=True)
class Difference:
    """A checkpoint's metric minus another's, document by document: about these two, not about how they were trained."""

    task: str
    metric: str
    mean: float
    error: float | None
    """Standard error, by clusters."""
    clusters: int

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval; None of a single cluster."""
        return half_width("difference", self.mean, self.error, self.clusters)


@dataclass(frozen=True)
class Written:
    """An evaluation that was written to a file."""

    file: Path
    rows: Mapping[str, EvalRow]
    """By task."""
    scores: Mapping[str, np.ndarray]


def read_written(file: Path) -> Written:
    """Read what `write_rows` wrote.

    Raises:
        UserError: either file cannot be read.
    """
    rows = {row.task: row for row in read_rows(file, EvalRow)}
    try:
        with np.load(scores_file(file)) as scores:
            return Written(file, rows, dict(scores))
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise UserError(f"{scores_file(file)}: cannot be read: {reason(error)}; it belongs to {file.name}") from None


def differences(rows: Sequence[EvalRow], outcomes: Mapping[str, Outcome], other: Written) -> list[Difference]:
    """Compare with another evaluation, in the tasks that both have.

    Raises:
        UserError: the other has none of the tasks, had other documents, or scores that are not its own.
    """
    common, found = [row for row in rows if row.task in other.rows and row.metrics], list[Difference]()
    if not common:
        raise UserError(f"{other.file}: has none of the tasks that were asked here")
    for row in common:
        if not row.comparable(other.rows[row.task]):
            raise UserError(
                f"{other.file}: task {row.task} was put to that checkpoint with other documents, answers, examples or attention;"
                " ask both alike"
            )
        mine = outcomes[row.task]
        numbers = other.scores.get(f"{row.task}/numbers")
        missing = [metric for metric in mine.values if f"{row.task}/{metric}" not in other.scores]
        if numbers is None or missing or not np.array_equal(numbers, mine.numbers):
            raise UserError(f"{scores_file(other.file)}: holds the scores of another evaluation than {other.file.name}")
        for metric, values in mine.values.items():
            mean = mine.mean(values - other.scores[f"{row.task}/{metric}"])
            found.append(Difference(row.task, metric, mean.mean, mean.error, mean.clusters))
    return found
