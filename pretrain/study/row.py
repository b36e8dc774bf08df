"""A run in one row: everything that a comparison shows of it, and what must be equal for it to be compared."""

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.find import manifest_of, newest_good, run_of
from pretrain.checkpoint.manifest import Manifest
from pretrain.config.run import Run
from pretrain.cost.flops import TRAINING
from pretrain.errors import UserError
from pretrain.observe.metrics import MetricsRow, evaluation_rows, parts_rows, read_rows, training_rows
from pretrain.schema import Strict
from pretrain.study.identity import settings_of

BINS = 100
"""Points of the training loss, and most columns of the map of layer use."""
READING = ("recipe.data.", "data.", "recipe.model.vocab_size", "recipe.eval_samples")
"""Settings that begin so decide what is read, and what a held-out loss is a mean of."""
JUMP = 10
"""Most steps on either side of a stage boundary, within the two stages, over which training losses are averaged."""


class Evaluated(Strict):
    """A held-out loss, and what had been spent until then."""

    step: int
    loss: float
    """Mean over held-out target tokens; of all layers that exist."""
    layer_flops: float
    """Training operations in the layers."""
    model_flops: float
    """Embedding, final norm and output projection included."""
    seconds: float
    """Time of training steps, each taken as the median of those with as many active layers; evaluating and saving are not
    counted."""


class StageBoundary(Strict):
    """What the training loss did where paths became longer. Both sides are losses of subnetworks, of different sizes."""

    step: int
    """The first of the new stage."""
    steps: tuple[int, int]
    """How many on either side, JUMP at most."""
    layers_before: int
    layers_after: int
    before: float
    """Mean over the last steps before it."""
    after: float
    """Mean over the first steps of it."""


class Row(Strict):
    """One run."""

    size: str
    method: str
    """Name of the method in the study."""
    seed: int
    step: int
    """The last one done."""
    steps: int
    """The last one there is."""
    tokens_per_step: int
    parameters: int
    settings: dict[str, Any]
    data: dict[str, str]
    """Checksums; empty for a run outside a study."""
    made_with: tuple[str, ...]
    """Versions, commit, checksum of the code, device."""
    layout: dict[str, Any]
    losses: dict[str, float]
    """The last evaluation: "all", and by denoiser, mode and source."""
    parts: dict[str, float]
    """Held-out losses of parts of the model, if they were evaluated: first_1, first_2, ..., every_other."""
    evaluations: Annotated[tuple[Evaluated, ...], Field(min_length=1)]
    training: tuple[tuple[int, float], ...]
    """Means of the training loss over stretches of steps, each with its last step."""
    boundaries: tuple[StageBoundary, ...]
    layer_use: tuple[tuple[float, ...], ...]
    """`[layers][stretches of steps]`: share of the paths that ran the layer."""
    step_seconds: tuple[tuple[float, int, float], ...]
    """For each number of active layers (mean over a step's paths): how many steps, and their median time."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.size, self.method, self.seed

    @property
    def name(self) -> str:
        return ", ".join([*([self.size] if self.size else []), self.method, f"seed {self.seed}"])

    @property
    def loss(self) -> float:
        """Loss on held-out text at the last evaluation: of a finished run after its last step."""
        return self.losses["all"]

    @property
    def finished(self) -> bool:
        return self.step == self.last.step == self.steps

    def measures_as(self, other: "Row") -> bool:
        """Are both losses means over the same tokens of the same text, after as much of the same data a step? What is not known
        counts as the same."""
        mine, theirs = ({key: value for key, value in row.settings.items() if key.startswith(READING)} for row in (self, other))
        same_data = not (self.data and other.data) or self.data == other.data
        return mine == theirs and same_data and self.tokens_per_step == other.tokens_per_step

    @property
    def last(self) -> Evaluated:
        return self.evaluations[-1]

    @property
    def typical_seconds(self) -> float:
        """Time of the steps done, each taken as the median of those with as many active layers: a hiccup of the machine does not
        count."""
        return sum(count * seconds for _, count, seconds in self.step_seconds)

    def of(self, kind: str) -> str:
        """What the row was made with: a version, "commit", "code" or "device"."""
        return next((line.partition(" ")[2] for line in self.made_with if line.startswith(kind + " ")), "unknown")


def row_of(directory: Path, size: str, method: str, data: dict[str, str], step: int | None = None) -> Row:
    """The row of a run directory.

    Args:
        step: of the checkpoint up to which it counts, which must be good; the newest good one if None.

    Raises:
        UserError: no run, one that has not saved yet or was never evaluated, or files that are damaged.
    """
    rows, (run, manifest) = _metrics(directory), _checkpoint(directory, step)
    done = [row for row in rows if row["step"] <= manifest.step]
    steps, evaluations = training_rows(done), evaluation_rows(done)
    if not steps or not evaluations:
        raise UserError(f"{directory}: has no evaluation up to its newest checkpoint, so that there is nothing to compare")
    if [row["step"] for row in steps] != list(range(1, len(steps) + 1)):
        raise UserError(
            f"{directory}: metrics.jsonl does not have every step from 1 to {manifest.step} once, in order; restore it from a"
            " copy"
        )
    shape, tokens = run.recipe.shape, run.tokens_per_step
    layers = list(accumulate(row["active_layers"] for row in steps))
    by_length = tuple(_step_seconds(steps))
    typical = {length: median_seconds for length, _, median_seconds in by_length}
    seconds = list(accumulate(typical[row["active_layers"]] for row in steps))
    evaluated = tuple(
        Evaluated(
            step=row["step"],
            loss=row["eval_loss"],
            layer_flops=float(TRAINING * shape.layer() * tokens * layers[row["step"] - 1]),
            model_flops=float(tokens * (TRAINING * shape.layer() * layers[row["step"] - 1] + row["step"] * shape.training(0))),
            seconds=round(seconds[row["step"] - 1], 3),
        )
        for row in evaluations
    )
    return Row(
        size=size,
        method=method,
        seed=run.recipe.seed,
        step=steps[-1]["step"],
        steps=run.steps,
        tokens_per_step=tokens,
        parameters=sum(int(np.prod(shape)) for shape in manifest.parameters.values()),
        settings=settings_of(run),
        data=data,
        made_with=tuple(manifest.versions),
        layout=manifest.layout,
        losses={
            "all" if name == "eval_loss" else name.removeprefix("eval_loss_"): loss
            for name, loss in evaluations[-1].items()
            if name != "step"
        },
        parts={
            name.removeprefix("eval_loss_"): loss for row in parts_rows(done)[-1:] for name, loss in row.items() if name != "step"
        },
        evaluations=evaluated,
        training=tuple(_binned([row["loss"] for row in steps])),
        boundaries=tuple(_boundaries(run, [row["loss"] for row in steps])),
        layer_use=_layer_use(run, len(steps)),
        step_seconds=by_length,
    )


def read_table(file: Path) -> list[Row]:
    """Rows of a file, one a line.

    Raises:
        UserError: not readable, or a line that is no row.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = Row.model_validate_json(line)
            if any(row.key == other.key for other in rows):
                raise UserError(f"{file}: line {number} is a second row of {row.name}; remove one")
            rows.append(row)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise UserError(
                f"{file}: line {number} is no row of a study: {where + ': ' if where else ''}{problem['msg']}; remove the line,"
                " and `compare` takes it from the run again"
            ) from None
    return rows


def table(rows: Iterable[Row]) -> str:
    """The content of a file of rows."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def _metrics(directory: Path) -> list[MetricsRow]:
    if not (directory / "metrics.jsonl").is_file():
        raise UserError(f"{directory}: no run directory: it has no metrics.jsonl; of a study name its .yaml, or its .rows.jsonl")
    return read_rows(directory / "metrics.jsonl")


def _checkpoint(directory: Path, step: int | None) -> tuple[Run, Manifest]:
    """Return the run as a checkpoint has it: that of `step`, or the newest one that can be read."""
    saved = RunDirectory(directory)
    problems = ["it has no checkpoint yet"]

    def read(folder: Path) -> tuple[Run, Manifest]:
        manifest = manifest_of(folder)
        return run_of(folder, manifest), manifest

    found = newest_good(saved.steps_saved() if step is None else [saved.checkpoint(step)], read, problems.append)
    if found is None:
        raise UserError(f"{directory}: cannot be compared: {problems[-1].splitlines()[0]}")
    return found[1]


def _edges(count: int) -> np.ndarray:
    """Return the edges of up to BINS stretches of nearly equal length."""
    return np.linspace(0, count, min(count, BINS) + 1).round().astype(int)


def _binned(losses: list[float]) -> Iterable[tuple[int, float]]:
    edges = _edges(len(losses)).tolist()
    return ((high, round(fmean(losses[low:high]), 5)) for low, high in zip(edges, edges[1:]))


def _boundaries(run: Run, losses: list[float]) -> Iterable[StageBoundary]:
    for before, after in zip(run.method.stages, run.method.stages[1:]):
        at = before.last_step
        if at < len(losses):
            low, high = max(before.first_step - 1, at - JUMP), min(after.last_step, at + JUMP, len(losses))
            yield StageBoundary(
                step=after.first_step,
                steps=(at - low, high - at),
                layers_before=before.path_length,
                layers_after=after.path_length,
                before=fmean(losses[low:at]),
                after=fmean(losses[at:high]),
            )


def _layer_use(run: Run, done: int) -> tuple[tuple[float, ...], ...]:
    edges = _edges(done).tolist()
    columns = [
        np.mean([path.active for step in range(low + 1, high + 1) for path in run.method.paths(step)], axis=0)
        for low, high in zip(edges, edges[1:])
    ]
    return tuple(tuple(round(float(share), 3) for share in layer) for layer in np.transpose(columns))


def _step_seconds(steps: list[MetricsRow]) -> Iterable[tuple[float, int, float]]:
    """The first step after a start warms up, and says nothing of the pace; it is counted at that of the others."""
    for length in sorted({row["active_layers"] for row in steps}):
        alike = [row for row in steps if row["active_layers"] == length]
        restarts = [row["restart"] for row in steps]
        warm = [row["step_seconds"] for row in alike if row["step"] > 1 and restarts[row["step"] - 2] == row["restart"]]
        yield length, len(alike), round(median(warm or [row["step_seconds"] for row in alike]), 6)
