"""Requests of a task as packed samples, and the scores that come of them."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pretrain.data.batch import BRANCH, Batch
from pretrain.errors import UserError
from pretrain.progress import bar

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

    length: int
    """Positions of the sample."""
    sample: int
    """Its number among those of this length."""
    first: int
    """Position of its first token."""


class Scorer(Protocol):
    """Whoever scores positions, as Engine.score does."""

    @property
    def sample_lengths(self) -> Sequence[int]: ...

    def score(self, samples: Batch) -> tuple[np.ndarray, np.ndarray]: ...


def score(scorer: Scorer, requests: Sequence[Request], pad: int, both_ways: bool, shares: bool = True) -> list[Score]:
    """Score requests, in their order.

    Args:
        both_ways: whether a context is read both ways, as training's prefixes are, or causally.
        shares: whether requests in a row with one context are put together, so that it is read once.

    Raises:
        ValueError: a request is longer than any sample. Nothing is ever cut: a cut request is another one.
        UserError: a score is not finite.
    """
    if not requests:
        return []
    groups = grouped(requests, max(scorer.sample_lengths) if shares else 0)
    places = pack([group.positions for group in groups], scorer.sample_lengths)
    scored = {}
    with bar("scoring", len(groups), "contexts") as shown:
        for length in sorted({place.length for place in places}):
            of_length = [pair for pair in zip(groups, places) if pair[1].length == length]
            scored[length] = scorer.score(as_samples(of_length, length, pad, both_ways))
            shown.add(len(of_length))
    found: list[Score] = []
    for group, place in zip(groups, places):
        losses, is_best = scored[place.length]
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


def pack(needs: Sequence[int], lengths: Sequence[int]) -> list[Place]:
    """Put requests into few samples, each in one piece: the longest first, where least room is left over, else into another
    sample of the least length that holds it.

    Args:
        needs: positions of each request.
        lengths: of samples, in order.

    Raises:
        ValueError: a request is longer than any sample.
    """
    rooms: list[tuple[int, int, int]] = []
    """Room that is left, and the sample that has it; in order."""
    samples = dict.fromkeys(lengths, 0)
    places: dict[int, Place] = {}
    for number in sorted(range(len(needs)), key=lambda number: -needs[number]):
        needed = needs[number]
        if needed > lengths[-1]:
            raise ValueError(f"request {number} takes {needed} positions, more than the {lengths[-1]} of a sample")
        index = bisect_left(rooms, (needed,))
        if index < len(rooms):
            room, length, sample = rooms.pop(index)
        else:
            room = length = lengths[bisect_left(lengths, needed)]
            sample = samples[length]
            samples[length] += 1
        places[number] = Place(length, sample, length - room)
        insort(rooms, (room - needed, length, sample))
    return [places[number] for number in range(len(needs))]


def as_samples(placed: Sequence[tuple[Group, Place]], length: int, pad: int, both_ways: bool) -> Batch:
    """Packed samples, [samples, length], of groups with places in samples of that length; each an example of its own."""
    batch = Batch.empty(max(place.sample for _, place in placed) + 1, length, pad)
    examples = [0] * len(batch.tokens)
    for group, place in placed:
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
