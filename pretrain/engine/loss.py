"""From losses of positions to what is differentiated and what is reported."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Entry = dict[str, Tensor]
"""Results of one micro-batch."""
Made = tuple[Tensor, Tensor, Tensor, Tensor]
"""What the last chunk makes: a scalar to be differentiated, and [b, s] each losses, whether no token is likelier than the label,
and the likeliest token, -1 in training."""
Reduce = Callable[[Made, Mapping[str, Tensor], int], tuple[Tensor, Tensor, Entry]]
"""From that, the arrays of the batch on the device and the number of kinds of examples to what Megatron-Core's schedule expects:
the scalar, the number of targets, and results."""


def by_kind(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Reduce losses to `sums` of losses and `counts` of targets by kind of example, [kinds] float64 each."""
    loss, losses, *_ = made
    targets = batch["targets"]
    kind = batch["kinds"].clamp(min=0).flatten().long()
    zeros = torch.zeros(number_of_kinds, dtype=torch.float64, device=losses.device)
    sums = zeros.index_add(0, kind, torch.where(targets, losses, 0.0).double().flatten())
    counts = zeros.index_add(0, kind, targets.double().flatten())
    return loss, targets.sum(dtype=torch.int), {"sums": sums, "counts": counts}


def by_position(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Keep `losses`, [b, s] float32, and `is_best`, [b, s] bool."""
    loss, losses, is_best, _ = made
    return loss, batch["targets"].sum(dtype=torch.int), {"losses": losses, "is_best": is_best}


def best_tokens(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Keep `best`, the likeliest tokens, [b, s] int64."""
    loss, _, _, best = made
    return loss, batch["targets"].sum(dtype=torch.int), {"best": best}


def agreeing(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Reduce to `sums`, at how many targets the label is the likeliest token, and `counts` of targets, [1] float64 each."""
    loss, _, is_best, _ = made
    targets = batch["targets"]
    agree = (is_best & targets).sum(dtype=torch.float64)[None]
    return loss, targets.sum(dtype=torch.int), {"sums": agree, "counts": targets.sum(dtype=torch.float64)[None]}
