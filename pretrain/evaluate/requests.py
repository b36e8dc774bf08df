"""Requests of a task as packed samples, and the scores that come of them."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pretrain.data.batch import Batch
from pretrain.errors import UserError


@dataclass(frozen=True)
class Request:
    """How likely is a continuation after a context? Tokens of both, encoded together and cut where the context ends."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.context:
            raise ValueError("a request needs a context of one token at least: a model predicts nothing before the first")
        if not self.continuation:
            raise ValueError("a request needs a continuation of one token at least")

    @property
    def positions(self) -> int:
        """Positions of a sample that it takes: the last token is predicted, never read."""
        return len(self.context) + len(self.continuation) - 1


@dataclass(frozen=True)
class Score:
    """What came of a request."""

    log_likelihood: float
    """Nats, of the continuation."""
    is_greedy: bool
    """Whether no other token is likelier, at any of its places: what greedy decoding gives, but where tokens tie."""
    tokens: int
    """How many the continuation has."""


@dataclass(frozen=True)
class Place:
    """Where a request is."""

    sample: int
    first: int
    """Position of the first token of its context."""


class Scorer(Protocol):
    """Whoever scores positions, as Engine.score does."""

    def score(self, samples: Batch) -> tuple[np.ndarray, np.ndarray]: ...


def score(scorer: Scorer, requests: Sequence[Request], length: int, pad: int, both_ways: bool) -> list[Score]:
    """Score requests, in their order.

    Args:
        length: positions of a sample.
        both_ways: whether a context is read both ways, as training's prefixes are, or causally.

    Raises:
        ValueError: a request is longer than a sample. Nothing is ever cut: a cut request is another one.
        UserError: a score is not finite.
    """
    if not requests:
        return []
    places = pack([request.positions for request in requests], length)
    losses, is_best = scorer.score(as_samples(requests, places, length, pad, both_ways))
    found: list[Score] = []
    for request, place in zip(requests, places):
        begin = place.first + len(request.context) - 1
        own = (place.sample, slice(begin, begin + len(request.continuation)))
        log_likelihood = -float(losses[own].sum(dtype=np.float64))
        if not math.isfinite(log_likelihood):
            raise UserError(f"request {len(found)} has the log-likelihood {log_likelihood}; the model's weights are broken")
        found.append(Score(log_likelihood, bool(is_best[own].all()), len(request.continuation)))
    return found


def pack(lengths: Sequence[int], length: int) -> list[Place]:
    """Put requests into few samples, each in one piece: the longest first, where least room is left over.

    Raises:
        ValueError: one is longer than a sample.
    """
    rooms: list[tuple[int, int]] = []
    """Room that is left, and the sample that has it; in order."""
    places, samples = [Place(0, 0)] * len(lengths), 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        needed = lengths[number]
        if needed > length:
            raise ValueError(f"request {number} takes {needed} positions, more than the {length} of a sample")
        index = bisect_left(rooms, (needed, 0))
        room, sample = rooms.pop(index) if index < len(rooms) else (length, samples)
        samples = max(samples, sample + 1)
        places[number] = Place(sample, length - room)
        insort(rooms, (room - needed, sample))
    return places


def as_samples(requests: Sequence[Request], places: Sequence[Place], length: int, pad: int, both_ways: bool) -> Batch:
    """Packed samples, [samples, length], each request an example of its own."""
    batch = Batch.empty(max(place.sample for place in places) + 1, length, pad)
    examples = [0] * len(batch.tokens)
    for request, place in zip(requests, places):
        tokens = np.array(request.context + request.continuation)
        own = (place.sample, slice(place.first, place.first + request.positions))
        place_within = np.arange(request.positions)
        batch.tokens[own], batch.labels[own] = tokens[:-1], tokens[1:]
        batch.targets[own] = place_within >= len(request.context) - 1
        batch.prefix[own] = both_ways & (place_within < len(request.context))
        batch.positions[own], batch.segments[own], batch.kinds[own] = place_within, examples[place.sample], 0
        examples[place.sample] += 1
    return batch
