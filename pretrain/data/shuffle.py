"""A stateless permutation: item i of a shuffled range, without an index file to build, store or race for."""

from pretrain.hashing import stable_hash

ROUNDS = 6


def permute(index: int, size: int, *key: int) -> int:
    """Image of `index` under a pseudo-random permutation of range(size) that `key` decides.

    A Feistel network over the next power of four, walked until it lands inside (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"). Stable for ever, because it rests on a hash and not on a library's random stream.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (stable_hash(right, turn, *key) & mask)
        index = left << half | right
        if index < size:
            return index
