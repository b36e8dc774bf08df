"""Packing: a window of tokens becomes one sample of several examples that do not see each other.

Sample i takes window `permute(i mod windows)` of the token stream, shifted by another amount in every epoch, and fills it with
examples until no further one fits: a pure function of (seed, i), with no index to build, store or race for. What is cut here in
Python is a handful of examples a sample; what touches every token is vectorised over the batch, in the objectives.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pretrain.data.batch import Batch, Examples
from pretrain.data.draws import Draws
from pretrain.data.objectives import Objective
from pretrain.data.objectives.base import fill_runs
from pretrain.data.shuffle import permute
from pretrain.data.tokens import TokenStream
from pretrain.errors import UserError
from pretrain.hashing import stable_hash

PAIRS = 64
"""Numbers drawn at a time for the choice of examples."""


@dataclass(frozen=True)
class PackedSamples:
    """The endless, shuffled sequence of packed samples of a token stream."""

    stream: TokenStream
    objective: Objective
    length: int
    """Positions of a sample."""
    seed: int
    vocab_size: int = np.iinfo(np.int32).max
    """Pieces of the tokenizer; tokens are checked against it."""

    def __post_init__(self) -> None:
        if len(self.stream) < 2 * self.length:
            raise UserError(
                f"{self.stream.prefix}.bin: {len(self.stream)} tokens are too few for samples of {self.length}; "
                f"at least {2 * self.length} are needed"
            )

    @property
    def windows(self) -> int:
        """Samples in an epoch: one window less than fits, to make room for the shift."""
        return len(self.stream) // self.length - 1

    def batch(self, samples: list[int], with_text: bool = True) -> Batch:
        """The samples of these numbers.

        Args:
            with_text: whether tokens, labels and targets are wanted, or only the tables of examples, as between the first and
                the last pipeline rank.
        """
        draws = [Draws(stable_hash(self.seed), sample) for sample in samples]
        cuts = [cut for row, sample in enumerate(samples) for cut in self._cut(row, sample, draws[row])]
        batch = Batch.empty(len(samples), self.length, self.objective.pad)
        if not cuts:
            return batch
        examples = Examples(*np.array(cuts, dtype=np.int64).T)
        self._tables(batch, examples)
        if with_text:
            tokens = self.stream.tokens
            text = np.concatenate([tokens[at : at + take] for at, take in zip(examples.at.tolist(), examples.take.tolist())])
            self._require_known(text)
            following = tokens[np.minimum(examples.at + examples.take, len(tokens) - 1)]
            self.objective.fill(batch, examples, text, following, draws)
        return batch

    def document_ends(self, sample: int) -> list[bool]:
        """Return for each example of a sample whether its document ends with it."""
        return [bool(cut[-1]) for cut in self._cut(0, sample, Draws(stable_hash(self.seed), sample))]

    def _require_known(self, text: np.ndarray) -> None:
        """Token files of other tools say nothing of their tokenizer."""
        if len(text) and (int(text.max()) >= self.vocab_size or int(text.min()) < 0):
            wrong = next(int(token) for token in text if not 0 <= token < self.vocab_size)
            raise UserError(
                f"{self.stream.prefix}.bin: holds token {wrong}, and the tokenizer has {self.vocab_size} pieces; "
                "encode again, or set data.tokenizer to the one that was used"
            )

    def _cut(self, row: int, sample: int, draws: Draws) -> list[tuple[int, ...]]:
        """The examples of a sample, as `Examples` lists them."""
        length, ends, cut = self.length, self.stream.ends, self.objective.cut
        epoch, place = divmod(sample, self.windows)
        at = permute(place, self.windows, self.seed, epoch) * length + stable_hash(self.seed, epoch) % length
        stop = at + length
        document = bisect_right(ends, at)
        end = int(ends[document])
        out: list[tuple[int, ...]] = []
        used = 0
        numbers: Iterator[float] = iter(())
        while at < stop:
            choice = next(numbers, None)
            if choice is None:
                numbers = iter(draws.uniform(PAIRS).tolist())
                choice = next(numbers)
            left = min(end, stop) - at
            take, kind, hidden, spans, positions = cut(length - used, left, choice, next(numbers))
            if take == 0:
                break
            if positions:
                out.append((row, used, at, take, kind, hidden, spans, positions, at + take == end))
                used += positions
            at += take
            while at >= end and at < stop:  # the next document that is not empty
                document += 1
                end = int(ends[document])
        return out

    def _tables(self, batch: Batch, examples: Examples) -> None:
        """Segments, positions, prefixes and kinds: runs of equal values, written at once for all samples."""
        begin = examples.row * self.length + examples.used
        end = begin + examples.positions
        first_of_row = np.searchsorted(examples.row, examples.row)
        fill_runs(batch.segments, begin, end, np.arange(len(examples)) - first_of_row)
        fill_runs(batch.kinds, begin, end, examples.kind)
        fill_runs(batch.prefix, begin, begin + self.objective.prefix(examples), np.ones(len(examples), bool))
        place = np.arange(batch.positions.size)
        fill_runs(batch.positions, begin, end, begin)
        flat = batch.positions.reshape(-1)
        np.subtract(place, flat, out=flat)
        flat[batch.segments.reshape(-1) < 0] = 0
