"""What `plan` shows: model, batch, stages, savings, and on a cluster memory, balance, time and money."""

from collections.abc import Iterator
from fractions import Fraction

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from pretrain.config import Run
from pretrain.cost.flops import expected_active, savings
from pretrain.model.decoder import build_chunks, transformer_config
from pretrain.observe.console import short
from pretrain.plan.balance import spread
from pretrain.plan.cost import USABLE, Cluster, fits, hours, speed, suggest, why_not_plain
from pretrain.plan.memory import GIB, rank_memory
from pretrain.plan.target import Offer, fixed_layers, offers
from pretrain.ranks.groups import destroy_groups, make_groups
from pretrain.subnetwork.methods.independent import Independent
from pretrain.subnetwork.methods.raptr import Raptr

MOST_SUGGESTIONS = 12
PAPERS_MOST = 1.33
"""Times fewer layer operations, of BERT (arXiv 2402.05913)."""
UNBALANCED = 1.02
"""Active layers of the busiest pipeline rank over the mean beyond which `plan` warns."""
UNEVEN = Fraction(1, 4)
"""Relative distance of a layer's probability from the uniform one beyond which `plan` warns."""


def print_plan(run: Run, cluster: Cluster | None = None, suggestions: bool = False, target: float | None = None) -> None:
    """Build the model on the meta device, which allocates nothing, and show what the run would do.

    Args:
        target: how many times fewer layer operations path lengths are to be proposed for.
    """
    proposed = [] if target is None else offers(run, target)  # what cannot be fulfilled is told first
    console = _console()
    tables = [_size(run), _batches(run), _stages(run), _savings(run), _ranks(run)]
    if cluster is not None:
        tables.append(_cost(run, cluster))
        if suggestions:
            tables.append(_suggestions(run, cluster))
    if proposed:
        tables.append(_target(proposed, target))
    for table in tables:
        console.print(table)
    for warning in [
        *warnings(run),
        *([] if cluster is None else _room(run, cluster)),
        *(_of_target(proposed, target) if proposed else []),
    ]:
        console.print(f"warning: {warning}")
    console.print("everything that can be checked without data holds")


def print_suggestions(run: Run, cluster: Cluster) -> bool:
    """The layouts alone, for a run whose own cannot run; False if there is none."""
    table = _suggestions(run, cluster)
    _console().print(
        table if table.row_count else f"no layout of this recipe can run there; without splitting the model: {why_not_plain(run)}"
    )
    return table.row_count > 0


def count_parameters(run: Run) -> dict[str, int]:
    """Parameters by global name, of the whole model as one process would build it."""
    recipe = run.recipe.model_copy(update={"parallel": type(run.recipe.parallel)()})
    device = torch.device("cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        make_groups(recipe.parallel, recipe.seed, device)
        with torch.device("meta"):
            chunks = build_chunks(recipe, transformer_config(recipe, torch.float32, on_gpu=False))
        return {chunk.global_name(name): p.numel() for chunk in chunks for name, p in chunk.named_parameters()}
    finally:
        destroy_groups()
        dist.destroy_process_group()


def warnings(run: Run) -> Iterator[str]:
    """What can run, but probably should not."""
    yield from run.notices
    layers, method = run.recipe.model.num_layers, run.method
    for stage in method.stages if isinstance(method, Raptr) else ():
        keep = method.keep(stage.first_step, stage.last_step)
        free = [(layer, p) for layer, p in enumerate(keep) if p != 1]
        if not free:
            continue
        fixed = layers - len(free)
        even = Fraction(stage.path_length - fixed, len(free))
        far = [layer for layer, p in free if abs(p - even) > UNEVEN * even]
        if far:
            yield (
                f"stage {stage.index}: layers {far} run with probability {float(keep[far[0]]):.2f}, while "
                f"{float(even):.2f} would be even; balance_groups or fixed_layers make the groups unequal"
            )
    yield from _independent_draws(run)
    yield from _balance(run)
    warm_up = run.ds.scheduler.params.warmup_num_steps if run.ds.scheduler else 0
    if warm_up >= run.steps:
        yield f"the learning rate warms up for {warm_up} steps, longer than the run; lower scheduler.params.warmup_num_steps"
    if method.name == "raptr" and method.stages[-1].path_length < layers:
        yield f"the last stage runs {method.stages[-1].path_length} of {layers} layers; RaPTr ends with the full model"


def _room(run: Run, cluster: Cluster) -> Iterator[str]:
    memory = {rank: rank_memory(run, rank).total / GIB for rank in range(run.recipe.parallel.pipeline)}
    fullest = max(memory, key=memory.__getitem__)
    if not fits(memory[fullest], cluster):
        yield (
            f"pipeline rank {fullest} needs about {memory[fullest]:.1f} GiB, and of a {cluster.gpu_name}'s"
            f" {cluster.gpu.memory_gib} GiB {100 * USABLE:.0f} % can be used; more ranks, a higher zero stage, smaller"
            " micro-batches, --model.recompute layer or smaller zero_optimization buckets need less; --suggest looks for a"
            " layout"
        )


def _independent_draws(run: Run) -> Iterator[str]:
    """Replicas that run different paths at a time wait for the longest."""
    block = run.ds.progressive_subnetwork
    at_once = min(run.data_parallel, block.paths_per_step)
    independent = isinstance(run.method, Independent) or (isinstance(run.method, Raptr) and block.sampler == "bernoulli")
    if not independent or at_once == 1:
        return
    for stage in run.method.stages:
        keep = [float(p) for p in run.method.keep(stage.first_step, stage.last_step)]
        mean, longest = sum(keep), expected_longest(keep, at_once)
        if longest > 1.05 * mean:
            yield (
                f"stage {stage.index}: paths are drawn independently, and the longest of {at_once} at a time has about "
                f"{longest:.1f} layers where the mean is {mean:.3g}; the slowest replica sets the pace"
                + (", exact and balanced avoid it" if isinstance(run.method, Raptr) else "; fewer paths_per_step lessen it")
            )


def expected_longest(keep: list[float], draws: int) -> float:
    """Expected length of the longest of `draws` independent paths whose layers are kept with these probabilities."""
    chance = [1.0]
    for p in keep:
        chance = [a * (1 - p) + b * p for a, b in zip([*chance, 0.0], [0.0, *chance])]
    below = [sum(chance[: length + 1]) ** draws for length in range(len(chance))]
    return sum(1 - share for share in below[:-1])


def _balance(run: Run) -> Iterator[str]:
    """Pipeline ranks are equally busy in every step if they own whole groups of a balanced sampler, and the groups are alike."""
    p = run.recipe.parallel
    if p.pipeline == 1 or run.method.name == "full":
        return
    uneven = {stage.index: spread(run, stage).busiest(p.pipeline) for stage in run.method.stages}
    worst = max(uneven, key=uneven.__getitem__)
    if uneven[worst] > UNBALANCED:
        mend = (
            f'; use "sampler": "balanced" with balance_groups a multiple of {p.pipeline} that divides the path lengths'
            if isinstance(run.method, Raptr)
            else ""
        )
        yield (
            f"paths are not balanced over {p.pipeline} pipeline ranks: in stage {worst} the busiest one runs {uneven[worst]:.2f}"
            f" times the mean, and sets the pace{mend}"
        )


def _size(run: Run) -> Table:
    table = _table(f"{run.name}: model", "part", "parameters")
    parameters = count_parameters(run)
    layers = sum(n for name, n in parameters.items() if name.startswith("decoder.layers."))
    table.add_row(f"{run.recipe.model.num_layers} layers", f"{layers:,}")
    for name, count in parameters.items():
        if not name.startswith("decoder.layers."):
            table.add_row(name.removesuffix(".weight"), f"{count:,}")
    table.add_row("all", f"{sum(parameters.values()):,}")
    return table


def _batches(run: Run) -> Table:
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


def _stages(run: Run) -> Table:
    table = _table(
        f"schedule: {run.method.name}",
        "stage",
        "steps",
        "active layers",
        "layer FLOPs",
        "model FLOPs",
        "probability of a layer to run",
    )
    for stage in run.method.stages:
        saved = savings(run.method, run.recipe.shape, [stage])
        table.add_row(
            str(stage.index),
            f"{stage.first_step:,} to {stage.last_step:,}",
            f"{float(expected_active(run.method, stage)):.4g} of {run.recipe.model.num_layers}",
            f"{100 * float(saved.layer_flops):.0f} %",
            f"{100 * saved.model_flops:.0f} %",
            _ranges(run.method.keep(stage.first_step, stage.last_step)),
        )
    return table


def _savings(run: Run) -> Table:
    table = _table("against all layers in every step", "", "fewer", "saved")
    saved, shape = savings(run.method, run.recipe.shape), run.recipe.shape
    table.add_row("layer FLOPs", f"{saved.layer_factor:.2f}x", f"{100 * (1 - float(saved.layer_flops)):.1f} %")
    table.add_row("model FLOPs = ideal speed-up", f"{saved.model_factor:.2f}x", f"{100 * (1 - saved.model_flops):.1f} %")
    table.add_row(
        "whole run", f"{shape.token(shape.layers * float(saved.layer_flops)) * run.tokens_per_step * run.steps:.2e} FLOP", ""
    )
    return table


def _ranks(run: Run) -> Table:
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


def _cost(run: Run, cluster: Cluster) -> Table:
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


def _suggestions(run: Run, cluster: Cluster) -> Table:
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


def _target(proposed: list[Offer], target: float) -> Table:
    table = _table(
        f"for {target:g} times fewer layer FLOPs",
        "method",
        "path lengths",
        "fewer layer FLOPs",
        "ideal speed-up of this layout",
        "busiest pipeline rank's layers over the mean, by stage",
    )
    for offer in proposed:
        if offer.run is None:
            table.add_row(offer.what, "–", "–", "–", "–")
        else:
            lengths = "-".join(map(str, offer.run.ds.progressive_subnetwork.path_lengths))
            ranks = offer.run.recipe.parallel.pipeline
            busiest = " ".join(f"{spread(offer.run, stage).busiest(ranks):.2f}" for stage in offer.run.method.stages)
            table.add_row(offer.what, lengths, f"{offer.layer_factor:.2f}x", f"{offer.ideal:.2f}x", busiest)
    return table


def _of_target(proposed: list[Offer], target: float) -> Iterator[str]:
    """What hurts about the first offer, and what stands in the way of another."""
    first = proposed[0]
    yield from (f"{offer.what} cannot run so: {offer.why}" for offer in proposed if offer.run is None)
    if first.run is None:
        return
    layers, lengths = first.run.recipe.model.num_layers, first.run.ds.progressive_subnetwork.path_lengths
    if abs(first.layer_factor / target - 1) > 0.02:
        yield f"no schedule of whole layers comes nearer to {target:g} than {first.layer_factor:.2f}"
    fixed = fixed_layers(first.run.ds.progressive_subnetwork)
    if bare := [stage.index for stage in first.run.method.stages if stage.path_length == fixed < layers]:
        yield (
            f"in stage{'s' * (len(bare) > 1)} {', '.join(map(str, bare))} the {fixed} fixed layers alone would run: the others"
            " would not be trained there"
        )
    if lengths[0] < layers / 2:
        yield (
            f"the first stage would run {lengths[0]} of {layers} layers; the paper's schedules begin with half or more, and less"
            " is untested"
        )
    if target > PAPERS_MOST:
        yield f"the paper reports {PAPERS_MOST:g} times fewer layer FLOPs at most; what more costs in loss is not known"
    for warning in warnings(first.run):
        if warning not in first.run.notices:
            yield f"with {first.what}: {warning}"


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=110)


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
