"""Requests in samples: every token where a plain loop would put it, and scores of a model whose answers are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import UserError
from pretrain.evaluate.requests import Request, as_samples, pack, score

VOCABULARY, LENGTH = 12, 24
BIGRAMS = np.random.default_rng(3).dirichlet(np.ones(VOCABULARY), VOCABULARY)
"""Probability of each token after each other."""

tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12).map(tuple)
requests = st.lists(st.builds(Request, tokens, tokens), min_size=1, max_size=9)


class Bigrams:
    """A model by hand. What does not count scores nothing like a loss, so that nobody adds it."""

    def score(self, samples):
        losses = np.where(samples.targets, -np.log(BIGRAMS[samples.tokens, samples.labels]), np.nan).astype(np.float32)
        return losses, BIGRAMS[samples.tokens].argmax(-1) == samples.labels


@given(requests)
def test_scores_are_those_of_a_loop_over_bigrams(asked):
    for request, found in zip(asked, score(Bigrams(), asked, LENGTH, 0, both_ways=True), strict=True):
        whole = request.context + request.continuation
        pairs = list(zip(whole, whole[1:]))[len(request.context) - 1 :]
        assert found.log_likelihood == pytest.approx(sum(np.log(BIGRAMS[a, b]) for a, b in pairs), rel=1e-5)
        assert found.is_greedy == all(BIGRAMS[a].argmax() == b for a, b in pairs) and found.tokens == len(request.continuation)


@given(requests)
def test_requests_are_apart_and_contexts_alone_are_prefixes(asked):
    places = pack([request.positions for request in asked], LENGTH)
    batch = as_samples(asked, places, LENGTH, 0, both_ways=True)
    assert batch.targets.sum() == sum(len(request.continuation) for request in asked)
    assert (batch.segments >= 0).sum() == sum(request.positions for request in asked)
    for request, place in zip(asked, places):
        own = (place.sample, slice(place.first, place.first + request.positions))
        assert tuple(batch.tokens[own]) == (request.context + request.continuation)[:-1]
        assert len(set(batch.segments[own])) == 1 and list(batch.positions[own]) == list(range(request.positions))
        assert batch.prefix[own].sum() == len(request.context) and batch.prefix[own][: len(request.context)].all()
        assert not batch.targets[own][: len(request.context) - 1].any(), "a context is read, never scored"
    assert not as_samples(asked, places, LENGTH, 0, both_ways=False).prefix.any()


@given(st.lists(st.integers(1, LENGTH), max_size=40))
def test_packing_is_tight_and_in_one_piece(lengths):
    taken = np.zeros((len(lengths), LENGTH), bool)
    for place, needed in zip(pack(lengths, LENGTH), lengths):
        own = (place.sample, slice(place.first, place.first + needed))
        assert not taken[own].any() and place.first + needed <= LENGTH
        taken[own] = True
    half_full = (taken.sum(1) * 2 <= LENGTH) & taken.any(1)
    assert half_full.sum() <= 1, "two of them would have been one"
    assert len({place.sample for place in pack(lengths, LENGTH)}) == taken.any(1).sum()


def test_what_is_too_long_or_empty_is_refused_and_nothing_is_cut():
    with pytest.raises(ValueError, match="request 1 takes 25 positions, more than the 24 of a sample"):
        score(Bigrams(), [Request((1,), (2,)), Request((1,) * 20, (2,) * 6)], LENGTH, 0, both_ways=False)
    with pytest.raises(ValueError, match="a context of one token at least"):
        Request((), (1,))
    with pytest.raises(ValueError, match="a continuation of one token at least"):
        Request((1,), ())
    assert score(Bigrams(), [], LENGTH, 0, both_ways=False) == []


def test_a_score_that_is_none_is_an_error():
    class Broken:
        def score(self, samples):
            return np.full(samples.tokens.shape, np.nan, np.float32), samples.targets

    with pytest.raises(UserError, match="request 0 has the log-likelihood nan"):
        score(Broken(), [Request((1,), (2,))], LENGTH, 0, both_ways=False)
