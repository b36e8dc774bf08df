"""What all ranks come to together in a step: target tokens, the same paths, finite losses. One collective before the schedule,
one after it."""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config.run import Batching
from pretrain.data.batch import Batch
from pretrain.engine.loss import Entry
from pretrain.errors import TrainingStopped
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath, fingerprint


def targets_and_paths(ranks: Ranks, step: int, batches: Sequence[Batch], paths: Sequence[LayerPath], updates: int) -> int:
    """Count the global batch's target tokens and, in the same collective, verify that all ranks drew the same paths.

    Args:
        updates: the optimizer's fingerprint, alike on all ranks.

    Raises:
        TrainingStopped: some ranks drew other paths or have updated other layers, or no token is a target.
    """
    slots = torch.zeros(1 + 2 * ranks.world_size, dtype=torch.int64)
    if ranks.speaks_for_replica:
        slots[0] = sum(int(batch.targets.sum()) for batch in batches)
    slots[1 + 2 * ranks.rank] = fingerprint(step, paths)
    slots[2 + 2 * ranks.rank] = updates
    slots = slots.to(ranks.device)
    dist.all_reduce(slots)
    targets, *fingerprints = slots.tolist()
    for told, deed in ((fingerprints[::2], "drew other paths"), (fingerprints[1::2], "updated other layers")):
        if len(set(told)) > 1:
            raise TrainingStopped(f"step {step}: {disagreement(told, deed)}; they must run the same code, recipe and seed")
    if targets == 0:
        raise TrainingStopped(f"step {step}: no target token in the whole batch; check data.train")
    return targets


def disagreement(fingerprints: Sequence[int], deed: str) -> str:
    """Say which ranks did something else than the rest; where there is no majority, which did the same."""
    counted = Counter(fingerprints).most_common()
    parties = [", ".join(str(rank) for rank, own in enumerate(fingerprints) if own == common) for common, _ in counted]
    if counted[0][1] * 2 > len(fingerprints):
        return f"rank {', '.join(parties[1:])} {deed} than the rest"
    return f"the ranks {deed.replace('other', 'different')}: {' against '.join(parties)}"


def finite_losses(
    ranks: Ranks, batching: Batching, step: int, losses: Sequence[Tensor], seconds: float
) -> tuple[float, tuple[float, ...]]:
    """Sum the step's losses over all micro-batches and replicas; returns the sum and every rank's `seconds`.

    Args:
        losses: scalars, of this rank's micro-batches; none where it has no losses.

    Raises:
        TrainingStopped: a loss is not finite; nothing is updated yet.
    """
    by_replica = torch.zeros(batching.replicas, batching.micro_batches, dtype=torch.float64, device=ranks.device)
    if losses and ranks.speaks_for_replica:
        by_replica[ranks.data_parallel_rank] = torch.stack(list(losses))
    by_rank = torch.zeros(ranks.world_size, dtype=torch.float64, device=ranks.device)
    by_rank[ranks.rank] = seconds
    everything = torch.cat([by_replica.flatten(), by_rank])
    dist.all_reduce(everything)
    by_replica, by_rank = everything[: by_replica.numel()].view_as(by_replica), everything[by_replica.numel() :]
    bad = (~torch.isfinite(by_replica)).nonzero().tolist()
    if bad:
        replica, micro_batch = bad[0]
        loss = by_replica[replica, micro_batch].item()
        raise TrainingStopped(
            f"step {step}, micro-batch {micro_batch} of replica {replica}: the loss is {loss}; "
            "nothing was updated; the same command resumes from the newest checkpoint, if there is one"
        )
    return float(by_replica.sum()), tuple(by_rank.tolist())


def require_finite_norm(step: int, grad_norm: float) -> None:
    """Stop where the gradient's norm is not finite; ZeRO reports -1 where it is not a number.

    Raises:
        TrainingStopped: it is not.
    """
    if not 0 <= grad_norm < float("inf"):
        raise TrainingStopped(
            f"step {step}: the gradient's norm is not finite although the loss is; nothing of this step is saved; lower the "
            "learning rate and start again, from the newest checkpoint"
        )


def held_out_totals(ranks: Ranks, kinds: int, entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    """Sum losses and targets of an evaluation over all ranks, by kind of example.

    Raises:
        TrainingStopped: a sum is not finite.
    """
    totals = torch.zeros(2, kinds, dtype=torch.float64, device=ranks.device)
    for entry in entries:
        totals += torch.stack([entry["sums"], entry["counts"]])
    if not ranks.speaks_for_replica:
        totals.zero_()
    dist.all_reduce(totals)
    if not torch.isfinite(totals).all():
        raise TrainingStopped("the held-out loss is not finite although the training loss is; the newest checkpoint is older")
    sums, counts = totals.tolist()
    return sums, counts
