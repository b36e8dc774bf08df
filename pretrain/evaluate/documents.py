"""Documents of a task: a context and what may follow it, as requests, and what the scores of a task come to."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.evaluate.requests import Request, Score
from tokenizer.pieces import Tokenizer


@dataclass(frozen=True)
class Document:
    """A question whose answers are ranked by how likely they are after the context."""

    context: str
    choices: tuple[str, ...]
    """As they follow the context: with the space in between, if there is one."""
    answer: int
    """Index of the right choice."""
    cluster: str
    """Documents of one cluster are not independent: of one passage, one paradigm."""


@dataclass(frozen=True)
class Metric:
    """A mean over documents."""

    mean: float
    error: float
    """Standard error, by clusters; NaN of a single one."""
    documents: int
    clusters: int


def requests_of(document: Document, tokenizer: Tokenizer, mode: str | None = None) -> list[Request]:
    """Return a request for each choice, its text encoded together with the context and cut where that ends: encoded apart, both
    would be other tokens than training has seen.

    Args:
        mode: piece before the context, as "[S2S]", or None.

    Raises:
        ValueError: a token spans the end of the context, or the context is empty and there is no mode token.
    """
    start = () if mode is None else (tokenizer.id(mode),)
    context, *together = (
        tuple(map(int, ids))
        for ids in tokenizer.encode([document.context, *(document.context + choice for choice in document.choices)])
    )
    found = []
    for choice, tokens in zip(document.choices, together):
        if tokens[: len(context)] != context:
            raise ValueError(
                f"a token spans the end of the context {document.context[-20:]!r} and the choice {choice!r};"
                " let the choice begin with a space, and the context end without one"
            )
        found.append(Request((*start, *context), tokens[len(context) :]))
    return found


def chosen(scores: Sequence[Score]) -> int:
    """Return which choice is likeliest; the first of equals."""
    return int(np.argmax([score.log_likelihood for score in scores]))


def chosen_by_byte(scores: Sequence[Score], document: Document) -> int:
    """Return which choice is likeliest a byte of its text, so that long ones are not at a disadvantage."""
    return int(np.argmax([score.log_likelihood / _bytes(choice) for score, choice in zip(scores, document.choices)]))


def bits_per_byte(scores: Sequence[Score], document: Document) -> float:
    """Return the bits that the right choice takes, a byte of its text."""
    answer = document.answer
    return -scores[answer].log_likelihood / math.log(2) / _bytes(document.choices[answer])


def _bytes(text: str) -> int:
    return len(text.encode())


def mean_of(values: Sequence[float], documents: Sequence[Document]) -> Metric:
    """Average over documents, with the standard error of means over clusters (Miller 2024, arXiv 2411.00640)."""
    mean = float(np.mean(values))
    sums: dict[str, float] = defaultdict(float)
    for value, document in zip(values, documents, strict=True):
        sums[document.cluster] += value - mean
    count = len(sums)
    error = math.nan if count < 2 else math.sqrt(count / (count - 1) * sum(s**2 for s in sums.values())) / len(values)
    return Metric(mean, error, len(values), count)
