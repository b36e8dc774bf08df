"""Requests of a task as packed samples, and the scores that come of them."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pretrain.data.batch import BRANCH, Batch
from pretrain.errors import UserError

MOST_BRANCHES = 1000
"""Continuations of one context that are put together; their segments are 32-bit numbers."""


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
class Group:
    """Requests in a row with one context, which is read once."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def positions(self) -> int:
        """Positions of a sample: with several continuations each begins with the context's last token once more."""
        return len(self.context) - (len(self.continuations) == 1) + sum(map(len, self.continuations))

    def with_another(self, request: Request) -> "Group":
        return Group(self.context, (*self.continuations, request.continuation))

    def begins(self) -> list[int]:
        """Return the position, from the group's first, that predicts each continuation's first token."""
        if len(self.continuations) == 1:
            return [len(self.context) - 1]
        before = np.cumsum([0, *map(len, self.continuations[:-1])])
        return (len(self.context) + before).tolist()


@dataclass(frozen=True)
class Place:
    """Where something is."""

    sample: int
    first: int
    """Position of its first token."""


class Scorer(Protocol):
    """Whoever scores positions, as Engine.score does."""

    def score(self, samples: Batch) -> tuple[np.ndarray, np.ndarray]: ...


def score(
    scorer: Scorer, requests: Sequence[Request], length: int, pad: int, both_ways: bool, shares: bool = True
) -> list[Score]:
    """Score requests, in their order.

    Args:
        length: positions of a sample.
        both_ways: whether a context is read both ways, as training's prefixes are, or causally.
        shares: whether requests in a row with one context are put together, so that it is read once.

    Raises:
        ValueError: a request is longer than a sample. Nothing is ever cut: a cut request is another one.
        UserError: a score is not finite.
    """
    if not requests:
        return []
    groups = grouped(requests, length if shares else 0)
    places = pack([group.positions for group in groups], length)
    losses, is_best = scorer.score(as_samples(groups, places, length, pad, both_ways))
    found: list[Score] = []
    for group, place in zip(groups, places):
        for begin, continuation in zip(group.begins(), group.continuations):
            own = (place.sample, slice(place.first + begin, place.first + begin + len(continuation)))
            log_likelihood = -float(losses[own].sum(dtype=np.float64))
            if not math.isfinite(log_likelihood):
                raise UserError(f"request {len(found)} has the log-likelihood {log_likelihood}; the model's weights are broken")
            found.append(Score(log_likelihood, bool(is_best[own].all()), len(continuation)))
    return found


def grouped(requests: Sequence[Request], length: int) -> list[Group]:
    """Put requests in a row with one context together, as long as they fit into `length` positions."""
    found: list[Group] = []
    for request in requests:
        if found and found[-1].context == request.context and len(found[-1].continuations) < MOST_BRANCHES:
            together = found[-1].with_another(request)
            if together.positions <= length:
                found[-1] = together
                continue
        found.append(Group(request.context, (request.continuation,)))
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


def as_samples(groups: Sequence[Group], places: Sequence[Place], length: int, pad: int, both_ways: bool) -> Batch:
    """Packed samples, [samples, length], each group an example of its own."""
    batch = Batch.empty(max(place.sample for place in places) + 1, length, pad)
    examples = [0] * len(batch.tokens)
    for group, place in zip(groups, places):
        context, example = len(group.context), examples[place.sample]
        examples[place.sample] += 1
        whole = (place.sample, slice(place.first, place.first + group.positions))
        batch.segments[whole], batch.kinds[whole] = example, 0
        kept = (place.sample, slice(place.first, place.first + context))
        batch.tokens[kept], batch.positions[kept], batch.prefix[kept] = group.context, np.arange(context), both_ways
        for number, (begin, continuation) in enumerate(zip(group.begins(), group.continuations), start=1):
            first = place.first + begin
            own = (place.sample, slice(first, first + len(continuation)))
            batch.tokens[own] = (group.context[-1], *continuation[:-1])
            batch.labels[own], batch.targets[own] = continuation, True
            batch.positions[own] = context - 1 + np.arange(len(continuation))
            if len(group.continuations) > 1:
                batch.segments[own] = example + number * BRANCH
                batch.prefix[place.sample, first] = True
    return batch
