"""The closing summary and RUN/report/: numbers, plots and a page that shows them."""

import html
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from pretrain.config import Run
from pretrain.cost.flops import savings
from pretrain.cost.makespan import active_by_part, ideal_pipeline_ratio
from pretrain.observe.metrics import MetricsRow, evaluation_rows, read_rows, training_rows
from pretrain.observe.plots import draw_plots

ENDS = 20
"""Most steps at either end over which losses are averaged."""


@dataclass(frozen=True)
class Summary:
    """A finished run in numbers."""

    ends: int
    """Steps at either end over which losses are averaged; the two do not overlap."""
    first_loss: float
    last_loss: float
    eval_loss: float | None
    layer_flops_saved: float
    ideal_speedup: float
    realised_speedup: float | None
    """None where no start of the run had steps of all layers beside those of every length."""

    @classmethod
    def of(cls, run: Run, rows: list[MetricsRow]) -> "Summary":
        steps, evaluations = training_rows(rows), evaluation_rows(rows)
        shape = run.recipe.shape
        ideal = 1 / fmean(_ideal_ratios(run, steps))
        ends = max(1, min(ENDS, len(steps) // 2))
        return cls(
            ends=ends,
            first_loss=fmean(row["loss"] for row in steps[:ends]),
            last_loss=fmean(row["loss"] for row in steps[-ends:]),
            eval_loss=evaluations[-1]["eval_loss"] if evaluations else None,
            layer_flops_saved=steps[-1]["layer_flops_saved"],
            ideal_speedup=ideal,
            realised_speedup=_realised(steps, shape.layers),
        )

    def lines(self, run: Run) -> list[tuple[str, str]]:
        expected = savings(run.method, run.recipe.shape)
        realised = (
            "not known: no one start ran steps of every length, all layers included"
            if self.realised_speedup is None
            else f"{self.realised_speedup:.2f}x"
        )
        held_out = "not evaluated" if self.eval_loss is None else f"{self.eval_loss:.4f} (all layers)"
        return [
            ("training loss", f"{self.first_loss:.4f} in the first {self.ends} steps, {self.last_loss:.4f} in the last"),
            ("held-out loss", held_out),
            ("layer FLOPs saved", f"{100 * self.layer_flops_saved:.1f} % (expected {expected.layer_factor:.2f}x fewer)"),
            ("speed-up, ideal", f"{self.ideal_speedup:.2f}x (embedding and output projection are never skipped)"),
            ("speed-up, realised", realised),
        ]


def write_report(run: Run, directory: Path) -> str:
    """Write RUN/report/ and return the closing summary."""
    rows = read_rows(directory / "metrics.jsonl")
    if not training_rows(rows):
        return "no step was trained"
    out = directory / "report"
    out.mkdir(exist_ok=True)
    plots = draw_plots(run, rows, out)
    lines = Summary.of(run, rows).lines(run)
    (out / "index.html").write_text(_page(run, lines, plots), encoding="utf-8")
    width = max(len(name) for name, _ in lines)
    text = [f"  {name.ljust(width)}  {value}" for name, value in lines]
    return "\n".join(
        ["", f"{run.name}, {run.method.name}, {run.steps} steps:", *text, f"  {'plots'.ljust(width)}  {out / 'index.html'}"]
    )


def _ideal_ratios(run: Run, rows: list[MetricsRow]) -> Iterator[float]:
    """Ideal time of each step over that with all layers; on a pipeline from the step's first path, whose layers spread
    unevenly."""
    layout = run.recipe.parallel
    parts, known = layout.pipeline * layout.virtual, {}
    for row in rows:
        path = run.method.paths(row["step"])[0]
        active = row["active_layers"] if parts == 1 else active_by_part(run.recipe.shape.shares(path), parts)
        if active not in known:
            known[active] = ideal_pipeline_ratio(
                run.recipe.shape, active, layout.pipeline, layout.virtual, run.micro_batches, run.backward_cost
            )
        yield known[active]


def _without_first_of_each_start(rows: list[MetricsRow]) -> list[MetricsRow]:
    """The first step after a start warms up caches and allocators; it says nothing about speed."""
    return [row for before, row in zip(rows, rows[1:]) if before["restart"] == row["restart"]]


def _realised(steps: list[MetricsRow], layers: int) -> float | None:
    """Return the time of a step of all layers over the mean step's, each length by its median, so that a hiccup does not count.

    Only steps of one start are compared with each other: another may have run on another layout, or another machine.
    """
    ratios: dict[float, list[tuple[float, int]]] = defaultdict(list)
    timed = _without_first_of_each_start(steps)
    for start in {row["restart"] for row in timed}:
        times: dict[float, list[float]] = defaultdict(list)
        for row in timed:
            if row["restart"] == start:
                times[row["active_layers"]].append(row["step_seconds"])
        if layers in times:
            for length, seconds in times.items():
                ratios[length].append((median(seconds) / median(times[layers]), len(seconds)))
    if not ratios or any(row["active_layers"] not in ratios for row in steps):
        return None
    mean = {length: sum(r * n for r, n in found) / sum(n for _, n in found) for length, found in ratios.items()}
    return 1 / fmean(mean[row["active_layers"]] for row in steps)


def _page(run: Run, lines: list[tuple[str, str]], plots: list[tuple[str, str]]) -> str:
    table = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in lines)
    figures = "".join(
        f'<figure><img src="{name}" alt="{html.escape(text)}"><figcaption>{html.escape(text)}</figcaption></figure>'
        for name, text in plots
    )
    title = html.escape(f"{run.name}, {run.method.name}, {run.steps} steps")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
th {{ text-align: left; font-weight: 600; padding-right: 2rem }} img {{ max-width: 100% }} figure {{ margin: 2rem 0 }}
figcaption {{ color: #555 }}
</style></head><body><h1>{title}</h1><table>{table}</table>{figures}</body></html>
"""
