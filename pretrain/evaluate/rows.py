"""What is kept of an evaluation: a row for each task, and every document's scores, without which nothing can be paired."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from pretrain.errors import UserError, reason
from pretrain.evaluate.documents import mean_of
from pretrain.evaluate.measure import Outcome
from pretrain.files import write_whole
from pretrain.schema import Count, Number, Strict


class Mean(Strict):
    """A metric of a task."""

    mean: Number
    error: Annotated[Number, Field(ge=0)] | None
    """Standard error, by clusters; None of a single one."""


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
    """Checksum of all that was asked, as tokens; empty if nothing was."""
    tokenizer: str
    """Checksum."""

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
        arrays |= {f"{name}/{metric}": values.astype(np.float32) for metric, values in outcome.values.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    return content.getvalue()


def read_rows(file: Path) -> list[EvalRow]:
    """Rows of a file, one a line.

    Raises:
        UserError: not readable, or a line that is no row.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {reason(error)}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(EvalRow.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"{file}: line {number} is no row of an evaluation: {error.errors()[0]['msg']}; remove it") from None
    return rows


def paired(first: Sequence[float], second: Sequence[float], clusters: Sequence[int]) -> tuple[float, float | None]:
    """Return the mean difference of the same documents' scores by two checkpoints, and its clustered standard error."""
    found = mean_of(np.asarray(first, np.float64) - np.asarray(second, np.float64), [str(cluster) for cluster in clusters])
    return found.mean, found.error
