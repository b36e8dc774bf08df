"""Documents of a task: a context and what may follow it, as requests, and what the scores of a task come to."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.errors import UserError
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
    error: float | None
    """Standard error, by clusters; a single one has none."""
    documents: int
    clusters: int


def requests_of(document: Document, tokenizer: Tokenizer, mode: str | None = None) -> list[Request]:
    """Return a request for each choice, its text encoded together with the context and cut where that ends: encoded apart, both
    would be other tokens than training has seen.

    Args:
        mode: piece before the context, as "[S2S]", or None.

    Raises:
        UserError: a token spans the end of the context.
        ValueError: the context is empty and there is no mode token.
    """
    start = () if mode is None else (tokenizer.id(mode),)
    context, *together = (
        tuple(map(int, ids))
        for ids in tokenizer.encode([document.context, *(document.context + choice for choice in document.choices)])
    )
    found = []
    for choice, tokens in zip(document.choices, together):
        if tokens[: len(context)] != context:
            raise UserError(
                f"a token of {tokenizer.directory} spans the end of the context {document.context[-20:]!r} and the choice"
                f" {choice!r}; let the choice begin with a space, and the context end without one"
            )
        found.append(Request((*start, *context), tokens[len(context) :]))
    return found


def chosen(scores: Sequence[Score]) -> int:
    """Return which choice is likeliest; the first of equals."""
    return int(np.argmax([score.log_likelihood for score in scores]))


def bits_per_byte(scores: Sequence[Score], document: Document) -> float:
    """Return the bits that the right choice takes, a byte of its text."""
    answer = document.answer
    return -scores[answer].log_likelihood / math.log(2) / len(document.choices[answer].encode())


def mean_of(values: Sequence[float], documents: Sequence[Document]) -> Metric:
    """Average over documents, with the standard error of means over clusters (Miller 2024, arXiv 2411.00640)."""
    mean = float(np.mean(values))
    sums: dict[str, float] = defaultdict(float)
    for value, document in zip(values, documents, strict=True):
        sums[document.cluster] += value - mean
    count = len(sums)
    error = None if count < 2 else math.sqrt(count / (count - 1) * sum(s**2 for s in sums.values())) / len(values)
    return Metric(mean, error, len(values), count)
