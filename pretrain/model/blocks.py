"""Which blocks of an attention matrix flex attention visits, from where examples begin and end: on the CPU, beside the batch.

PyTorch's create_block_mask asks the mask function for every pair of positions, on the device.
"""

import numpy as np

SIZE = 128
"""Positions of a block in both directions: flex attention's own."""


def block_tables(segments: np.ndarray, prefix: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of a BlockMask by their names, int32, [b, 1, blocks] and [b, 1, blocks, blocks].

    Args:
        segments: [b, s], number of the example that a position belongs to; an example's positions are together.
        prefix: [b, s] bool, whether the position is read both ways.
    """
    seen, whole = visited(segments, prefix)
    partly = seen & ~whole
    tables = {}
    for name, visits in (("kv", partly), ("full_kv", whole), ("q", partly.swapaxes(1, 2)), ("full_q", whole.swapaxes(1, 2))):
        tables[f"{name}_num_blocks"] = visits.sum(-1, dtype=np.int32)[:, None]
        tables[f"{name}_indices"] = np.argsort(~visits, axis=-1, kind="stable").astype(np.int32)[:, None]
    return tables


def visited(segments: np.ndarray, prefix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for blocks of queries by blocks of keys whether some pair of positions is allowed, and whether all are; [b, n, n]
    each."""
    count, length = segments.shape
    blocks = -(-length // SIZE)
    run = np.cumsum(np.diff(segments, axis=1, prepend=segments[:, :1]) != 0, axis=1)  # examples, numbered as they come
    begins = np.arange(blocks) * SIZE
    ends = np.minimum(begins + SIZE, length) - 1
    first, last = run[:, begins], run[:, ends]  # [b, n]: the examples at a block's ends
    in_first = np.add.reduceat((run == np.repeat(first, SIZE, axis=1)[:, :length]) & prefix, begins, axis=1) > 0
    all_prefix = np.add.reduceat(prefix, begins, axis=1, dtype=np.int64) == ends - begins + 1
    all_but_first = np.add.reduceat(prefix, begins, axis=1, dtype=np.int64) - prefix[:, begins] == ends - begins
    q, k = np.arange(blocks)[:, None], np.arange(blocks)[None, :]
    # Blocks share an example if their ranges of examples meet. Looking ahead, that is the last of one and the first of the other.
    meet = (first[:, :, None] <= last[:, None, :]) & (first[:, None, :] <= last[:, :, None])
    seen = meet & ((q >= k) | in_first[:, None, :])
    one = (first[:, :, None] == last[:, None, :]) & (first[:, None, :] == last[:, :, None])
    whole = one & np.where(q > k, True, np.where(q == k, all_but_first[:, None, :], all_prefix[:, None, :]))
    within = begins + SIZE <= length
    return seen, whole & within[:, None] & within[None, :]
