"""From losses of positions to what is differentiated and what is reported."""

import torch
from torch import Tensor

Entry = dict[str, Tensor]
"""Results of one micro-batch: `sums` of losses and `counts` of targets, [kinds of examples] float64 each."""


def reduce_losses(
    loss: Tensor, losses: Tensor, targets: Tensor, example_kinds: Tensor, number_of_kinds: int
) -> tuple[Tensor, Tensor, Entry]:
    """Reduce the losses of a micro-batch to what Megatron-Core's schedule expects.

    Args:
        loss: the scalar that is differentiated.
        losses: [b, s].
        targets: [b, s] bool, where the label counts.
        example_kinds: [b, s], which kind of example a position belongs to; below 0 where there is none.

    Returns:
        The scalar that is differentiated, the number of targets, and sums by kind of example.
    """
    kind = example_kinds.clamp(min=0).flatten().long()
    zeros = torch.zeros(number_of_kinds, dtype=torch.float64, device=losses.device)
    sums = zeros.index_add(0, kind, torch.where(targets, losses, 0.0).double().flatten())
    counts = zeros.index_add(0, kind, targets.double().flatten())
    return loss, targets.sum(dtype=torch.int), {"sums": sums, "counts": counts}
