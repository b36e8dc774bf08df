"""`plan`: everything that can be known of a run before it starts, on a laptop."""

from fractions import Fraction
from typing import Iterator

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from pretrain.config import Run
from pretrain.model.decoder import build_chunks, transformer_config
from pretrain.observe.console import short
from pretrain.parallel.ranks import destroy_groups, make_groups
from pretrain.subnetwork.flops import expected_active, savings

UNEVEN = Fraction(1, 4)
"""Relative distance of a layer's probability from the uniform one beyond which `plan` warns."""


def print_plan(run: Run) -> None:
    """Build the model on the meta device, which allocates nothing, and show what the run would do."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    for table in (_size(run), _batches(run), _stages(run), _savings(run)):
        console.print(table)
    for warning in warnings(run):
        console.print(f"warning: {warning}")
    console.print("everything that can be checked without data holds")


def count_parameters(run: Run) -> dict[str, int]:
    """Parameters by global name, of the model that `train` would build."""
    device = torch.device("cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        make_groups(run.recipe, device)
        with torch.device("meta"):
            chunks = build_chunks(run.recipe, transformer_config(run.recipe, torch.float32, on_gpu=False))
        return {chunk.global_name(name): p.numel() for chunk in chunks for name, p in chunk.named_parameters()}
    finally:
        destroy_groups()
        dist.destroy_process_group()


def warnings(run: Run) -> Iterator[str]:
    """What can run, but probably should not."""
    layers, method = run.recipe.model.num_layers, run.method
    for stage in method.stages:
        keep = method.keep(stage)
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
    if method.stages[-1].path_length < layers:
        yield f"the last stage runs {method.stages[-1].path_length} of {layers} layers; RaPTr ends with the full model"


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
    table = _table(f"schedule: {run.method.name}", "stage", "steps", "active layers", "layer FLOPs", "model FLOPs", "probability of a layer to run")
    for stage in run.method.stages:
        saved = savings(run.method, run.recipe.shape, [stage])
        table.add_row(
            str(stage.index),
            f"{stage.first_step:,} to {stage.last_step:,}",
            f"{float(expected_active(run.method, stage)):g} of {run.recipe.model.num_layers}",
            f"{100 * float(saved.layer_flops):.0f} %",
            f"{100 * saved.model_flops:.0f} %",
            _ranges(run.method.keep(stage)),
        )
    return table


def _savings(run: Run) -> Table:
    table = _table("against all layers in every step", "", "fewer", "saved")
    saved, shape = savings(run.method, run.recipe.shape), run.recipe.shape
    table.add_row("layer FLOPs", f"{saved.layer_factor:.2f}x", f"{100 * (1 - float(saved.layer_flops)):.1f} %")
    table.add_row("model FLOPs = ideal speed-up", f"{saved.model_factor:.2f}x", f"{100 * (1 - saved.model_flops):.1f} %")
    table.add_row("whole run", f"{shape.token(shape.layers * float(saved.layer_flops)) * run.tokens_per_step * run.steps:.2e} FLOP", "")
    return table


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
