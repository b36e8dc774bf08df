"""Requests in samples: every token where a plain loop would put it, and scores of a model whose answers are known."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.batch import BRANCH
from pretrain.errors import UserError
from pretrain.evaluate.requests import Request, as_samples, grouped, pack, score
from pretrain.model.attention import dense_mask

VOCABULARY, LENGTHS = 12, (8, 15, 24)
LENGTH = LENGTHS[-1]
BIGRAMS = np.random.default_rng(3).dirichlet(np.ones(VOCABULARY), VOCABULARY)
"""Probability of each token after each other."""

tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12).map(tuple)
requests = st.lists(st.builds(Request, tokens, tokens), min_size=1, max_size=9)
questions = st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=5)), min_size=1, max_size=6).map(
    lambda found: [Request(context, choice) for context, choices in found for choice in choices]
)
"""Some with several choices after one context."""


class Bigrams:
    """A model by hand. What does not count scores nothing like a loss, so that nobody adds it."""

    sample_lengths = LENGTHS

    def score(self, samples):
        assert samples.tokens.shape[1] in LENGTHS
        losses = np.where(samples.targets, -np.log(BIGRAMS[samples.tokens, samples.labels]), np.nan).astype(np.float32)
        return losses, BIGRAMS[samples.tokens].argmax(-1) == samples.labels


@given(questions, st.booleans())
def test_scores_are_those_of_a_loop_over_bigrams(asked, shares):
    for request, found in zip(asked, score(Bigrams(), asked, 0, both_ways=True, shares=shares), strict=True):
        whole = request.context + request.continuation
        pairs = list(zip(whole, whole[1:]))[len(request.context) - 1 :]
        assert found.log_likelihood == pytest.approx(sum(np.log(BIGRAMS[a, b]) for a, b in pairs), rel=1e-5)
        assert found.is_greedy == all(BIGRAMS[a].argmax() == b for a, b in pairs) and found.tokens == len(request.continuation)


@given(requests)
def test_requests_are_apart_and_contexts_alone_are_prefixes(asked):
    groups = grouped(asked, 0)
    places = pack([group.positions for group in groups], [LENGTH])
    batch = as_samples(list(zip(groups, places)), LENGTH, 0, both_ways=True)
    assert batch.targets.sum() == sum(len(request.continuation) for request in asked) and batch.segments.max() < BRANCH
    assert (batch.segments >= 0).sum() == sum(request.positions for request in asked)
    for request, place in zip(asked, places, strict=True):
        own = (place.sample, slice(place.first, place.first + request.positions))
        assert tuple(batch.tokens[own]) == (request.context + request.continuation)[:-1]
        assert len(set(batch.segments[own])) == 1 and list(batch.positions[own]) == list(range(request.positions))
        assert batch.prefix[own].sum() == len(request.context) and batch.prefix[own][: len(request.context)].all()
        assert not batch.targets[own][: len(request.context) - 1].any(), "a context is read, never scored"
    assert not as_samples(list(zip(groups, places)), LENGTH, 0, both_ways=False).prefix.any()


@given(questions, st.booleans())
def test_each_continuation_reads_its_context_and_itself_as_if_it_were_alone(asked, both_ways):
    """For each target, the tokens and places that it may read are those of the request by itself."""
    groups = grouped(asked, LENGTH)
    places = pack([group.positions for group in groups], [LENGTH])
    batch = as_samples(list(zip(groups, places)), LENGTH, 0, both_ways)
    segments, prefix = torch.from_numpy(batch.segments), torch.from_numpy(batch.prefix)
    may = dense_mask(segments, prefix, torch.float32, branches=True)[:, 0] == 0
    assert may.any(-1).all(), "every row reads something"
    waiting = iter(asked)
    for group, place in zip(groups, places, strict=True):
        assert group.positions <= LENGTH or len(group.continuations) == 1
        for begin in group.begins():
            request = next(waiting)
            whole, context = request.context + request.continuation, len(request.context)
            for number in range(len(request.continuation)):
                at = place.first + begin + number
                read = may[place.sample, at].nonzero()[:, 0]
                found = sorted((int(batch.positions[place.sample, k]), int(batch.tokens[place.sample, k])) for k in read)
                assert found == list(enumerate(whole[: context + number])), "each once, at its place"
                assert batch.labels[place.sample, at] == request.continuation[number]
        last = place.first + len(group.context) - 1
        if len(group.continuations) > 1:
            reads = {int(k) - place.first for k in may[place.sample, place.first].nonzero()[:, 0]}
            assert reads == (set(range(len(group.context))) if both_ways else {0})
            assert not batch.targets[place.sample, place.first : last + 1].any()
    assert next(waiting, None) is None


def test_a_context_is_read_once():
    asked = [Request((1,) * 10, (2, 3))] * 3 + [Request((1,) * 9, (2,))]
    assert [group.positions for group in grouped(asked, LENGTH)] == [16, 9]
    assert [group.positions for group in grouped(asked, 15)] == [14, 11, 9], "as many together as fit"
    assert len(grouped(asked, 0)) == 4


@given(st.lists(st.integers(1, LENGTH), max_size=40), st.sampled_from([LENGTHS, (LENGTH,)]))
def test_packing_is_tight_and_in_one_piece(needs, lengths):
    samples, first = {}, {}
    for place, needed in zip(pack(needs, lengths), needs, strict=True):
        own = (place.length, place.sample)
        taken = samples.setdefault(own, np.zeros(place.length, bool))
        assert not taken[place.first : place.first + needed].any() and place.first + needed <= place.length
        taken[place.first : place.first + needed] = True
        if place.first == 0:
            first[own] = needed
    for length in lengths:
        assert sorted(sample for own, sample in samples if own == length) == list(range(sum(own == length for own, _ in samples)))
    for (length, _), needed in first.items():
        assert length == min(length for length in lengths if length >= needed), "no longer than it must be"
    free = {own: int((~taken).sum()) for own, taken in samples.items()}
    for one, other in combinations(samples, 2):
        assert free[one] < first[other] or free[other] < first[one], "one of them would have gone into the other"


def test_what_is_too_long_or_empty_is_refused_and_nothing_is_cut():
    with pytest.raises(ValueError, match="request 1 takes 25 positions, more than the 24 of a sample"):
        score(Bigrams(), [Request((1,), (2,)), Request((1,) * 20, (2,) * 6)], 0, both_ways=False)
    with pytest.raises(ValueError, match="a context of one token at least"):
        Request((), (1,))
    with pytest.raises(ValueError, match="a continuation of one token at least"):
        Request((1,), ())
    assert score(Bigrams(), [], 0, both_ways=False) == []


def test_a_score_that_is_none_is_an_error():
    class Broken(Bigrams):
        def score(self, samples):
            return np.full(samples.tokens.shape, np.nan, np.float32), samples.targets

    with pytest.raises(UserError, match="request 0 has the log-likelihood nan"):
        score(Broken(), [Request((1,), (2,))], 0, both_ways=False)
