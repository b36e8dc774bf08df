"""What the model gets: packed samples."""

from dataclasses import dataclass

import numpy as np

PADDING = -1
"""Segment and kind of positions that hold nothing."""
BRANCH = 2**20
"""Segments from here on are continuations of a context that is read once: that of continuation i, from 1, of example e is
e + i BRANCH. It reads the context and itself. Its first token is the context's last once more, marked as prefix: it predicts the
continuation's first token, and nobody reads it. Training has none."""


@dataclass(frozen=True)
class Batch:
    """Packed samples, [b, s] each."""

    tokens: np.ndarray
    """int64: what the model reads."""
    labels: np.ndarray
    """int64: what it is to predict."""
    targets: np.ndarray
    """bool: where the label counts in the loss."""
    segments: np.ndarray
    """int32: number of the example within its sample; PADDING where there is none."""
    positions: np.ndarray
    """int64: place within the example."""
    prefix: np.ndarray
    """bool: where the token is read both ways."""
    kinds: np.ndarray
    """int16: which of the recipe's `Data.kinds` made the example."""

    @classmethod
    def empty(cls, samples: int, length: int, pad: int) -> "Batch":
        shape = (samples, length)
        return cls(
            tokens=np.full(shape, pad, np.int64),
            labels=np.full(shape, pad, np.int64),
            targets=np.zeros(shape, bool),
            segments=np.full(shape, PADDING, np.int32),
            positions=np.zeros(shape, np.int64),
            prefix=np.zeros(shape, bool),
            kinds=np.full(shape, PADDING, np.int16),
        )

    @classmethod
    def of_samples(cls, samples: list["Batch"]) -> "Batch":
        """One batch of several."""
        return cls(**{name: np.concatenate([getattr(sample, name) for sample in samples]) for name in vars(samples[0])})


@dataclass(frozen=True)
class Examples:
    """The stretches of text that the examples of a batch are made from, in the order of the samples; int64, [examples] each."""

    row: np.ndarray
    """Sample within the batch."""
    used: np.ndarray
    """Position within the sample where the example begins."""
    at: np.ndarray
    """Where the text begins in the token stream."""
    take: np.ndarray
    """Tokens of text."""
    kind: np.ndarray
    hidden: np.ndarray
    """Tokens to predict, of objectives that hide some."""
    spans: np.ndarray
    """Stretches that these form."""
    positions: np.ndarray
    """Positions that the example takes."""
    ends: np.ndarray
    """1 where the text runs to the end of its document."""

    def __len__(self) -> int:
        return len(self.row)
