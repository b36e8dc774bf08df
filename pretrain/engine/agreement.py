"""What all ranks come to together in a step: target tokens, the same paths, finite losses. One collective before the schedule,
between CPUs, and one after it, on the device, whose result is read when somebody wants it."""

import math
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
from pretrain.results import StepResult
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
    dist.all_reduce(slots)  # on the CPU: the device may still be busy with the step before
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


def sum_losses(ranks: Ranks, batching: Batching, losses: Sequence[Tensor], seconds: float) -> Tensor:
    """Bring together the step's losses and each rank's `seconds`: [replicas x micro-batches + ranks] float64 on the device.

    Args:
        losses: scalars, of this rank's micro-batches; none where it has no losses.
    """
    by_replica = torch.zeros(batching.replicas, batching.micro_batches, dtype=torch.float64, device=ranks.device)
    if losses and ranks.speaks_for_replica:
        by_replica[ranks.data_parallel_rank] = torch.stack(list(losses))
    by_rank = torch.zeros(ranks.world_size, dtype=torch.float64, device=ranks.device)
    by_rank[ranks.rank].fill_(seconds)
    everything = torch.cat([by_replica.flatten(), by_rank])
    dist.all_reduce(everything)
    return everything


class Outcome:
    """A step that has been begun: its numbers are on their way from the device."""

    def __init__(
        self, step: int, batching: Batching, sums: Tensor, grad_norm: Tensor, lr: float, targets: int, on_gpu: bool
    ) -> None:
        """sums: as `sum_losses` returns them."""
        self.step, self.batching, self.lr, self.targets = step, batching, lr, targets
        numbers = torch.cat([sums, grad_norm.double()[None]])
        self._arrived = torch.cuda.Event() if on_gpu else None
        self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=on_gpu)
        self._numbers.copy_(numbers, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> StepResult:
        """Wait for the numbers.

        Raises:
            TrainingStopped: a loss or the gradient is not finite; nothing was updated.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        count = self.batching.replicas * self.batching.micro_batches
        losses, seconds, grad_norm = self._numbers[:count].tolist(), self._numbers[count:-1].tolist(), float(self._numbers[-1])
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                replica, micro_batch = divmod(index, self.batching.micro_batches)
                raise TrainingStopped(
                    f"step {self.step}, micro-batch {micro_batch} of replica {replica}: the loss is {loss}; "
                    "nothing was updated; the same command resumes from the newest checkpoint, if there is one"
                )
        if not math.isfinite(grad_norm):
            raise TrainingStopped(
                f"step {self.step}: the gradient's norm is not finite although the loss is; nothing of this step is saved; lower"
                " the learning rate and start again, from the newest checkpoint"
            )
        loss = float(self._numbers[:count].sum()) / self.targets
        return StepResult(loss, grad_norm, self.lr, self.targets, tuple(seconds))


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
