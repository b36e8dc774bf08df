"""Layouts, a launch that trains on several of them, and how far their results are apart."""

import json

import torch

from tests.support.launch import torchrun

TOLERANCE = 1e-4
BF16_LOSS, BF16_NORM = 2e-3, 2e-2
"""Against one process in bf16: sums of tensor ranks are rounded to bf16 in another order."""

BATCH = {"ds.train_batch_size": 16, "ds.train_micro_batch_size_per_gpu": 4}
"""Four micro-batches in a step."""
REPLICAS = {"ds.train_micro_batch_size_per_gpu": 2}
"""Four micro-batches for each of two replicas."""


def layout(tensor=1, pipeline=1, virtual=1, sequence=False, zero=1, **more) -> dict[str, str]:
    settings = {"parallel.tensor": tensor, "parallel.pipeline": pipeline, "parallel.virtual": virtual}
    settings |= {"parallel.sequence": str(sequence).lower(), "ds.zero_optimization.stage": zero} | BATCH
    return {key: str(value) for key, value in {**settings, **more}.items()}


APART = {**REPLICAS, "ds.progressive_subnetwork.paths_per_step": 8}
"""Two replicas, of which one runs even paths and the other odd ones, so that they skip different layers."""
OVERLAP = {"ds.zero_optimization.overlap_comm": "true", "ds.zero_optimization.reduce_bucket_size": "9000"}
"""A layer's sum starts while others are in their backward pass, and takes several messages."""
RECOMPUTE = {"model.recompute": "layer"}
SELECTIVE = {"model.recompute": "selective"}
COMPILED = {"compile": "layers"}
BF16 = {"ds.bf16.enabled": "true"}
FP8 = {**BF16, "precision": "fp8", "model.ffn_hidden_size": "64"}
"""Sides of all matrices are multiples of 16, on two tensor ranks too."""
GROUPED = {
    "model.num_query_groups": "2", "model.head_dim": "12", "model.qk_norm": "true", "model.biases": "qkv",
    "model.rope_scaling": "{type: yarn, factor: 4.0, original_length: 32}", "model.embedding_scale": "3.0",
    "model.logit_softcap": "2.0", "model.z_loss": "0.001",
}  # fmt: skip
"""Queries that share keys and values, norms of both, and whatever else makes a layer of other shapes than the plain one."""
AFTER = {
    "model.num_query_groups": "2", "model.head_dim": "12", "model.qk_norm": "whole", "model.norm_placement": "after",
    "model.init_std": "0.2",
}  # fmt: skip
"""Norms of what branches give, and of the queries of all heads together, of which tensor ranks have some each. What is normed is
not so small that the norm makes much of its rounding."""
PARTS = {
    "ds.progressive_subnetwork": "{method: raptr_parts, path_lengths: 4-6-8, group_lengths: 2-2-4, ffn_lengths: 2-4-6,"
    " skipped_update: exact,"
    " width_parts: 2, paths_per_step: 2}",
}
"""Some layers, of which some groups of heads and some feed-forward columns run."""
ONE = {
    "fp32": layout(),
    "normed after": layout(**AFTER),
    "parts": layout(**PARTS),
    "grouped": layout(**GROUPED),
    "apart": layout(**APART),
    "bf16": layout(**BF16),
    "apart in bf16": layout(**APART, **BF16),
    "fp8": layout(**FP8),
    "fp8's size in bf16": layout(**{**FP8, "precision": "null"}),
}


def twice(cases: dict[str, dict]) -> dict[str, dict]:
    """Each layout as it is and with recomputation."""
    return {
        name + suffix: case | more for name, case in cases.items() for suffix, more in (("", {}), (", recomputed", RECOMPUTE))
    }


TWO = twice(
    {
        "TP2": layout(tensor=2),
        "PP2": layout(pipeline=2),
        "PP2 with two virtual chunks": layout(pipeline=2, virtual=2),
        "DP2, replicas on paths apart": layout(**APART),
        "DP2 with ZeRO-2": layout(zero=2, **REPLICAS),
        "DP2 with ZeRO-3": layout(zero=3, **REPLICAS),
    }
) | {
    "TP2 with sequence parallelism": layout(tensor=2, sequence=True),
    "DP2": layout(**REPLICAS),
    "DP2 without ZeRO, replicas on paths apart": layout(zero=0, **APART),
    "PP2 with two virtual chunks, without ZeRO": layout(pipeline=2, virtual=2, zero=0),
    "TP2, selectively recomputed": layout(tensor=2, **SELECTIVE),
    "PP2 with two virtual chunks, selectively recomputed": layout(pipeline=2, virtual=2, **SELECTIVE),
    "TP2, compiled": layout(tensor=2, **COMPILED),
    "TP2, grouped": layout(tensor=2, **GROUPED),
    "TP2 with sequence parallelism, grouped, selectively recomputed, compiled": layout(
        tensor=2, sequence=True, **GROUPED, **SELECTIVE, **COMPILED
    ),
    "TP2, parts": layout(tensor=2, **PARTS),
    "TP2 with sequence parallelism, parts, selectively recomputed, compiled": layout(
        tensor=2, sequence=True, **PARTS, **SELECTIVE, **COMPILED
    ),
    "PP2, parts, recomputed": layout(pipeline=2, **PARTS, **RECOMPUTE),
    "DP2 with ZeRO-3, parts": layout(zero=3, **REPLICAS, **PARTS),
    "TP2, normed after, recomputed": layout(tensor=2, **AFTER, **RECOMPUTE),
    "TP2 with sequence parallelism, normed after, selectively recomputed, compiled": layout(
        tensor=2, sequence=True, **AFTER, **SELECTIVE, **COMPILED
    ),
    "DP2 with ZeRO-3, normed after": layout(zero=3, **REPLICAS, **AFTER),
    "PP2, grouped, recomputed": layout(pipeline=2, **GROUPED, **RECOMPUTE),
    "DP2, grouped": layout(**REPLICAS, **GROUPED),
    "DP2 with ZeRO-3, grouped": layout(zero=3, **REPLICAS, **GROUPED),
    "DP2 with ZeRO-3, grouped, recomputed": layout(zero=3, **REPLICAS, **GROUPED, **RECOMPUTE),
    "TP2 with sequence parallelism, selectively recomputed, compiled": layout(tensor=2, sequence=True, **SELECTIVE, **COMPILED),
    "PP2 with two virtual chunks, recomputed, compiled": layout(pipeline=2, virtual=2, **RECOMPUTE, **COMPILED),
    "DP2 with ZeRO-3, selectively recomputed, compiled": layout(zero=3, **REPLICAS, **SELECTIVE, **COMPILED),
    "DP2, replicas on paths apart, overlapped, compiled": layout(**APART, **OVERLAP, **COMPILED),
    "DP2 with ZeRO-2, overlapped, recomputed": layout(zero=2, **REPLICAS, **OVERLAP, **RECOMPUTE),
    "DP2 with ZeRO-3, overlapped, selectively recomputed": layout(zero=3, **REPLICAS, **OVERLAP, **SELECTIVE),
    "bf16 DP2, replicas on paths apart, overlapped": layout(**APART, **OVERLAP, **BF16),
    "bf16 DP2, replicas on paths apart": layout(**APART, **BF16),
    "bf16 DP2 with ZeRO-2": layout(zero=2, **REPLICAS, **BF16),
    "bf16 DP2 with ZeRO-3": layout(zero=3, **REPLICAS, **BF16),
    "fp8 TP2 with sequence parallelism": layout(tensor=2, sequence=True, **FP8),
    "fp8 TP2, selectively recomputed, compiled": layout(tensor=2, **FP8, **SELECTIVE, **COMPILED),
    "fp8 PP2, recomputed": layout(pipeline=2, **FP8, **RECOMPUTE),
    "fp8 DP2 with ZeRO-3": layout(zero=3, **FP8, **REPLICAS),
    "DP2 with ZeRO-3, replicas on paths apart, overlapped": layout(
        zero=3, **APART, **OVERLAP, **{"ds.zero_optimization.allgather_bucket_size": "7000"}
    ),
}
FOUR = twice(
    {
        "PP4": layout(pipeline=4),
        "TP2 x PP2 with sequence parallelism": layout(tensor=2, pipeline=2, sequence=True),
        "DP2 x PP2 with two virtual chunks": layout(pipeline=2, virtual=2, **REPLICAS),
        "TP2 x DP2, replicas on paths apart": layout(tensor=2, **APART),
        "PP2 x DP2, replicas on paths apart": layout(pipeline=2, **APART),
    }
) | {
    "TP2 x PP2 with sequence parallelism, without ZeRO": layout(tensor=2, pipeline=2, sequence=True, zero=0),
    "TP2 x DP2 with ZeRO-2": layout(tensor=2, zero=2, **REPLICAS),
    "TP2 x DP2 with ZeRO-3 and sequence parallelism": layout(tensor=2, sequence=True, zero=3, **REPLICAS),
    "TP2 x DP2 with ZeRO-3 and sequence parallelism, overlapped, recomputed": layout(
        tensor=2, sequence=True, zero=3, **REPLICAS, **OVERLAP, **RECOMPUTE
    ),
    "TP2 x DP2 with ZeRO-2, overlapped": layout(tensor=2, zero=2, **REPLICAS, **OVERLAP),
    "TP2 x DP2 with sequence parallelism, overlapped": layout(tensor=2, sequence=True, **REPLICAS, **OVERLAP),
    "DP2 x PP2 with two virtual chunks, overlapped": layout(pipeline=2, virtual=2, **REPLICAS, **OVERLAP),
    "PP2 x DP2, replicas on paths apart, overlapped": layout(pipeline=2, **APART, **OVERLAP),
    "PP2 x DP2 with ZeRO-2, replicas on paths apart, overlapped": layout(pipeline=2, zero=2, **APART, **OVERLAP),
    "PP2 x DP2 with ZeRO-2, replicas on paths apart": layout(
        pipeline=2, zero=2, **APART, **{"ds.zero_optimization.reduce_bucket_size": "9000"}
    ),
    "TP2 x PP2 with sequence parallelism, compiled": layout(tensor=2, pipeline=2, sequence=True, **COMPILED),
    "bf16 TP2 x PP2": layout(tensor=2, pipeline=2, **BF16),
}


def train(project, folder, processes: int, cases: dict) -> tuple[dict, str]:
    """Results by case, and what was written to standard error."""
    out, file = folder / f"{processes}.pt", folder / f"{processes}.json"
    file.write_text(json.dumps(cases))
    process = torchrun(processes, "tests.support.worker", project.recipe, project.ds, out, file)
    try:
        _, errors = process.communicate(timeout=900)
    finally:
        process.kill()
    return (torch.load(out) if process.returncode == 0 else {}), errors


def distances(ours: dict, theirs: dict) -> dict[str, float]:
    a, b = torch.tensor(ours["rows"]), torch.tensor(theirs["rows"])
    assert ours["weights"].keys() == theirs["weights"].keys()
    return {
        "loss": float((a[:, 0] - b[:, 0]).abs().max()),
        "norm": float(((a[:, 1] - b[:, 1]) / b[:, 1]).abs().max()),
        "weights": float(torch.stack([(w - theirs["weights"][name]).abs().max() for name, w in ours["weights"].items()]).max()),
        "evaluation": abs(ours["evaluation"] - theirs["evaluation"]),
    }
