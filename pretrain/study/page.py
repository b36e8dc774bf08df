"""`report`: one page that compares runs, and its pictures as files. Nothing on it is fetched from anywhere."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

from pretrain.config.strict import COMMAND_LINE, did_you_mean
from pretrain.errors import UserError, reason
from pretrain.files import write_whole
from pretrain.study.abilities import abilities, curves
from pretrain.study.abilities_page import tasks_tables
from pretrain.study.evals import StudyEval
from pretrain.study.figures import draw, draw_abilities, save
from pretrain.study.gather import NOT_THE_METHOD, differing
from pretrain.study.html import figure, table, text
from pretrain.study.row import Evaluated, Row
from pretrain.study.statistics import Estimate, Group, grouped

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92rem; display: block; overflow-x: auto }
th, td { text-align: right; padding: 0.3rem 0.7rem; border-bottom: 1px solid #ccc; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #222; vertical-align: bottom; white-space: normal }
.wide td, .wide th { white-space: normal; padding: 0.3rem 0.35rem; font-size: 0.8rem; min-width: 5.2em }
figure { margin: 2rem 0; break-inside: avoid } img { max-width: 100% } figcaption, .note { color: #555 }
.warning { border-left: 4px solid #D55E00; padding-left: 1rem }
@media print {
  body { font-size: 11pt; max-width: none; margin: 0 } h2, h3 { break-after: avoid }
  table { overflow: visible; font-size: 7.5pt } th, td { padding: 0.15rem 0.25rem; white-space: normal }
}
"""


def write_page(rows: Sequence[Row], out: Path, baseline: str | None, evals: Sequence[StudyEval] = ()) -> Path:
    """Write OUT/index.html and the pictures; returns the page.

    Args:
        evals: what the runs made of tasks.
        baseline: the method that others are compared with; "full", or the first, if None.

    Raises:
        UserError: no method is called so, or `out` cannot be written.
    """
    sizes = grouped(rows)
    methods = list(dict.fromkeys(row.method for row in rows))
    if baseline is not None and baseline not in methods:
        raise UserError(f'{COMMAND_LINE}: --baseline: no method is called "{baseline}"{did_you_mean(baseline, methods)}')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{COMMAND_LINE}: --out {out}: cannot be made: {reason(error)}") from None
    parts = [f"<h1>{len(rows)} runs compared</h1>", _facts(rows), *_warnings(rows)]
    for size, groups in sizes.items():
        base = baseline_of(groups, baseline)
        if len(sizes) > 1:
            parts.append(f"<h2>{text(size)}</h2>")
        parts += [_main_table(groups, base), _settings(groups), _pairs_table(groups), _kinds_table(groups)]
        own = [row for row in evals if row.size == size]
        parts += tasks_tables(abilities(own, rows), groups, base)
        for plot in (*draw(groups, base), *draw_abilities(groups, curves(own, rows))):
            file = save(plot, out, f"{size}_" if size else "")
            parts.append(figure(file, plot[1]))
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{len(rows)} runs'
        f" compared</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    write_whole(out / "index.html", page)
    return out / "index.html"


def baseline_of(groups: Sequence[Group], name: str | None) -> Group:
    """Return the method that others are compared with: the one called so, or else "full", or the first."""
    return next((group for wanted in (name, "full") for group in groups if group.method == wanted), groups[0])


def _facts(rows: Sequence[Row]) -> str:
    """What the runs are; a fact in which they differ is given with each of its values."""
    kinds = ("torch", "megatron-core", "deepspeed", "device", "commit")
    words = [
        f"{_each(f'{row.parameters / 1e6:,.1f}' for row in rows)} million parameters",
        f"{_each(f'{row.tokens_per_step:,}' for row in rows)} positions a step",
        f"seeds {_each(str(row.seed) for row in rows)}",
        *(f"{kind} {_each(row.of(kind) for row in rows)}" for kind in kinds),
    ]
    return f'<p class="note">{text(" · ".join(words))}</p>'


def _each(values: Iterable[str]) -> str:
    return " and ".join(sorted(set(values)))


def _warnings(rows: Sequence[Row]) -> Iterable[str]:
    """Say what is in the way of an honest comparison."""
    told = [
        f"{row.name} has come to step {row.step} of {row.steps}, and counts in curves alone" for row in rows if not row.finished
    ]
    if len({row.of("code") for row in rows}) > 1:
        told.append("the runs were made with different code")
    if any(len({row.of(kind) for row in rows}) > 1 for kind in ("torch", "megatron-core", "deepspeed")):
        told.append("the runs were made with different versions of packages")
    if any(not row.data for row in rows):
        told.append("whether the runs read the same data is not known of those that no study made")
    for size in {row.size for row in rows}:
        if any(not one.measures_as(other) for one, other in combinations([row for row in rows if row.size == size], 2)):
            told.append("the runs read different data, or other parts of it, and no differences are taken between those that do")
        if (
            len(
                {
                    tuple(at.step for at in row.evaluations)
                    for row in rows
                    if row.size == size and row.steps == max(one.steps for one in rows)
                }
            )
            > 1
        ):
            told.append("not all were evaluated at the same steps; curves have those that all seeds of a method have")
    if len({(row.of("device"), str(row.layout)) for row in rows}) > 1:
        told.append("the runs were made on different devices or layouts, so that their times are not compared")
    if told:
        yield f'<p class="warning">Note that {text("; ".join(told))}.</p>'


def _settings(groups: Sequence[Group]) -> str:
    """List the settings in which methods differ, beside the method itself."""
    settings = [row.settings for group in groups for row in group.rows]
    keys = [key for key in differing(settings) if not key.startswith("ds.progressive_subnetwork.") and key not in NOT_THE_METHOD]
    if not keys:
        return '<p class="note">Beside the method itself no setting differs.</p>'
    body = [
        [text(group.method), *(text(_each(str(row.settings.get(key)) for row in group.rows)) for key in keys)] for group in groups
    ]
    return "<h3>Settings that differ beside the method itself</h3>" + table(["method", *map(text, keys)], body)


def _comparable_times(a: Group, b: Group) -> bool:
    return len({(row.of("device"), str(row.layout)) for row in (*a.rows, *b.rows)}) == 1


def _times_less(group: Group, base: Group) -> str:
    """How many times less time, mean over seeds with its standard error."""
    ratios = [its.typical_seconds / mine.typical_seconds for mine, its in group.pairs(base)]
    if not ratios or not _comparable_times(group, base):
        return "–"
    estimate = Estimate.of(ratios)
    return f"{estimate.mean:.2f}" + (
        f" ± {estimate.standard_error:.2f}" if estimate.standard_error is not None and group is not base else ""
    )


def _saved(group: Group, base: Group, flops: Callable[[Evaluated], float]) -> str:
    """Share of the baseline's operations that is saved, and how many times fewer they are; of the pairs."""
    if not (pairs := group.pairs(base)):
        return "–"
    share = sum(flops(mine.last) for mine, _ in pairs) / sum(flops(its.last) for _, its in pairs)
    return f"{100 * (1 - share):.1f} %, {1 / share:.2f}"


def estimate_text(estimate: Estimate | None, signed: bool = False, interval: bool = False) -> str:
    """4.123 ± 0.004, or +0.012 [-0.003, +0.027]."""
    if estimate is None:
        return "–"
    mean = f"{estimate.mean:+.4f}" if signed else f"{estimate.mean:.4f}"
    if estimate.standard_error is None or estimate.half_width is None:
        return f"{mean} (one seed)" if interval else mean
    if interval:
        return f"{mean} [{estimate.mean - estimate.half_width:+.4f}, {estimate.mean + estimate.half_width:+.4f}]"
    return f"{mean} ± {estimate.standard_error:.4f}"


def _main_table(groups: Sequence[Group], base: Group) -> str:
    def line(group: Group) -> list[str]:
        return [
            text(group.method) + (" (baseline)" if group is base else ""),
            str(len(group.rows)) if len(group.finished) == len(group.rows) else f"{len(group.finished)} of {len(group.rows)}",
            _span([row.last.step for row in group.rows]),
            estimate_text(group.over_seeds(lambda row: row.loss)),
            "" if group is base else estimate_text(group.against(base), signed=True, interval=True),
            _saved(group, base, lambda at: at.layer_flops),
            _saved(group, base, lambda at: at.model_flops),
            _times_less(group, base),
        ]

    name = text(base.method)
    head = [
        "method",
        "seeds",
        "steps",
        "held-out loss ± standard error",
        f"minus {name}, paired [95 %]",
        "layer FLOPs saved, times fewer",
        "model FLOPs saved, times fewer",
        "time, times less",
    ]
    note = (
        "Held-out loss is that of all layers after the last step, a mean over the seeds that have finished. Times are those of"
        " training steps, each taken as the median of those with as many active layers; beside them, the model FLOPs are what a"
        " perfect implementation would reach on one process. Where several runs shared a machine they say little:"
        " bench.path_speed measures speed."
    )
    return table(head, map(line, groups)) + f'<p class="note">{note}</p>'


def _pairs_table(groups: Sequence[Group]) -> str:
    if len(groups) < 3:
        return ""

    def cell(group: Group, other: Group) -> str:
        estimate = group.against(other)
        text = estimate_text(estimate, signed=True, interval=True)
        return f"<b>{text}</b>" if estimate is not None and estimate.differs else text

    body = [[text(group.method), *("" if other is group else cell(group, other) for other in groups)] for group in groups]
    note = (
        "Row minus column, paired by seed, with 95 % intervals (Student's t); bold where the interval leaves out zero. With many"
        " comparisons some are bold by chance."
    )
    return (
        '<h3>Every pair</h3><div class="wide">'
        + table(["", *(text(group.method) for group in groups)], body)
        + f'</div><p class="note">{note}</p>'
    )


def _kinds_table(groups: Sequence[Group]) -> str:
    def cell(group: Group, kind: str) -> str:
        return (
            estimate_text(group.over_seeds(lambda row: row.losses[kind]))
            if all(kind in row.losses for row in group.finished)
            else "–"
        )

    kinds = dict.fromkeys(kind for group in groups for row in group.finished for kind in row.losses)
    body = [[text(kind.replace("source_", "source ")), *(cell(group, kind) for group in groups)] for kind in kinds]
    return (
        '<h3>By denoiser and source</h3><div class="wide">'
        + table(["held-out loss", *(text(group.method) for group in groups)], body)
        + "</div>"
    )


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
