"""Documents of a task: a context and what may follow it, as requests, and what the scores of a task come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from pretrain.errors import UserError
from pretrain.evaluate.requests import Request, Score
from tokenizer.pieces import Tokenizer


@dataclass(frozen=True)
class Document:
    """A question whose answers are ranked by how likely they are after the context."""

    context: str | tuple[str, ...]
    """Several, one for each choice, where the choices are in the middle of a text."""
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    cluster: str
    """Documents of one cluster are not independent: of one passage, one paradigm."""
    number: int = 0
    """Place in its file, from 1."""
    between: str = " "
    """What joins a context with a choice."""
    also: tuple[int, ...] = ()
    """Other choices that are right, too."""
    told: str = ""
    """What the data itself says: question and right answer without the words of the format."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """A context and what follows it, for each choice. White space at a context's end belongs to what follows, because
        tokens begin with it; lm-eval does the same."""
        contexts = (self.context,) * len(self.choices) if isinstance(self.context, str) else self.context
        kept = [context.rstrip() for context in contexts]
        return [
            (own, context[len(own) :] + self.between + choice)
            for own, context, choice in zip(kept, contexts, self.choices, strict=True)
        ]

    @property
    def answered(self) -> str:
        """The text with the right choice."""
        return "".join(self.pairs[self.answer])

    def after(self, begin: str) -> "Document":
        """Return the document with a text before it."""
        contexts = begin + self.context if isinstance(self.context, str) else tuple(begin + one for one in self.context)
        return replace(self, context=contexts)


@dataclass(frozen=True)
class Written:
    """A question whose answer is written by the model."""

    context: str
    answers: tuple[str, ...]
    """Texts that count as right; the first is shown where the question is an example."""
    cluster: str
    number: int
    between: str
    stop: tuple[str, ...]
    max_tokens: int
    told: str = ""
    """As of documents whose answers are ranked."""

    @property
    def answered(self) -> str:
        """The text with the first of the right answers."""
        return self.context + self.between + self.answers[0]

    def after(self, begin: str) -> "Written":
        """Return the document with a text before it."""
        return replace(self, context=begin + self.context)


@dataclass(frozen=True)
class Metric:
    """A mean over documents."""

    mean: float
    error: float | None
    """Standard error, by clusters; a single one has none."""
    documents: int
    clusters: int


SHARES = ("accuracy", "accuracy_per_byte", "greedy", "exact_match", "f1")
"""Metrics that are between 0 and 1."""


def half_width(metric: str, mean: float, error: float | None, clusters: int) -> float | None:
    """Return half of the 95 % interval of a metric: Student's t with a degree of freedom less than there are clusters. Where all
    are right or all are wrong, as far as the true share may be from there (Clopper and Pearson 1934); None of one cluster.

    Args:
        error: standard error.
    """
    if error is None or clusters < 2:
        return None
    if metric in SHARES and min(mean, 1 - mean) < 1e-9:
        return 1 - 0.025 ** (1 / clusters)
    return float(student.ppf(0.975, clusters - 1)) * error


def requests_of(document: Document, tokenizer: Tokenizer, mode: str | None = None) -> list[Request]:
    """Return a request for each choice, its text encoded together with the context and cut where that ends: encoded apart, both
    would be other tokens than training has seen. Where nothing is before a choice, its first token is read and not scored.

    Args:
        mode: piece before the context, as "[S2S]"; None for what documents begin with, if anything.

    Raises:
        UserError: a token spans the end of the context, or of a choice nothing is left to score.
    """
    start = tokenizer.begin if mode is None else (tokenizer.id(mode),)
    pairs = document.pairs
    encoded = tokenizer.encode([text for context, choice in pairs for text in (context, context + choice)])
    found = []
    for (text, choice), context, whole in zip(pairs, encoded[::2], encoded[1::2]):
        before, tokens = tuple(map(int, context)) if text else (), tuple(map(int, whole))
        if tokens[: len(before)] != before:
            raise UserError(
                f"document {document.number}: a token of {tokenizer.directory} spans the end of the context {text[-20:]!r} and"
                f" the choice {choice!r}; let the choice begin with a space, and the context end without one"
            )
        read = (*start, *before) or tokens[:1]
        continuation = (*start, *tokens)[len(read) :]
        if not continuation:
            raise UserError(f"document {document.number}: of the choice {choice!r} no token is left to score after {text!r}")
        found.append(Request(read, continuation))
    return found


def likeliest(scores: Sequence[Score], sizes: Sequence[int] | None = None) -> int:
    """Return which choice is likeliest, by itself or for its size in bytes; the first of equals."""
    values = [score.log_likelihood / (1 if sizes is None else size) for score, size in zip(scores, sizes or [1] * len(scores))]
    return int(np.argmax(values))


def mean_of(
    values: Sequence[float] | np.ndarray, clusters: Sequence[str], of_clusters: bool = False, weights: np.ndarray | None = None
) -> Metric:
    """Average over documents, with the standard error of means over clusters (Miller 2024, arXiv 2411.00640).

    Args:
        of_clusters: average the means of clusters instead, however many documents each has.
        weights: [documents], what each counts; the same if None. Of a ratio of sums this is the usual linear approximation
            (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    numbers, count = np.asarray(values, np.float64), len(names)
    if weights is None:
        weights = 1.0 / np.bincount(index)[index] if of_clusters else np.ones(len(numbers))
    weights = weights / weights.sum()
    mean = float(weights @ numbers)
    sums = np.bincount(index, weights * (numbers - mean))
    error = None if count < 2 else math.sqrt(count / (count - 1) * float(sums @ sums))
    return Metric(mean, error, len(numbers), count)
