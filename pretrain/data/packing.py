"""Packed samples: several examples side by side, none of which sees another.

Sample i is a pure function of (seed, i). The token stream is cut into windows of as many tokens as a sample has
positions, the windows are permuted, and each fills one sample: its text is taken in order, example by example, until
the sample is full. Sentinels and mode tokens take room, so the end of a window is left over, 9 % with UL2's mixture;
every epoch shifts the windows, so that it is another part each time.
"""

from dataclasses import dataclass

import numpy as np

from pretrain.data.shuffle import permute, stable_hash
from pretrain.data.tokens import TokenStream
from pretrain.data.ul2 import SHORTEST, Draws, Mixture, longest_text, positions
from pretrain.errors import UserError

PADDING = -1
"""Segment and denoiser of positions that hold nothing."""


@dataclass(frozen=True)
class Batch:
    """Packed samples, [b, s] each."""

    tokens: np.ndarray
    """int64: what the model reads."""
    labels: np.ndarray
    """int64: the next token of the example."""
    targets: np.ndarray
    """bool: where the label belongs to a target, and so to the loss."""
    segments: np.ndarray
    """int32: number of the example within its sample; PADDING where nothing stands."""
    prefix: np.ndarray
    """bool: where the token is read both ways."""
    denoisers: np.ndarray
    """int8: index of the denoiser that made the example."""

    @classmethod
    def empty(cls, samples: int, length: int, pad: int) -> "Batch":
        shape = (samples, length)
        return cls(
            tokens=np.full(shape, pad, np.int64),
            labels=np.full(shape, pad, np.int64),
            targets=np.zeros(shape, bool),
            segments=np.full(shape, PADDING, np.int32),
            prefix=np.zeros(shape, bool),
            denoisers=np.full(shape, PADDING, np.int8),
        )


@dataclass(frozen=True)
class PackedSamples:
    """The endless, shuffled sequence of packed samples of a token stream."""

    stream: TokenStream
    mixture: Mixture
    length: int
    """Positions of a sample."""
    longest: int
    """Tokens of text in one example at most."""
    seed: int

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

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first` to `first + count - 1`."""
        batch = Batch.empty(count, self.length, self.mixture.special.pad)
        for row in range(count):
            self._fill(batch, row, first + row)
        return batch

    def _fill(self, batch: Batch, row: int, sample: int) -> None:
        epoch, place = divmod(sample, self.windows)
        shift = stable_hash(self.seed, epoch) % self.length
        at = permute(place, self.windows, self.seed, epoch) * self.length + shift
        stop = at + self.length
        document = int(np.searchsorted(self.stream.ends, at, side="right"))
        draws = Draws(stable_hash(self.seed), sample)
        used = segment = 0
        while at < stop:
            end = min(int(self.stream.ends[document]), stop)
            choice, turn = self.mixture.choose(draws)
            denoiser = self.mixture.denoisers[choice]
            room = self.length - used
            if room < positions(denoiser, SHORTEST, turn):
                return
            take = min(longest_text(denoiser, room, turn), end - at, self.longest)
            if take >= SHORTEST:
                example = self.mixture.make(self.stream.tokens[at : at + take], choice, turn, draws)
                filled = slice(used, used + len(example.tokens) - 1)
                batch.tokens[row, filled] = example.tokens[:-1]
                batch.labels[row, filled] = example.tokens[1:]
                batch.targets[row, used + example.prefix - 1 : filled.stop] = True
                batch.prefix[row, used : used + example.prefix] = True
                batch.segments[row, filled] = segment
                batch.denoisers[row, filled] = choice
                used, segment = filled.stop, segment + 1
            at += take
            if at >= self.stream.ends[document]:
                document += 1
