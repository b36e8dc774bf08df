"""What `plan` shows: model, batch, stages, savings, and on a cluster memory, balance, time and money."""

from collections.abc import Sequence
from fractions import Fraction

from rich.table import Table

from pretrain.config import Run
from pretrain.cost.flops import expected_active, savings
from pretrain.observe.console import short
from pretrain.plan.balance import spread
from pretrain.plan.cost import Cluster, hours, speed, suggest
from pretrain.plan.link import BENDS_AT, Links, forecast, scaled
from pretrain.plan.memory import GIB, rank_memory
from pretrain.plan.parameters import count_parameters
from pretrain.plan.target import Offer, Refused
from pretrain.plan.wire import traffic

MOST_SUGGESTIONS = 12


def size(run: Run) -> Table:
    table = _table(f"{run.name}: model", "part", "parameters")
    parameters = count_parameters(run)
    layers = sum(n for name, n in parameters.items() if name.startswith("decoder.layers."))
    table.add_row(f"{run.recipe.model.num_layers} layers", f"{layers:,}")
    for name, count in parameters.items():
        if not name.startswith("decoder.layers."):
            table.add_row(name.removesuffix(".weight"), f"{count:,}")
    table.add_row("all", f"{sum(parameters.values()):,}")
    return table


def batches(run: Run) -> Table:
    table = _table("batch", "what", "how many")
    length = run.recipe.data.sequence_length
    rows = {
        "samples in a step": f"{run.batch} of {length} tokens",
        "micro-batches a rank": f"{run.micro_batches} of {run.micro_batch} samples",
        "data-parallel ranks": run.data_parallel,
        "paths a step": len(run.method.paths(run.steps)),
        "tokens a step": f"{run.tokens_per_step:,}",
        "steps": f"{run.steps:,}",
        "tokens": short(run.tokens_per_step * run.steps),
        "precision": "bf16, fp32 masters and gradient sums" if run.ds.bf16.enabled else "fp32",
        "zero stage": run.ds.zero_optimization.stage,
    }
    for what, value in rows.items():
        table.add_row(what, str(value))
    return table


def stages(run: Run) -> Table:
    table = _table(
        f"schedule: {run.method.name}",
        "stage",
        "steps",
        "active layers",
        "layer FLOPs",
        "model FLOPs",
        *(["sent to replicas a step"] if run.data_parallel > 1 else []),
        "probability of a layer to run",
    )
    for stage in run.method.stages:
        saved = savings(run.method, run.recipe.shape, [stage])
        sent = [f"{traffic(run, stage).total / 1e6:,.1f} MB"] if run.data_parallel > 1 else []
        table.add_row(
            str(stage.index),
            f"{stage.first_step:,} to {stage.last_step:,}",
            f"{float(expected_active(run.method, stage)):.4g} of {run.recipe.model.num_layers}",
            f"{100 * float(saved.layer_flops):.0f} %",
            f"{100 * saved.model_flops:.0f} %",
            *sent,
            _ranges(run.method.keep(stage.first_step, stage.last_step)),
        )
    return table


def savings_table(run: Run) -> Table:
    table = _table("against all layers in every step", "", "fewer", "saved")
    saved, shape = savings(run.method, run.recipe.shape), run.recipe.shape
    table.add_row("layer FLOPs", f"{saved.layer_factor:.2f}x", f"{100 * (1 - float(saved.layer_flops)):.1f} %")
    table.add_row("model FLOPs = ideal speed-up", f"{saved.model_factor:.2f}x", f"{100 * (1 - saved.model_flops):.1f} %")
    table.add_row(
        "whole run", f"{shape.training(shape.layers * float(saved.layer_flops), run.tokens_per_step * run.steps):.2e} FLOP", ""
    )
    return table


def ranks(run: Run) -> Table:
    p = run.recipe.parallel
    table = _table(
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


def cost(run: Run, cluster: Cluster) -> Table:
    table = _table(
        f"{cluster.nodes} node{'s' * (cluster.nodes > 1)} of {cluster.gpus_per_node} {cluster.gpu_name}, {100 * cluster.mfu:g}"
        " % MFU",
        "",
        "all layers",
        run.method.name,
    )
    full, paths = hours(run, cluster)
    pace = speed(run)
    table.add_row("hours", f"{full:,.1f}", f"{paths:,.1f}")
    table.add_row("GPU hours", f"{full * cluster.gpus:,.1f}", f"{paths * cluster.gpus:,.1f}")
    if cluster.price_per_gpu_hour is not None:
        price = cluster.price_per_gpu_hour * cluster.gpus
        table.add_row("cost", f"{full * price:,.0f}", f"{paths * price:,.0f}")
    table.add_row("ideal speed-up of this layout", "1.00x", f"{1 / pace.ratio:.2f}x")
    table.add_row("busiest pipeline rank's share of the operations", f"{100 * pace.busiest:.1f} %", "")
    if run.recipe.parallel.pipeline > 1:
        even = [spread(run, stage).busiest(run.recipe.parallel.pipeline) for stage in run.method.stages]
        table.add_row(
            "busiest pipeline rank's active layers over the mean, by stage", "1.00", " ".join(f"{ratio:.2f}" for ratio in even)
        )
    table.add_row("busiest pipeline rank waits (fill and drain)", f"{100 * pace.bubble:.1f} %", "")
    return table


def link(run: Run, cluster: Cluster, links: Links) -> Table:
    found = forecast(run, cluster, links)
    table = _table(
        f"steps with {links.node:g} Gbit/s between nodes and {links.gpu:g} in them; {100 * cluster.mfu:g} % MFU but for waiting",
        "",
        "computing",
        "sent by a GPU",
        "step",
        "waits",
    )
    named = [("all layers", found.full), *((f"stage {n}", pace) for n, pace in enumerate(found.stages, start=1))]
    for name, pace in named:
        table.add_row(
            name,
            f"{pace.computing * 1000:,.1f} ms",
            f"{pace.sent.total / 1e6:,.1f} MB",
            f"{pace.whole * 1000:,.1f} ms",
            f"{100 * (1 - pace.computing / pace.whole):.1f} %",
        )
    table.add_row("speed-up of the run", f"{1 / speed(run).ratio:.2f}x", "", f"{found.speedup:.2f}x", "")
    return table


def scale(run: Run, cluster: Cluster, links: Links, most: int) -> Table:
    table = _table(
        f"with more GPUs and the same batch, to {most:,}",
        "GPUs",
        "hours, all layers",
        f"hours, {run.method.name}",
        "speed-up",
        "ideal",
        "waits",
        "",
    )
    bent = False
    for larger, grown in scaled(run, cluster, most):
        if grown is None:
            table.add_row(f"{larger.gpus:,}", "–", "–", "–", "–", "–", "cannot run so")
            continue
        found = forecast(grown, larger, links)
        bends, bent = not bent and found.waits > BENDS_AT, bent or found.waits > BENDS_AT
        table.add_row(
            f"{larger.gpus:,}",
            f"{found.full.whole * run.steps / 3600:,.1f}",
            f"{found.seconds * run.steps / 3600:,.1f}",
            f"{found.speedup:.2f}x",
            f"{1 / speed(grown).ratio:.2f}x",
            f"{100 * found.waits:.1f} %",
            "bends here" if bends else "",
        )
    return table


def suggestions(run: Run, cluster: Cluster) -> Table:
    table = _table(
        "layouts that can run, the best first",
        "tensor",
        "sequence",
        "pipeline",
        "chunks",
        "data",
        "GiB a GPU",
        "fits",
        "step, relative",
        "ideal speed-up",
    )
    found = suggest(run, cluster)
    for s in found[:MOST_SUGGESTIONS]:
        p = s.run.recipe.parallel
        table.add_row(
            str(p.tensor),
            "yes" if p.sequence else "no",
            str(p.pipeline),
            str(p.virtual),
            str(s.run.data_parallel),
            f"{s.memory_gib:.1f}",
            "yes" if s.fits else "no",
            f"{s.seconds / found[0].seconds:.2f}",
            f"{1 / speed(s.run).ratio:.2f}x",
        )
    return table


def target_table(proposed: Sequence[Offer | Refused], target: float) -> Table:
    table = _table(
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


def _table(title: str, *columns: str) -> Table:
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
