"""What `plan` shows of a run: model, batch, stages, paths, savings, memory by rank."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from rich.table import Table

from pretrain.config import Run
from pretrain.config.checks import check
from pretrain.cost.flops import expected_active, savings
from pretrain.errors import UserError
from pretrain.observe.console import short
from pretrain.optim.rates import learning_rate
from pretrain.plan.balance import spread
from pretrain.plan.memory import GIB, rank_memory
from pretrain.plan.parameters import count_parameters
from pretrain.plan.target import Offer, Refused
from pretrain.plan.wire import active_layers, traffic

PATHS = (1, 2, 4, 8)
"""Paths a step that are shown beside the run's own."""
BARS, ASCII_BARS, DRAWN = "▁▂▃▄▅▆▇█", "_.:-=+*#", 60
"""Heights, and how many places of a run are drawn."""


def size(run: Run) -> Table:
    table = table_of(f"{run.name}: model", "part", "parameters")
    parameters = count_parameters(run)
    layers = sum(n for name, n in parameters.items() if name.startswith("decoder.layers."))
    table.add_row(f"{run.recipe.model.num_layers} layers", f"{layers:,}")
    for name, count in parameters.items():
        if not name.startswith("decoder.layers."):
            table.add_row(name.removesuffix(".weight"), f"{count:,}")
    table.add_row("all", f"{sum(parameters.values()):,}")
    return table


def batches(run: Run) -> Table:
    table = table_of("batch", "what", "how many")
    length = run.recipe.data.sequence_length
    rows = {
        "samples in a step": f"{run.batch} of {length} tokens",
        "micro-batches a rank": f"{run.micro_batches} of {run.micro_batch} samples",
        "data-parallel ranks": run.data_parallel,
        "paths a step": len(run.method.paths(run.steps)),
        "tokens a step": f"{run.tokens_per_step:,}",
        "steps": f"{run.steps:,}",
        "tokens": short(run.tokens_per_step * run.steps),
        "precision": run.precision + (", fp32 masters and gradient sums" if run.ds.bf16.enabled else ""),
        "zero stage": run.ds.zero_optimization.stage,
    }
    for what, value in rows.items():
        table.add_row(what, str(value))
    return table


def rates(run: Run, ascii_only: bool) -> Table:
    """The learning rate: where its course changes, and a drawing of it over the whole run."""
    bars = ASCII_BARS if ascii_only else BARS
    scheduler, top = run.ds.scheduler, run.ds.optimizer.params.lr
    turns = {1, run.steps}
    if scheduler is not None:
        turns.add(min(run.steps, max(2, scheduler.params.warmup_num_steps)))
        if scheduler.params.decay_num_steps is not None:
            turns.add(run.steps - scheduler.params.decay_num_steps + 1)
    table = table_of(f"learning rate: {'constant' if scheduler is None else scheduler.type}", "when", "rate")
    for step in sorted(turns):
        table.add_row(f"step {step:,}", f"{learning_rate(scheduler, top, run.steps, step):.3g}")
    drawn = (1 + (run.steps - 1) * column // (DRAWN - 1) for column in range(DRAWN))
    shares = (learning_rate(scheduler, top, run.steps, step) / top for step in drawn)
    table.add_row("", "".join(bars[round(share * (len(bars) - 1))] for share in shares))
    return table


def stages(run: Run) -> Table:
    widths = [run.method.width(stage.first_step, stage.last_step) for stage in run.method.stages]
    partly = any(width != (1.0, 1.0) for width in widths)
    table = table_of(
        f"schedule: {run.method.name}",
        "stage",
        "steps",
        "active layers",
        *(["of their heads", "of their columns"] if partly else []),
        "layer FLOPs",
        "model FLOPs",
        *(["sent to replicas a step"] if run.data_parallel > 1 else []),
        "probability of a layer to run",
    )
    for stage, width in zip(run.method.stages, widths):
        saved = savings(run.method, run.recipe.shape, [stage])
        sent = [f"{traffic(run, stage).total / 1e6:,.1f} MB"] if run.data_parallel > 1 else []
        table.add_row(
            str(stage.index),
            f"{stage.first_step:,} to {stage.last_step:,}",
            f"{float(expected_active(run.method, stage)):.4g} of {run.recipe.model.num_layers}",
            *([f"{share:.0%}" for share in width] if partly else []),
            f"{100 * float(saved.layer_flops):.0f} %",
            f"{100 * saved.model_flops:.0f} %",
            *sent,
            _ranges(run.method.keep(stage.first_step, stage.last_step)),
        )
    return table


def paths(run: Run) -> Table | None:
    """What another number of paths a step would send; None where nothing is sent or a step has one path in any case."""
    block = run.ds.progressive_subnetwork
    if run.data_parallel == 1 or block.method == "full" or "paths_per_step" not in type(block).model_fields:
        return None
    table = table_of(
        "paths a step, and what it sends, mean of the run", "paths", "layers that any of them uses", "sent to replicas"
    )
    own = len(run.method.paths(run.steps))
    for count in sorted({own, *PATHS}):
        changed = block.model_copy(update={"paths_per_step": count})
        other = replace(run, ds=run.ds.model_copy(update={"progressive_subnetwork": changed}))
        try:
            check(other)
        except UserError:
            continue
        shares = [(stage, stage.steps / run.steps) for stage in other.method.stages]
        layers = sum(active_layers(other, stage) * share for stage, share in shares)
        sent = sum(traffic(other, stage).total * share for stage, share in shares)
        table.add_row(f"{count}{' (this run)' * (count == own)}", f"{layers:.3g}", f"{sent / 1e6:,.1f} MB")
    return table


def savings_table(run: Run) -> Table:
    table = table_of("against all layers in every step", "", "fewer", "saved")
    saved, shape = savings(run.method, run.recipe.shape), run.recipe.shape
    table.add_row("layer FLOPs", f"{saved.layer_factor:.2f}x", f"{100 * (1 - float(saved.layer_flops)):.1f} %")
    table.add_row("model FLOPs = ideal speed-up", f"{saved.model_factor:.2f}x", f"{100 * (1 - saved.model_flops):.1f} %")
    table.add_row(
        "whole run", f"{shape.training(shape.layers * float(saved.layer_flops), run.tokens_per_step * run.steps):.2e} FLOP", ""
    )
    return table


def ranks(run: Run) -> Table:
    p = run.recipe.parallel
    table = table_of(
        f"each GPU, by pipeline rank: tensor {p.tensor} x pipeline {p.pipeline} x data {run.data_parallel}"
        + (f", {p.virtual} chunks a rank" if p.virtual > 1 else ""),
        "rank",
        "layers",
        "parameters",
        "weights",
        "gradients",
        "optimizer",
        "activations, by stage",
        "buffers",
        "GiB in all",
    )
    for rank in range(p.pipeline):
        m = rank_memory(run, rank)
        weights, gradients, optimizer, buffers, total = (
            f"{n / GIB:.2f}" for n in (m.weights, m.gradients, m.optimizer, m.buffers, m.total)
        )
        activations = " ".join(f"{size / GIB:.2f}" for size in m.activations)
        table.add_row(
            str(rank), _numbers(m.layers), f"{m.parameters:,}", weights, gradients, optimizer, activations, buffers, total
        )
    return table


def target_table(proposed: Sequence[Offer | Refused], target: float) -> Table:
    table = table_of(
        f"for {target:g} times fewer layer FLOPs",
        "method",
        "path lengths",
        "fewer layer FLOPs",
        "ideal speed-up of this layout",
        "busiest pipeline rank's layers over the mean, by stage",
    )
    for offer in proposed:
        if isinstance(offer, Refused):
            table.add_row(offer.what, "–", "–", "–", "–")
        else:
            lengths = "-".join(map(str, offer.lengths))
            ranks = offer.run.recipe.parallel.pipeline
            busiest = " ".join(f"{spread(offer.run, stage).busiest(ranks):.2f}" for stage in offer.run.method.stages)
            table.add_row(offer.what, lengths, f"{offer.layer_factor:.2f}x", f"{offer.ideal:.2f}x", busiest)
    return table


def _numbers(layers: tuple[int, ...]) -> str:
    """`0-3, 8-11`"""
    parts, first = [], 0
    for place in range(1, len(layers) + 1):
        if place == len(layers) or layers[place] != layers[place - 1] + 1:
            parts.append(f"{layers[first]}-{layers[place - 1]}" if place - 1 > first else str(layers[first]))
            first = place
    return ", ".join(parts)


def table_of(title: str, *columns: str) -> Table:
    """An empty table; the head is left out of one with a name and a number a row."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=len(columns) > 2)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column.startswith("probability") else "right")
    return table


def _ranges(keep: tuple[Fraction, ...]) -> str:
    """`0: 1  1-6: 0.67  7: 1`: neighbouring layers of one probability together."""
    parts, first = [], 0
    for layer in range(1, len(keep) + 1):
        if layer == len(keep) or keep[layer] != keep[first]:
            name = str(first) if layer - 1 == first else f"{first}-{layer - 1}"
            parts.append(f"{name}: {float(keep[first]):.2g}")
            first = layer
    return "  ".join(parts)
