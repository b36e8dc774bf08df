"""Stretches of parameters, and what two of them have in common. All there is to moving a checkpoint between layouts.

A tensor-parallel rank holds every `ranks`-th block of a flattened parameter: block q of its part is block q * ranks + rank of the
whole. A column-split matrix has one block a rank, SwiGLU's two side by side have two, a row-split one has a block a row, and what
is not split is a single block. ZeRO cuts the rank's part, flattened again, into stretches. Both cuts together are a Fragment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True)
class Split:
    """Which blocks of a flattened parameter a tensor-parallel rank holds."""

    ranks: int
    rank: int
    block: int
    """Elements."""

    @classmethod
    def of(cls, shape: Sequence[int], dim: int, matrices: int, ranks: int, rank: int) -> "Split":
        """
        Args:
            shape: of the whole parameter.
            dim: the dimension that is split.
            matrices: how many stand side by side in that dimension, each split by itself.
        """
        return cls(ranks, rank, shape[dim] // (matrices * ranks) * prod(shape[dim + 1 :]))

    def apart(self, other: "Split") -> bool:
        """Whether both are parts of the same cut, and not the same one, so that they have nothing in common."""
        return (self.ranks, self.block) == (other.ranks, other.block) and self.rank != other.rank

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Split":
        """Return the split of a parameter that every tensor-parallel rank holds in full."""
        return cls(1, 0, prod(shape))


@dataclass(frozen=True)
class Fragment:
    """A stretch of what a tensor-parallel rank holds of a parameter."""

    split: Split
    start: int
    length: int
    """Elements, from `start` on, of the rank's part."""

    def runs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stretches that are contiguous in the whole parameter, in its order: first elements there, lengths, first elements
        here."""
        ranks, rank, block = self.split.ranks, self.split.rank, self.split.block
        first, last = self.start // block, (self.start + self.length - 1) // block
        blocks = np.arange(first, last + 1, dtype=np.int64)
        begin = np.maximum(blocks * block, self.start)
        end = np.minimum((blocks + 1) * block, self.start + self.length)
        return (blocks * ranks + rank) * block + begin - blocks * block, end - begin, begin - self.start


@dataclass(frozen=True)
class Overlap:
    """What one fragment gets from another: `length[i]` elements from `source[i]` to `target[i]`, in order of both."""

    source: np.ndarray
    target: np.ndarray
    length: np.ndarray

    @property
    def total(self) -> int:
        return int(self.length.sum())


NOTHING = Overlap(*(np.array([], dtype=np.int64) for _ in range(3)))


def common(source: Fragment, target: Fragment) -> Overlap:
    """The elements of a parameter that both fragments hold; positions count from each fragment's beginning."""
    if source.split.apart(target.split):
        return NOTHING
    if source.split == target.split:  # on the layout that wrote it, and between zero stages: one stretch, however many blocks
        first, end = max(source.start, target.start), min(source.start + source.length, target.start + target.length)
        one = [np.array([n], dtype=np.int64) for n in (first - source.start, first - target.start, end - first)]
        return Overlap(*(n if end > first else n[:0] for n in one))
    ours, theirs = source.runs(), target.runs()
    edges = np.unique(np.concatenate([part for starts, lengths, _ in (ours, theirs) for part in (starts, starts + lengths)]))
    begin, length = edges[:-1], np.diff(edges)
    (mine, here), (other, there) = _places(ours, begin), _places(theirs, begin)
    both = here & there
    return Overlap(mine[both], other[both], length[both])


def _places(runs: tuple[np.ndarray, np.ndarray, np.ndarray], elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find elements of the whole parameter in a fragment: their places, and whether it holds them."""
    starts, lengths, local = runs
    run = np.searchsorted(starts, elements, side="right") - 1
    within = elements - starts[run]
    return local[run] + within, (run >= 0) & (within < lengths[run])
