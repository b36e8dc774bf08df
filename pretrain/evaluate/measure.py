"""What a model makes of a task."""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from pretrain.config.recipe import Data
from pretrain.errors import UserError
from pretrain.evaluate.documents import Document, Metric, likeliest, mean_of, requests_of
from pretrain.evaluate.requests import Request, Score, Scorer, score
from pretrain.evaluate.task_file import Average
from tokenizer.pieces import Tokenizer


@dataclass(frozen=True)
class Asking:
    """How documents are put to a model."""

    limit: int | None
    """Most documents of a task; None for all there are, or a few hundred of those without an end."""
    seed: int
    """Decides which documents are drawn and which examples are shown."""
    shots: int
    """Answered examples before each."""
    attention: Literal["prefix", "causal"]
    """How contexts are read: both ways, as training's prefixes are, or not."""
    mode: str | None
    """Piece before each context."""


@dataclass(frozen=True)
class Posed:
    """A document as requests."""

    number: int
    cluster: str
    requests: tuple[Request, ...]
    answer: int
    """Index of the request whose continuation is right."""
    sizes: tuple[int, ...]
    """Bytes of each choice."""
    answer_bytes: int
    """Bytes of the right continuation, with what joins it to the context."""
    also: tuple[int, ...] = ()
    """Other requests whose continuations are right, too."""


class Questions(Protocol):
    """Documents of a task, whatever makes them."""

    def posed(self, asking: Asking, tokenizer: Tokenizer, length: int) -> tuple[list[Posed], int]:
        """Return those that fit into `length` positions, and how many do not."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a model makes of a task; arrays are [documents]."""

    numbers: np.ndarray
    """Which documents these are, in their file."""
    clusters: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    """By metric. accuracy: is the right choice the likeliest? accuracy_per_byte: for its size? greedy: is it what greedy decoding
    gives, among all that could be written? bits_per_byte: what the right choice takes."""
    skipped: int
    """Documents that are too long for the model. Nothing is ever cut."""
    requests: str
    """Checksum of what was asked."""
    average: Average = "documents"
    sizes: np.ndarray | None = None
    """Bytes of the right choices, of a task that is averaged over bytes."""

    def metric(self, name: str) -> Metric:
        return self.mean(self.values[name])

    def mean(self, values: np.ndarray) -> Metric:
        """Average a value of each document as the task says."""
        return mean_of(values, self.clusters, self.average == "clusters", self.sizes)

    def without(self, numbers: Collection[int]) -> "Outcome":
        """Return what is left without some documents."""
        kept = np.array([number not in numbers for number in self.numbers.tolist()], bool)
        clusters = tuple(cluster for cluster, stays in zip(self.clusters, kept) if stays)
        values = {name: each[kept] for name, each in self.values.items()}
        sizes = None if self.sizes is None else self.sizes[kept]
        return replace(self, numbers=self.numbers[kept], clusters=clusters, values=values, sizes=sizes)


def as_trained(data: Data) -> tuple[Literal["prefix", "causal"], str | None]:
    """Return how training has a text continued: attention and mode token of its first prefix denoiser, else causal and none."""
    prefixes = [denoiser for denoiser in data.denoisers if denoiser.kind == "prefix"] if data.objective == "ul2" else []
    return ("prefix", prefixes[0].mode) if prefixes else ("causal", None)


def pose(documents: Sequence[Document], tokenizer: Tokenizer, mode: str | None, length: int) -> tuple[list[Posed], int]:
    """Turn documents into requests.

    Returns:
        Those that fit into `length` positions, and how many do not.

    Raises:
        UserError: a token spans a context and a choice.
    """
    found = []
    for document in documents:
        requests = requests_of(document, tokenizer, mode)
        if max(request.positions for request in requests) > length:
            continue
        sizes = tuple(len(choice.encode()) for choice in document.choices)
        found.append(
            Posed(
                document.number,
                document.cluster,
                tuple(requests),
                document.answer,
                sizes,
                _scored_bytes(document, requests[document.answer], tokenizer, mode),
                document.also,
            )  # fmt: skip
        )
    return found, len(documents) - len(found)


def _scored_bytes(document: Document, right: Request, tokenizer: Tokenizer, mode: str | None) -> int:
    """Return the bytes of what is scored of the right choice: all, but where its first token is read as nothing stands before."""
    context, choice = document.pairs[document.answer]
    if context or mode is not None or tokenizer.begin:
        return len(choice.encode())
    return max(1, sum(len(tokenizer.piece_bytes[token]) for token in right.continuation))


def measure(
    scorer: Scorer,
    posed: Sequence[Posed],
    skipped: int,
    both_ways: bool,
    average: Average = "documents",
    shares: bool = True,
) -> Outcome:
    """Put documents to a model.

    Args:
        skipped: how many were left out because they are too long.
        both_ways: whether a context is read both ways.
        shares: whether choices of one context are put together, so that it is read once.

    Raises:
        UserError: a score is not finite, or some documents have one choice and others several.
    """
    scores = iter(score(scorer, [request for one in posed for request in one.requests], 0, both_ways, shares))
    return outcome(posed, [[next(scores) for _ in one.requests] for one in posed], skipped, average)


def outcome(posed: Sequence[Posed], scores: Sequence[Sequence[Score]], skipped: int, average: Average) -> Outcome:
    """Judge scores, of every request of every document."""
    values: dict[str, list[float]] = {}
    for one, found in zip(posed, scores, strict=True):
        right = found[one.answer]
        judged = {"bits_per_byte": -right.log_likelihood / math.log(2) / one.answer_bytes}
        if average != "bytes":
            judged = {"greedy": float(right.is_greedy)} | judged
        if average != "bytes" and len(found) > 1:
            rights = (one.answer, *one.also)
            accuracy = {
                "accuracy": float(likeliest(found) in rights),
                "accuracy_per_byte": float(likeliest(found, one.sizes) in rights),
            }
            judged = accuracy | judged
        for name, value in judged.items():
            values.setdefault(name, []).append(value)
    if len({len(numbers) for numbers in values.values()}) > 1:
        raise UserError("some documents of the task have one choice, others several; rank one kind")
    return Outcome(
        np.array([one.number for one in posed]),
        tuple(one.cluster for one in posed),
        {name: np.array(numbers) for name, numbers in values.items()},
        skipped,
        checksum_of(
            ([(one.context, one.continuation) for one in each.requests], each.answer, each.also, each.cluster) for each in posed
        ),
        average,
        np.array([one.answer_bytes for one in posed], np.float64) if average == "bytes" else None,
    )


def checksum_of(asked: Iterable[object]) -> str:
    """Return a checksum of what was asked and what counts as right, in their order."""
    digest = hashlib.sha256()
    for one in asked:
        digest.update(json.dumps(one).encode() + b"\n")
    return digest.hexdigest()
