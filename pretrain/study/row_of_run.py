"""The row of a run directory: its metrics and its newest checkpoint, condensed."""

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median

import numpy as np
from pydantic import ValidationError

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.find import manifest_of, newest_good, run_of
from pretrain.checkpoint.manifest import Manifest
from pretrain.config.run import Run
from pretrain.cost.flops import TRAINING
from pretrain.errors import UserError
from pretrain.observe.metrics import MetricsRow, evaluation_rows, layers_run, parts_rows, read_rows, training_rows
from pretrain.study.identity import settings_of
from pretrain.study.row import Evaluated, Row, StageBoundary

BINS = 100
"""Points of the training loss, and most columns of the map of layer use."""
JUMP = 10
"""Most steps on either side of a stage boundary, within the two stages, over which training losses are averaged."""


def row_of(directory: Path, size: str, method: str, data: dict[str, str], step: int | None = None) -> Row:
    """The row of a run directory.

    Args:
        step: of the checkpoint up to which it counts, which must be good; the newest good one if None.

    Raises:
        UserError: no run, one that has not saved yet or was never evaluated, files that are damaged, or losses that no row takes.
    """
    try:
        return _row_of(directory, size, method, data, step)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{directory}: cannot be compared: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _row_of(directory: Path, size: str, method: str, data: dict[str, str], step: int | None) -> Row:
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
    layers = [layers_run(row, run.recipe.model.num_layers) for row in steps]
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
        parts=_of_parts(done, "eval_loss_"),
        agreement=_of_parts(done, "agreement_"),
        evaluations=evaluated,
        training=tuple(_binned([row["loss"] for row in steps])),
        boundaries=tuple(_boundaries(run, [row["loss"] for row in steps])),
        layer_use=_layer_use(run, len(steps)),
        step_seconds=by_length,
    )


def _of_parts(rows: list[MetricsRow], prefix: str) -> dict[str, float]:
    """The last evaluation of the model's parts, by the part's name."""
    last = parts_rows(rows)[-1:]
    return {name.removeprefix(prefix): value for row in last for name, value in row.items() if name.startswith(prefix)}


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
