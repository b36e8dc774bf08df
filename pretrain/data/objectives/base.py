"""What objectives share: how much of a text goes into an example, and how predictions are written down."""

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from pretrain.data.batch import Batch, Examples
from pretrain.schema import Strict


class TextKeys(Strict):
    """Keys of objectives that make examples of limited length."""

    max_example_tokens: Annotated[int, Field(ge=8)] = 512
    """Longest stretch of text that one example is made from; causal has no limit but the sample."""


class Cut(NamedTuple):
    """One example's share of the window."""

    take: int
    """Tokens of text; 0 if nothing more fits into the sample."""
    kind: int = 0
    hidden: int = 0
    spans: int = 0
    positions: int = 0
    """0 if the text is too short to make an example of: it is skipped."""


def fill_runs(out: np.ndarray, begin: np.ndarray, end: np.ndarray, values: np.ndarray) -> None:
    """out.flat[begin[i]:end[i]] = values[i]; what is between keeps its value."""
    flat = out.reshape(-1)
    for first, last, value in zip(begin.tolist(), end.tolist(), values.tolist()):
        flat[first:last] = value


def predict_next(batch: Batch, examples: Examples, first: np.ndarray, last: np.ndarray) -> None:
    """Labels and targets of examples whose tokens are written: every token predicts the one after it.

    Args:
        first: [examples], the position within each example from which on the label counts.
        last: [examples], what the last position predicts.
    """
    length = batch.tokens.shape[1]
    begin = examples.row * length + examples.used
    batch.labels[:, :-1] = batch.tokens[:, 1:]
    batch.labels.reshape(-1)[begin + examples.positions - 1] = last
    fill_runs(batch.targets, begin + first, begin + examples.positions, np.ones(len(examples), bool))
