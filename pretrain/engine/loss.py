"""From losses of targets to what is differentiated and what is reported."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Entry = dict[str, Tensor]
"""Results of one micro-batch."""
Made = tuple[Tensor, Tensor, Tensor, Tensor]
"""What the last chunk makes: a scalar to be differentiated, and of each target, [n], its loss, whether no token is likelier than
the label, and the likeliest token, -1 in training."""
Reduce = Callable[[Made, Mapping[str, Tensor], int], tuple[Tensor, Tensor, Entry]]
"""From that, the arrays of the micro-batch on the device and the number of kinds of examples to what Megatron-Core's schedule
expects: the scalar, the number of targets, and results."""


def by_kind(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Reduce losses to `sums` of losses and `counts` of targets by kind of example, [kinds] float64 each."""
    loss, losses, *_ = made
    kind = batch["kinds"].long()
    zeros = torch.zeros(number_of_kinds, dtype=torch.float64, device=losses.device)
    sums = zeros.index_add(0, kind, losses.double())
    counts = zeros.index_add(0, kind, torch.ones_like(losses, dtype=torch.float64))
    return loss, _targets(batch), {"sums": sums, "counts": counts}


def by_position(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Keep `losses`, [b, s] float32, and `is_best`, [b, s] bool; 0 where nothing is a target."""
    loss, losses, is_best, _ = made
    return loss, _targets(batch), {"losses": _in_place(losses, batch), "is_best": _in_place(is_best, batch)}


def best_tokens(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Keep `best`, the likeliest tokens, [b, s] int64; 0 where nothing is a target."""
    loss, _, _, best = made
    return loss, _targets(batch), {"best": _in_place(best, batch)}


def agreeing(made: Made, batch: Mapping[str, Tensor], number_of_kinds: int) -> tuple[Tensor, Tensor, Entry]:
    """Reduce to `sums`, at how many targets the label is the likeliest token, and `counts` of targets, [1] float64 each."""
    loss, _, is_best, _ = made
    targets = _targets(batch)
    return loss, targets, {"sums": is_best.sum(dtype=torch.float64)[None], "counts": targets.double()[None]}


def _targets(batch: Mapping[str, Tensor]) -> Tensor:
    places = batch["places"]
    return torch.full((), len(places), dtype=torch.int, device=places.device)


def _in_place(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """[b, s], from [n]."""
    samples, length = batch["tokens"].shape
    return values.new_zeros(length * samples).index_copy(0, batch["places"], values).view(length, samples).T
