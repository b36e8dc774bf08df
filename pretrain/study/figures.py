"""Pictures that compare methods. Colours from Okabe and Ito, lines and marks differ too: legible in print and to the
colour-blind."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pretrain.files import write_whole
from pretrain.study.row import Evaluated
from pretrain.study.statistics import Group

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Lines and marks differ in number, so that no two of many methods look alike."""
AXES: tuple[tuple[str, str, Callable[[Evaluated], float]], ...] = (
    ("loss_by_step", "step", lambda at: at.step),
    ("loss_by_layer_flops", "operations in the layers ({}FLOP)", lambda at: at.layer_flops),
    ("loss_by_model_flops", "operations in the whole model ({}FLOP)", lambda at: at.model_flops),
    ("loss_by_time", "time in training steps (minutes)", lambda at: at.seconds / 60),
)
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SPREAD = "Lines are means over seeds, bands reach from the least to the greatest."

Plot = tuple[str, str, Figure]
"""Name of a file without its end, caption, picture."""


def draw(groups: Sequence[Group], baseline: Group) -> list[Plot]:
    """All pictures for one size of model."""
    plots = [
        *(_losses(groups, *axis) for axis in AXES),
        _final(groups, baseline),
        _boundaries(groups),
        _layer_use(groups),
        _parts(groups),
    ]
    return [plot for plot in plots if plot is not None]


def draw_abilities(groups: Sequence[Group], points: Mapping[tuple[str, str, int], Sequence[tuple[float, float]]]) -> list[Plot]:
    """Draw bits a byte of tasks against held-out loss, a point for each checkpoint that was asked; nothing if there are none.

    Args:
        points: held-out loss and bits a byte of the checkpoints of each run, by its key.
    """
    asked = [group for group in groups if any(row.key in points for row in group.rows)]
    if not asked:
        return []
    figure, axes = _figure()
    for group in asked:
        colour, line, mark = _style(groups, group)
        for row in group.rows:
            if row.key in points:
                x, y = zip(*points[row.key])
                axes.plot(x, y, color=colour, linestyle=line, linewidth=0.8, alpha=0.6)
                axes.plot(x[:-1], y[:-1], linestyle="none", marker=mark, markersize=4, color=colour, alpha=0.5)
                label = group.method if row is group.rows[0] else None
                axes.plot(x[-1:], y[-1:], linestyle="none", marker=mark, markersize=9, color=colour, label=label)
    axes.set_xlabel("held-out loss")
    axes.set_ylabel("bits a byte of right answers, mean over tasks")
    _legend(axes)
    caption = (
        "What checkpoints make of tasks, against their held-out loss: a line for each run, large marks after the last step. If"
        " equal loss means equal ability, methods lie on one line."
    )
    return [("abilities", caption, figure)]


def save(plot: Plot, out: Path, prefix: str) -> Path:
    """Write a picture as PNG."""
    name, _, figure = plot
    file = out / f"{prefix}{name}.png"
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    write_whole(file, content.getvalue())
    plt.close(figure)
    return file


def _figure(width: float = 9, height: float = 4.5) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height), dpi=120, layout="constrained")
    axes.grid(alpha=0.25)
    return figure, axes


def _style(groups: Sequence[Group], group: Group) -> tuple[str, str, str]:
    at = groups.index(group)
    return COLOURS[at % len(COLOURS)], LINES[at % len(LINES)], MARKS[at % len(MARKS)]


def _legend(axes: Axes) -> None:
    """Put the legend beside the picture, where it hides nothing."""
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _losses(groups: Sequence[Group], name: str, label: str, place: Callable[[Evaluated], float]) -> Plot:
    figure, axes = _figure()
    latest, most = [], max(place(row.last) for group in groups for row in group.rows)
    unit, prefix = next((unit for unit in UNITS if most >= unit[0]), UNITS[-1]) if "{}" in label else (1.0, "")
    label = label.format(prefix)
    for group in groups:
        colour, line, mark = _style(groups, group)
        by_step = [{at.step: at for at in row.evaluations} for row in group.rows]
        common = sorted(set.intersection(*(set(found) for found in by_step)))
        if not common:
            continue
        x = [fmean(place(found[step]) for found in by_step) / unit for step in common]
        losses = np.array([[found[step].loss for found in by_step] for step in common])
        axes.plot(x, losses.mean(axis=1), color=colour, linestyle=line, marker=mark, markersize=4, label=group.method)
        axes.fill_between(x, losses.min(axis=1), losses.max(axis=1), color=colour, alpha=0.15, linewidth=0)
        latest.append(losses[len(common) // 5 :])
    if latest:
        low, high = min(part.min() for part in latest), max(part.max() for part in latest)
        margin = 0.05 * (high - low) or 0.05
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel(label)
    axes.set_ylabel("held-out loss")
    _legend(axes)
    caption = (
        f"Held-out loss of all layers (of a growing model: of those there are) against {label}. {SPREAD} Only ends are final:"
        " before them the learning rate had yet to fall. The first fifth of each run may lie above the picture."
    )
    return name, caption, figure


def _final(groups: Sequence[Group], baseline: Group) -> Plot | None:
    others = [group for group in groups if group is not baseline and group.pairs(baseline)]
    if not others:
        return None
    figure, axes = _figure(9, 1.6 + 0.5 * len(others))
    axes.axvline(0, color="#666666", linewidth=1)
    for at, group in enumerate(others):
        colour, _, mark = _style(groups, group)
        estimate = group.against(baseline)
        assert estimate is not None
        single = [mine.loss - its.loss for mine, its in group.pairs(baseline)]
        axes.plot(single, [at] * len(single), linestyle="none", marker=mark, color=colour, markersize=5, alpha=0.5)
        axes.errorbar(
            estimate.mean, at, xerr=estimate.half_width, color=colour, marker=mark, markersize=9, capsize=5, linewidth=2
        )
    axes.set_yticks(range(len(others)), [group.method for group in others])
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.set_xlabel(f"final held-out loss minus that of {baseline.method} with the same seed (left of 0 is better)")
    return (
        "difference",
        f"Paired differences to {baseline.method}: large marks are means with their 95 % interval, small ones single seeds.",
        figure,
    )


def _boundaries(groups: Sequence[Group]) -> Plot | None:
    staged = [group for group in groups if any(row.boundaries for row in group.rows)]
    if not staged:
        return None
    figure, axes = _figure()
    axes.axhline(0, color="#666666", linewidth=1)
    places: dict[str, float] = {}
    for index, group in enumerate(staged):
        colour, _, mark = _style(groups, group)
        for row in group.rows:
            names = [
                f"{number}. stage ends:\n{b.layers_before} to {b.layers_after} layers"
                for number, b in enumerate(row.boundaries, start=1)
            ]
            x = [places.setdefault(name, len(places)) + (index + 1) / (len(staged) + 1) - 0.5 for name in names]
            label = group.method if row is group.rows[0] else None
            axes.plot(x, [b.after - b.before for b in row.boundaries], linestyle="none", marker=mark, color=colour, label=label)
    axes.set_xticks(list(places.values()), list(places))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylabel("change of the training loss")
    _legend(axes)
    return (
        "boundaries",
        (
            "Training loss in up to ten steps after a stage begins minus that in as many before, a mark for each seed. Before and"
            " after, different numbers of layers run, and training losses fall anyway."
        ),
        figure,
    )


def _layer_use(groups: Sequence[Group]) -> Plot | None:
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(9, 0.8 + 2.1 * lines), dpi=120, layout="constrained", squeeze=False, sharey=True
    )
    image: AxesImage | None = None
    for axes, group in zip(grid.flat, groups):
        row = group.rows[0]
        share = np.array(row.layer_use)
        image = axes.imshow(
            share,
            aspect="auto",
            origin="lower",
            cmap="cividis",
            vmin=0,
            vmax=1,
            extent=(0, row.step, 0.5, len(share) + 0.5),
            interpolation="nearest",
        )
        axes.set_title(group.method, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")
    drawn, empty = list(grid.flat)[: len(groups)], list(grid.flat)[len(groups) :]
    for axes in empty:
        axes.remove()
    assert image is not None, "there is a group at least"
    figure.colorbar(image, ax=drawn, label="share of paths that run it")
    return "layer_use", "Which layers ran, over the course of one run each.", figure


def _parts(groups: Sequence[Group]) -> Plot | None:
    probed = [group for group in groups if any(row.parts for row in group.finished)]
    if not probed:
        return None
    figure, axes = _figure()
    layers = max(len(group.rows[0].layer_use) for group in probed)
    for index, group in enumerate(probed):
        colour, line, mark = _style(groups, group)
        count = len(group.rows[0].layer_use)
        names = [f"first_{n}" for n in range(1, count)]
        rows = [row for row in group.finished if row.parts]
        losses = np.array([[*(row.parts[name] for name in names), row.loss] for row in rows])
        axes.plot(
            range(1, count + 1), losses.mean(axis=0), color=colour, linestyle=line, marker=mark, markersize=4, label=group.method
        )
        axes.fill_between(range(1, count + 1), losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        x = layers + 1.5 + 0.18 * (index - (len(probed) - 1) / 2)
        axes.plot(
            [x] * len(rows), [row.parts["every_other"] for row in rows], linestyle="none", marker=mark, markersize=5, color=colour
        )
    axes.axvline(layers + 0.75, color="#666666", linewidth=1)
    step = max(1, layers // 12)
    ticks = list(range(step, layers + 1, step))
    axes.set_xticks([*ticks, layers + 1.5], [*map(str, ticks), "every other\nskipped"])
    axes.set_xlabel("only the first layers run, so many")
    axes.set_ylabel("held-out loss")
    _legend(axes)
    return (
        "parts",
        (
            "What is left when only the first layers run, or every second one is skipped but the last one kept, straight after"
            f" training. {SPREAD}"
        ),
        figure,
    )
