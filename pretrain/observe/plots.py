"""Plots of one run, as PNG files. Colours from Okabe and Ito, which the colour-blind can tell apart."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pretrain.config import Run
from pretrain.observe.metrics import MetricsRow, evaluation_rows, layers_run, training_rows

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
SUBNETWORK = "The training loss is a subnetwork's: each step runs only the layers of its path. Held-out loss runs all layers."
COLUMNS = 200
"""Most columns of the heat map."""

Rows = list[MetricsRow]


def draw_plots(run: Run, rows: Rows, out: Path) -> list[tuple[str, str]]:
    """Draw all plots into `out`; returns file names and captions."""
    plots: list[tuple[str, Callable[[Axes, Run, Rows], str]]] = [
        ("loss_by_step.png", _loss_by_step),
        ("loss_by_flops.png", _loss_by_flops),
        ("paths.png", _paths),
        ("step_time.png", _step_time),
    ]
    made = []
    for name, draw in plots:
        figure, axes = plt.subplots(figsize=(9, 4.5), dpi=120, layout="constrained")
        made.append((name, draw(axes, run, rows)))
        figure.savefig(out / name)
        plt.close(figure)
    return made


def _loss_by_step(axes: Axes, run: Run, rows: Rows) -> str:
    _losses(axes, rows, {row["step"]: row["step"] for row in training_rows(rows)})
    _stages(axes, run, lambda step: step)
    axes.set_xlabel("step")
    return "Loss against steps. Dashed: stage boundaries. " + SUBNETWORK


def _loss_by_flops(axes: Axes, run: Run, rows: Rows) -> str:
    steps = training_rows(rows)
    unit = 3 * run.recipe.shape.layer() * run.tokens_per_step / 1e15
    done = {row["step"]: layers_run(row, run.recipe.model.num_layers) * unit for row in steps}
    _losses(axes, rows, done)
    _stages(axes, run, done.get)
    axes.set_xlabel("layer operations so far (PFLOP)")
    return "Loss against operations in the layers. Dashed: stage boundaries. " + SUBNETWORK


def _losses(axes: Axes, rows: Rows, x: dict[int, float]) -> None:
    steps = training_rows(rows)
    losses = np.array([row["loss"] for row in steps])
    width = max(1, len(losses) // 50)
    places = [x[row["step"]] for row in steps]
    axes.plot(places, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="training (subnetwork), each step")
    if width > 1:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(places[width - 1 :], smooth, color=BLUE, label=f"training (subnetwork), mean of {width} steps")
    held_out = [row for row in evaluation_rows(rows) if row["step"] in x]
    if held_out:
        axes.plot(
            [x[r["step"]] for r in held_out],
            [r["eval_loss"] for r in held_out],
            "o-",
            color=ORANGE,
            label="held out (all layers)",
        )
    axes.set_ylabel("loss per target token")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.grid(alpha=0.2)


def _stages(axes: Axes, run: Run, place: Callable[[int], float | None]) -> None:
    for stage in run.method.stages:
        x = place(stage.last_step) if stage is not run.method.stages[-1] else None
        if x is not None:
            axes.axvline(x, color=GREY, linestyle="--", linewidth=1)
        left = place(stage.first_step)
        if left is not None and len(run.method.stages) > 1:
            axes.annotate(
                f" {stage.path_length} layers", (left, 0.02), xycoords=("data", "axes fraction"), color="#555555", fontsize=9
            )


def _paths(axes: Axes, run: Run, rows: Rows) -> str:
    last = training_rows(rows)[-1]["step"]
    edges = np.linspace(0, last, min(last, COLUMNS) + 1).round().astype(int)
    share = np.zeros((run.recipe.model.num_layers, len(edges) - 1))
    for column, (low, high) in enumerate(zip(edges, edges[1:])):
        paths = [path.active for step in range(low + 1, high + 1) for path in run.method.paths(step)]
        share[:, column] = np.mean(paths, axis=0)
    image = axes.imshow(
        share, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=1, extent=(0, last, -0.5, len(share) - 0.5)
    )
    axes.figure.colorbar(image, label="share of the paths that run the layer")
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    return "Which layers ran. The first and last layer are fixed unless configured otherwise."


def _step_time(axes: Axes, run: Run, rows: Rows) -> str:
    times: dict[float, list[float]] = defaultdict(list)
    for row in training_rows(rows)[1:]:
        times[row["active_layers"]].append(row["step_seconds"])
    lengths = sorted(times)
    axes.plot(
        [n for n in lengths for _ in times[n]], [t for n in lengths for t in times[n]], ".", color=GREY, alpha=0.3, markersize=3
    )
    axes.plot(lengths, [median(times[n]) for n in lengths], "o-", color=BLUE, label="median")
    if lengths:
        shape, longest = run.recipe.shape, lengths[-1]
        ideal = [median(times[longest]) * shape.training(n) / shape.training(longest) for n in lengths]
        axes.plot(lengths, ideal, "--", color=ORANGE, label="ideal: proportional to model FLOPs")
        axes.set_ylim(0, 2 * median(times[longest]))
        axes.legend(frameon=False)
    axes.set_xlabel("active layers (mean over the step's paths)")
    axes.set_ylabel("seconds a step")
    axes.grid(alpha=0.2)
    return "Step time by active layers. The ideal line is scaled to the longest paths."
