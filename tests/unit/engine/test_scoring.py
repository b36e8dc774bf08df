"""Lengths of samples that are scored, and how replicas share them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.batch import Batch
from pretrain.engine.scoring import LEAST, Rounds, sample_lengths


@given(st.integers(1, 700), st.integers(1, 8))
def test_a_request_fills_four_fifths_of_the_least_sample_that_holds_it(parts, multiple):
    longest = parts * multiple
    lengths = sample_lengths(longest, multiple)
    assert lengths == sorted(set(lengths)) and lengths[-1] == longest and all(length % multiple == 0 for length in lengths)
    for shorter, longer in zip(lengths, lengths[1:]):
        assert longer - shorter <= max(multiple, shorter // 4 + multiple - 1)
    assert lengths[0] <= LEAST + multiple - 1 or lengths == [longest]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_every_sample_is_scored_once_and_all_replicas_run_as_much(count, most, replicas, multiple, even):
    rounds = Rounds.of(count, most, replicas, multiple, even)
    samples = Batch.empty(count, 3, 0)
    samples.tokens[:] = np.arange(1, count + 1)[:, None]
    samples.targets[:] = True
    shares = [rounds.shares(samples, replica) for replica in range(replicas)]
    assert {len(share) for share in shares} == {rounds.count} and rounds.count % multiple == 0
    assert rounds.micro_batch_size <= most and (even or rounds.micro_batch_size == most)
    order = [share[index] for index in range(rounds.count) for share in shares]
    tokens = np.concatenate([batch.tokens[:, 0] for batch in order])
    assert tokens[:count].tolist() == list(range(1, count + 1)) and not np.concatenate([b.targets for b in order])[count:].any()
    if even:
        assert len(tokens) - count < rounds.count * replicas, "less than one sample of nothing in each micro-batch"


@pytest.mark.parametrize("longest", [1, 7, LEAST])
def test_short_samples_have_one_length(longest):
    assert sample_lengths(longest, 1) == [longest]
