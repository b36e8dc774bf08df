"""Which samples a rank scores, and what all ranks have scored together."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from pretrain.config.run import Batching
from pretrain.data.batch import Batch
from pretrain.engine.loss import Entry
from pretrain.ranks.process import Ranks


def rounds(samples: int, batching: Batching, multiple: int) -> int:
    """Return how many micro-batches each replica runs: as many on all, because in ZeRO stage 3 they gather weights together.

    Args:
        multiple: what their number must be a multiple of; interleaved schedules want one of the pipeline's ranks.
    """
    needed = -(-samples // (batching.micro_batch_size * batching.replicas))
    return -(-needed // multiple) * multiple


def shares(samples: Batch, rounds: int, batching: Batching, replica: int) -> list[Batch]:
    """Cut samples into the micro-batches of one replica; what is missing is filled with samples of nothing."""
    count, length = samples.tokens.shape
    at_a_time = batching.micro_batch_size * batching.replicas
    whole = Batch.of_samples([samples, Batch.empty(rounds * at_a_time - count, length, 0)])
    begins = (index * at_a_time + replica * batching.micro_batch_size for index in range(rounds))
    parts = (slice(begin, begin + batching.micro_batch_size) for begin in begins)
    return [Batch(**{name: array[part] for name, array in vars(whole).items()}) for part in parts]


def together(
    ranks: Ranks, entries: Sequence[Entry], rounds: int, batching: Batching, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bring what all replicas have scored to all ranks, in the order of the samples: losses, and whether labels were the best
    tokens, [n, s] each."""
    found = torch.zeros(2, rounds, batching.replicas, batching.micro_batch_size, length, device=ranks.device)
    if ranks.speaks_for_replica:
        for index, entry in enumerate(entries):
            found[0, index, ranks.data_parallel_rank] = entry["losses"]
            found[1, index, ranks.data_parallel_rank] = entry["is_best"].float()
    dist.all_reduce(found)
    losses, is_best = found.view(2, -1, length).cpu().numpy()
    return losses, is_best > 0
