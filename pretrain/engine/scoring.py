"""Which samples a rank scores, and what all ranks have scored together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from pretrain.data.batch import Batch
from pretrain.engine.loss import Entry
from pretrain.ranks.process import Ranks

STEPS = 4
"""Lengths of samples between a length and its double: a request in a sample of its own fills four fifths of it at least."""
LEAST = 32
"""Shorter samples would save no time: what attention computes in vain is little in them."""


def sample_lengths(longest: int, multiple: int) -> list[int]:
    """Return the lengths of samples that are worth having, from the least to `longest`. Attention takes each sample's length
    squared, whatever is in it.

    Args:
        multiple: what all must be multiples of; `longest` is one.
    """
    found, length = {longest}, LEAST
    while length < longest:
        found |= {-(-length * (STEPS + part) // STEPS // multiple) * multiple for part in range(STEPS)}
        length *= 2
    return sorted(length for length in found if length <= longest)


@dataclass(frozen=True)
class Rounds:
    """How samples go through the schedule: in as many micro-batches on all replicas, which gather weights together in ZeRO
    stage 3."""

    count: int
    micro_batch_size: int
    replicas: int

    @classmethod
    def of(cls, samples: int, most: int, replicas: int, multiple: int, even: bool) -> "Rounds":
        """
        Args:
            most: samples of a micro-batch.
            even: whether micro-batches share samples evenly; else the last are filled up, so that all have the same shape
                whatever there is to score.
            multiple: what the number of micro-batches must be a multiple of; interleaved schedules want one of the pipeline's
                ranks.
        """
        needed = -(-samples // (most * replicas))
        count = -(-needed // multiple) * multiple
        return cls(count, -(-samples // (count * replicas)) if even else most, replicas)

    def shares(self, samples: Batch, replica: int) -> list[Batch]:
        """Cut samples into the micro-batches of one replica; what is missing is filled with samples of nothing."""
        count, length = samples.tokens.shape
        at_a_time = self.micro_batch_size * self.replicas
        whole = Batch.of_samples([samples, Batch.empty(self.count * at_a_time - count, length, 0)])
        begins = (index * at_a_time + replica * self.micro_batch_size for index in range(self.count))
        parts = (slice(begin, begin + self.micro_batch_size) for begin in begins)
        return [Batch(**{name: array[part] for name, array in vars(whole).items()}) for part in parts]


def together(ranks: Ranks, entries: Sequence[Entry], rounds: Rounds, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring what all replicas have scored to all ranks, in the order of the samples: losses, and whether labels were the best
    tokens, [n, s] each."""
    found = torch.zeros(2, rounds.count, rounds.replicas, rounds.micro_batch_size, length, device=ranks.device)
    if ranks.speaks_for_replica:
        for index, entry in enumerate(entries):
            found[0, index, ranks.data_parallel_rank] = entry["losses"]
            found[1, index, ranks.data_parallel_rank] = entry["is_best"].float()
    dist.all_reduce(found)
    losses, is_best = found.view(2, -1, length).cpu().numpy()
    return losses, is_best > 0
