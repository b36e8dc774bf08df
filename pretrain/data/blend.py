"""Samples of several sources, blended by weight without a random draw, so that any sample's place in its source is known."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pretrain.data.batch import Batch
from pretrain.data.packing import PackedSamples
from pretrain.data.shuffle import permute
from pretrain.errors import UserError

BLOCK = 10_000
"""Samples in which every source has exactly its share, rounded to one in so many."""


@dataclass(frozen=True)
class Blend:
    """The endless sequence of samples of all sources.

    Sample i is number `i mod BLOCK` of its block; a table, the same for every block, says which source that is and how many of
    the block's earlier samples are of the same source.
    """

    sources: tuple[PackedSamples, ...]
    weights: tuple[float, ...]
    seed: int
    kinds: int
    """Kinds of examples in each source."""

    def __post_init__(self) -> None:
        if min(self._counts) < 1:
            raise UserError(f"data.sources: a weight is below {1 / BLOCK:g} of their sum; leave the source out or raise it")

    @cached_property
    def _counts(self) -> list[int]:
        """Samples of each source in a block: its share, rounded by largest remainder."""
        shares = np.array(self.weights) / sum(self.weights) * BLOCK
        counts = np.floor(shares + 1e-9).astype(int)
        for index in np.argsort(counts - shares, kind="stable")[: BLOCK - counts.sum()]:
            counts[index] += 1
        return counts.tolist()

    @cached_property
    def _table(self) -> tuple[list[int], list[int]]:
        """Source of each sample of a block, and its number among the block's samples of that source."""
        ordered = np.repeat(np.arange(len(self.sources)), self._counts)
        source = ordered[[permute(place, BLOCK, self.seed) for place in range(BLOCK)]] if len(self.sources) > 1 else ordered
        number = np.zeros(BLOCK, int)
        for index in range(len(self.sources)):
            number[source == index] = np.arange(self._counts[index])
        return source.tolist(), number.tolist()

    def place(self, sample: int) -> tuple[int, int]:
        """Source of a sample and its number within that source."""
        block, within = divmod(sample, BLOCK)
        source = self._table[0][within]
        return source, block * self._counts[source] + self._table[1][within]

    def document_ends(self, sample: int) -> list[bool]:
        """Return for each example of a sample whether its document ends with it."""
        source, number = self.place(sample)
        return self.sources[source].document_ends(number)

    def batch(self, first: int, count: int, with_text: bool = True) -> Batch:
        """Samples `first` to `first + count - 1`; kinds are counted on from source to source."""
        if len(self.sources) == 1:
            return self.sources[0].batch(list(range(first, first + count)), with_text)
        places = [self.place(sample) for sample in range(first, first + count)]
        samples: dict[int, Batch] = {}
        for index, source in enumerate(self.sources):
            rows = [row for row, (of, _) in enumerate(places) if of == index]
            if not rows:
                continue
            part = source.batch([places[row][1] for row in rows], with_text)
            part.kinds[part.kinds >= 0] += index * self.kinds
            for at, row in enumerate(rows):
                samples[row] = Batch(**{name: array[at : at + 1] for name, array in vars(part).items()})
        return Batch.of_samples([samples[row] for row in range(count)])
