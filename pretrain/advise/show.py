"""Advice on the console."""

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from pretrain.advise.advice import Advice, Option
from pretrain.advise.evidence import Evidence
from pretrain.config import Run


def print_advice(run: Run, advice: Advice, evidence: Evidence, parameters: int, warned: Iterable[str] = ()) -> None:
    """Table, then what it comes to.

    Args:
        parameters: of the run's model.
        warned: what `plan` warns of.
    """
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    console.print(_table(run, advice))
    for warning in warned:
        console.print(f"warning: {warning}")
    for line in sentences(run, advice, evidence, parameters):
        console.print(line)


def sentences(run: Run, advice: Advice, evidence: Evidence, parameters: int) -> list[str]:
    """Say what is known, and how far it goes."""
    data, targets = run.recipe.data, run.recipe.shape.targets
    size, own = _millions(evidence.parameters), _millions(parameters)
    found = [
        f"losses are measured on {size} parameters, {evidence.layers} layers, {evidence.steps} steps of"
        f" {evidence.tokens_per_step:,} positions, samples of {evidence.sequence_length}, {evidence.targets:.0%} of them targets;"
        f" this model has {own} parameters, {parameters / evidence.parameters:,.0f} times as many, samples of"
        f" {data.sequence_length}, {targets:.0%} targets: nothing measured says that a difference is the same there",
        "hours are an estimate (`plan` says of what)",
    ]
    found += [f"{name} cannot run here: {why}" for name, why in advice.refused]
    best = advice.best
    if best is None:
        found.append(
            f"advice: all layers in every step; no method that saves time is shown to lose at most {advice.tolerance:g} nats (its"
            " interval, uncorrected for how many there are, would have to end there)"
            + (f", and to be done in {advice.budget:g} hours" if advice.budget < advice.full_hours else "")
        )
    else:
        found.append(
            f"advice: try {best.name}; it saves {_hours(best.saved)} of {_hours(advice.full_hours)} hours, and measured lost"
            f" {_difference(best)} nats (below 0: gained)"
        )
    if advice.full_hours > advice.budget:
        names = "; ".join(option.name for option in advice.options if option.hours <= advice.budget) or "no method"
        found.append(f"in {advice.budget:g} hours all layers do not get through the run's steps; {names} would")
    return found


def _table(run: Run, advice: Advice) -> Table:
    table = Table("method", "layer FLOPs", "hours", "saved", "held-out loss minus all layers'", "seeds", title_justify="left")
    table.title = f"{run.recipe.model.num_layers} layers, {run.steps:,} steps, {run.world_size} GPUs"
    limited = math.isfinite(advice.budget)
    if limited:
        table.add_column(f"steps in {advice.budget:g} hours")
    rows: list[tuple[str, float, float, str, str, str]] = [("all layers", 1.0, advice.full_hours, "", "", "")]
    for option in advice.options:
        saved = f"{option.saved / advice.full_hours:.1%}"
        rows.append((option.name, option.layer_factor, option.hours, saved, _difference(option), str(option.measured.seeds)))
    for name, factor, hours, *rest in rows:
        steps = [f"{min(run.steps, int(run.steps * advice.budget / hours)):,}"] if limited else []
        table.add_row(name, f"{factor:.2f}x fewer", _hours(hours), *rest, *steps)
    return table


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}"


def _difference(option: Option) -> str:
    return f"{option.measured.difference:+.3f} ± {option.measured.half_width:.3f}"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} G" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
