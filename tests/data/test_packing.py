"""Packed samples: pure functions of (seed, index), full, and whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.loader import open_data
from pretrain.data.packing import PADDING
from pretrain.data.shuffle import permute


@given(st.integers(1, 3000), st.integers(0, 5), st.integers(0, 5))
def test_permutation_hits_everything_once(size, seed, epoch):
    assert sorted(permute(i, size, seed, epoch) for i in range(size)) == list(range(size))


def test_permutation_differs_by_key_and_scatters():
    orders = [[permute(i, 1000, key) for i in range(1000)] for key in range(2)]
    assert orders[0] != orders[1]
    assert abs(np.corrcoef(range(1000), orders[0])[0, 1]) < 0.15


@pytest.fixture(scope="module")
def data(project):
    data = open_data(project.run())
    yield data
    data.close()


def test_a_sample_depends_on_its_number_alone(project, data):
    whole = data.train.batch(100, 8)
    for row in (0, 3, 7):
        alone = data.train.batch(100 + row, 1)
        for name, array in vars(alone).items():
            assert (array[0] == getattr(whole, name)[row]).all(), name
    other = open_data(project.run("seed=1"))
    assert (other.train.batch(100, 8).tokens != whole.tokens).any()
    other.close()


def test_micro_batches_cut_the_same_global_batch(project):
    """Step 3's samples, whatever the micro-batch."""
    rows = []
    for size in (1, 4):
        data = open_data(project.run(f"ds.train_micro_batch_size_per_gpu={size}"))
        rows.append(np.concatenate([batch.tokens for batch in data.batch(3)]))
        data.close()
    assert (rows[0] == rows[1]).all()


def test_batches_made_ahead_are_the_batches_of_their_steps(data):
    for step in (1, 2, 3, 7, 8):
        ahead = data.batch(step)
        directly = data.train.batch((step - 1) * 8, 8)
        assert (np.concatenate([b.tokens for b in ahead]) == directly.tokens).all()


def test_packs_are_well_formed_and_full(data):
    special = data.train.mixture.special
    batch = data.train.batch(0, 400)
    assert (batch.segments != PADDING).mean() > 0.98
    for row in range(400):
        segments = batch.segments[row]
        for example in range(segments.max() + 1):
            places = np.flatnonzero(segments == example)
            assert (np.diff(places) == 1).all()
            prefix, targets = batch.prefix[row, places], batch.targets[row, places]
            length = prefix.sum()
            assert batch.tokens[row, places[0]] in special.modes.values()
            assert prefix[:length].all() and not prefix[length:].any()
            assert targets[length - 1 :].all() and not targets[: length - 1].any(), "loss on the target, from its first token"
            assert batch.labels[row, places[-1]] == special.eos
            assert (batch.labels[row, places[:-1]] == batch.tokens[row, places[1:]]).all()
    empty = batch.segments == PADDING
    assert not batch.targets[empty].any() and (batch.tokens[empty] == special.pad).all()


def test_an_epoch_shows_nearly_all_text_once_and_the_next_one_other_windows(data):
    train = data.train
    first = train.batch(0, train.windows)
    again = train.batch(train.windows, train.windows)
    text = lambda batch: np.bincount(batch.tokens[(batch.segments >= 0) & (batch.tokens > 105)], minlength=600)
    whole = np.bincount(train.stream.tokens, minlength=600)
    assert 0.75 < text(first).sum() / whole.sum() < 1.0, "prefixes and targets, less what sentinels took the room of"
    assert (first.tokens != again.tokens).any(axis=1).mean() > 0.9
