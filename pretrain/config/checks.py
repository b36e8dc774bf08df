"""Combinations that cannot run, each refused with the reason and what to write instead. What `plan` checks on a laptop is
this."""

import json

from pretrain.config.run import Run
from pretrain.errors import UserError

FP8_MULTIPLE = 16
"""Sides of matrices that GPUs multiply in FP8 are multiples of this."""


def check(run: Run) -> None:
    """Raise UserError for the first thing that is wrong between recipe, JSON and number of ranks."""
    _check_model(run)
    _check_layout(run)
    _check_sharding(run)
    _check_batch(run)
    _check_scheduler(run)
    _check_width(run)
    _check_precision(run)
    _check_beginning(run)


def _check_width(run: Run) -> None:
    """Tensor ranks hold whole parts of the width, so that their work is equal."""
    keys, m, where = run.ds.progressive_subnetwork, run.recipe.model, f'{run.ds_file}: "progressive_subnetwork"'
    groups, columns = (tuple(getattr(keys, name, ())) for name in ("group_lengths", "ffn_lengths"))
    if not groups and not columns:
        return
    if groups and groups[-1] != m.groups:
        raise UserError(
            f"{where}: group_lengths end with {groups[-1]}; end them with all {m.groups} groups of heads of the model"
        )
    if columns and m.ffn_hidden_size % columns[-1]:
        raise UserError(
            f"{where}: ffn_lengths end with {columns[-1]}, which does not divide model.ffn_hidden_size {m.ffn_hidden_size}"
        )
    parts, tensor = getattr(keys, "width_parts", 1), run.recipe.parallel.tensor
    if parts % tensor:
        raise UserError(f"{where}: width_parts {parts} is no multiple of parallel.tensor {tensor}, whose work would be unequal")
    if groups and m.qk_norm == "whole":
        raise UserError(f'{where}: method {keys.method} runs some heads, and model.qk_norm "whole" norms all of them together')


def _check_precision(run: Run) -> None:
    """FP8 needs bf16 beside it, and matrices whose sides a GPU can multiply in it, on every rank and for every part that runs."""
    if run.recipe.precision is None:
        return
    m, keys, tensor, where = run.recipe.model, run.ds.progressive_subnetwork, run.recipe.parallel.tensor, f"recipe {run.name}"
    if not run.ds.bf16.enabled:
        raise UserError(
            f'{run.ds_file}: precision {run.recipe.precision} needs bf16 for all else; write "bf16": {{"enabled": true}}'
        )
    groups, columns = getattr(keys, "group_lengths", ()) or (m.groups,), getattr(keys, "ffn_lengths", ()) or (1,)
    length, where_it_runs = run.recipe.data.sequence_length, "that a tensor rank runs"
    sides = {
        f"model.hidden_size {m.hidden_size}": m.hidden_size,
        f"{run.micro_batch} samples of data.sequence_length {length}": run.micro_batch * length,
    }
    for running in groups:
        queries, both = (size * running // m.groups // tensor for size in (m.query_size, 2 * m.key_size))
        sides[f"{queries} columns of queries {where_it_runs}"] = queries
        sides[f"{queries + both} rows of queries, keys and values {where_it_runs}"] = queries + both
    for running in columns:
        size = m.ffn_hidden_size * running // columns[-1] // tensor
        sides[f"{size} of model.ffn_hidden_size {where_it_runs}"] = size
    for what, size in sides.items():
        if size % FP8_MULTIPLE:
            raise UserError(
                f"{where}: precision fp8 multiplies matrices whose sides are multiples of {FP8_MULTIPLE}: {what} is not; change"
                " it, or leave precision out"
            )


def _check_beginning(run: Run) -> None:
    layers = run.recipe.model.num_layers
    if run.recipe.init_from is not None and run.method.whole(1).length < layers:
        raise UserError(
            f"recipe {run.name}: init_from fills all {layers} layers, and method {run.method.name} begins with"
            f' {run.method.whole(1).length} and makes the others from them; use another "method"'
        )


def _check_model(run: Run) -> None:
    m, where = run.recipe.model, f"recipe {run.name}"
    if m.head_dim is None and (m.hidden_size % m.num_attention_heads or m.head_size % 2):
        raise UserError(
            f"{where}: model.hidden_size {m.hidden_size} must be an even multiple of "
            f"model.num_attention_heads {m.num_attention_heads}, or model.head_dim be given"
        )
    if m.head_size % 2:
        raise UserError(f"{where}: model.head_dim {m.head_size} must be even")
    if m.num_attention_heads % m.groups:
        raise UserError(
            f"{where}: model.num_attention_heads {m.num_attention_heads} cannot be shared out to"
            f" model.num_query_groups {m.groups}; use one of"
            f" {', '.join(str(n) for n in range(1, m.num_attention_heads + 1) if m.num_attention_heads % n == 0)}"
        )
    if m.rope_scaling is not None and m.position_embedding != "rope":
        raise UserError(f"{where}: model.rope_scaling is for position_embedding rope, and it is {m.position_embedding}")
    if m.padded_vocab_size < m.vocab_size:
        raise UserError(f"{where}: model.padded_vocab_size {m.padded_vocab_size} is below model.vocab_size {m.vocab_size}")


def _check_layout(run: Run) -> None:
    m, p, where = run.recipe.model, run.recipe.parallel, f"recipe {run.name}"
    if run.world_size % p.model_ranks:
        raise UserError(
            f"{where}: {run.world_size} processes cannot hold replicas of {p.tensor} tensor x {p.pipeline} pipeline ranks; "
            f"start a multiple of {p.model_ranks}, or change parallel.tensor or parallel.pipeline"
        )
    chunks = p.pipeline * p.virtual
    if m.num_layers % chunks:
        valid = ", ".join(str(n) for n in range(1, m.num_layers + 1) if m.num_layers % n == 0)
        raise UserError(
            f"{where}: {m.num_layers} layers cannot be split over {p.pipeline} pipeline ranks x {p.virtual} "
            f"chunk{'s' if p.virtual > 1 else ''}; use {valid} in all"
        )
    if p.virtual > 1 and p.pipeline == 1:
        raise UserError(f"{where}: parallel.virtual {p.virtual} needs pipeline ranks; set parallel.pipeline to 2 or more")
    for name, size in (
        ("num_attention_heads", m.num_attention_heads),
        ("num_query_groups", m.groups),
        ("hidden_size", m.hidden_size),
        ("ffn_hidden_size", m.ffn_hidden_size),
        ("padded_vocab_size", m.padded_vocab_size),
    ):
        if size % p.tensor:
            raise UserError(f"{where}: model.{name} {size} cannot be split over parallel.tensor {p.tensor}")
    if p.sequence and p.tensor == 1:
        raise UserError(f"{where}: parallel.sequence splits over tensor ranks, and there is one; set parallel.tensor or drop it")
    if p.sequence and run.recipe.data.sequence_length % p.tensor:
        raise UserError(
            f"{where}: data.sequence_length {run.recipe.data.sequence_length} cannot be split over parallel.tensor {p.tensor} "
            "(parallel.sequence)"
        )


def _check_sharding(run: Run) -> None:
    p, stage, where = run.recipe.parallel, run.ds.zero_optimization.stage, f'{run.ds_file}: "zero_optimization.stage"'
    if run.ds.bf16.enabled and stage == 0:
        raise UserError(f"{where} 0 with bf16 cannot sum gradients in fp32 (DeepSpeed refuses it); use stage 1")
    if stage == 3 and p.pipeline > 1:
        raise UserError(
            f"{where} 3 gathers every layer anew for each micro-batch, which a pipeline has many of; use 1 or 2 with"
            f" parallel.pipeline {p.pipeline}"
        )
    if stage > 0:
        _check_layerwise(run)
        return
    for name, value, default in (
        ("zero_optimization.overlap_comm", run.ds.zero_optimization.overlap_comm, False),
        ("zero_optimization.reduce_scatter", run.ds.zero_optimization.reduce_scatter, True),
        ("communication_data_type", run.ds.communication_data_type, "fp32"),
        ("progressive_subnetwork.skipped_update", run.ds.progressive_subnetwork.skipped_update, "exact"),
    ):
        if value != default:
            raise UserError(f'{run.ds_file}: "{name}" {json.dumps(value)} needs "zero_optimization.stage" 1, 2 or 3, and it is 0')


def _check_layerwise(run: Run) -> None:
    """Stages 1 to 3 are this program's own, by layer, and have no choice in these."""
    zero = run.ds.zero_optimization
    for name, refused in (("contiguous_gradients", False), ("allgather_partitions", False), ("round_robin_gradients", True)):
        if getattr(zero, name) is refused:
            raise UserError(
                f'{run.ds_file}: "zero_optimization.{name}" {json.dumps(refused)} has no meaning in stage {zero.stage}, which'
                " goes layer by layer; remove it"
            )


def _check_batch(run: Run) -> None:
    ds, p = run.ds, run.recipe.parallel
    if run.batch % (run.micro_batch * run.data_parallel):
        raise UserError(
            f"{run.ds_file}: train_batch_size {run.batch} is not a multiple of train_micro_batch_size_per_gpu "
            f"{run.micro_batch} x {run.data_parallel} data-parallel ranks"
        )
    if ds.gradient_accumulation_steps not in ("auto", run.micro_batches):
        raise UserError(
            f"{run.ds_file}: gradient_accumulation_steps {ds.gradient_accumulation_steps} contradicts train_batch_size "
            f'{run.batch} with micro-batches of {run.micro_batch}, which give {run.micro_batches}; write "auto"'
        )
    if p.virtual > 1 and run.micro_batches % p.pipeline:
        raise UserError(
            f"{run.ds_file}: {run.micro_batches} micro-batches a rank are not a multiple of parallel.pipeline {p.pipeline}, "
            "which interleaving (parallel.virtual) needs; change the batch sizes"
        )
    paths = len(run.method.paths(run.steps))
    if run.batch % paths or (run.batch // paths) % run.micro_batch:
        raise UserError(
            f'{run.ds_file}: "progressive_subnetwork.paths_per_step" {paths} does not cut the batch of {run.batch} into '
            f"equal parts of whole micro-batches of {run.micro_batch}"
        )


def _check_scheduler(run: Run) -> None:
    if run.ds.scheduler is None:
        return
    total, top = run.ds.scheduler.params.total_num_steps, run.ds.scheduler.params.warmup_max_lr
    if total not in (None, "auto", run.steps):
        raise UserError(
            f'{run.ds_file}: "scheduler.params.total_num_steps" {total} contradicts the run\'s {run.steps} steps; write "auto"'
        )
    warm_up, decay = run.ds.scheduler.params.warmup_num_steps, run.ds.scheduler.params.decay_num_steps
    if decay is not None and warm_up + decay > run.steps:
        raise UserError(
            f'{run.ds_file}: "scheduler.params.decay_num_steps" {decay} and "warmup_num_steps" {warm_up} are more than the run\'s'
            f" {run.steps} steps; lower one of them"
        )
    if top not in (None, "auto", run.ds.optimizer.params.lr):
        raise UserError(
            f'{run.ds_file}: "scheduler.params.warmup_max_lr" {top} contradicts "optimizer.params.lr" '
            f'{run.ds.optimizer.params.lr}; write "auto"'
        )
