"""The way to the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.batch import PADDING, Batch
from pretrain.data.loader import open_data
from pretrain.engine import build_engine, micro_batch
from pretrain.engine.micro_batch import MicroBatch, OnDevice, in_one_copy, side_by_side, views
from pretrain.model.attention import dense_mask
from pretrain.subnetwork import LayerPath


def test_one_copy_brings_every_array_whole():
    draws = np.random.default_rng(0)
    arrays = {
        "tokens": draws.integers(0, 2**40, (3, 5)),
        "prefix": draws.random((3, 5)) < 0.5,
        "kinds": draws.integers(-1, 9, (3, 5)).astype(np.int16),
        "segments": draws.integers(-1, 9, (1, 7)).astype(np.int32).repeat(2, axis=0)[:, ::2],
        "none": np.zeros((2, 0), np.int64),
    }
    found = views(side_by_side(arrays, pin=False), arrays)
    for name, array in arrays.items():
        assert found[name].dtype == torch.from_numpy(array).dtype and np.array_equal(found[name].numpy(), array), name
    there = in_one_copy(arrays, torch.device("meta"))
    assert {name: t.shape for name, t in there.items()} == {name: t.shape for name, t in found.items()}
    assert len({t.untyped_storage()._cdata for t in there.values()}) == 1, "one buffer, one copy"


@pytest.mark.parametrize("fit", [1, 3, 8])
@pytest.mark.parametrize("behind", [0, 2])
def test_micro_batches_go_together_as_far_as_there_is_room_and_each_goes_once(project, monkeypatch, fit, behind):
    data = open_data(project.run("ds.train_batch_size=16"))
    batches = [MicroBatch(batch, LayerPath.full(8)) for batch in data.batch(1)]
    data.close()
    wanted = [batch.arrays(with_blocks=False) for batch in batches]
    room = sum(array.nbytes for arrays in wanted[:fit] for array in arrays.values())
    monkeypatch.setattr(micro_batch, "IN_A_COPY", room)
    made: list[list[int]] = []

    def counted(arrays, *where):
        made.append(list(dict.fromkeys(index for index, _ in arrays)))
        return in_one_copy(arrays, *where)

    monkeypatch.setattr(micro_batch, "in_one_copy", counted)
    there = OnDevice(batches, False, torch.device("cpu"), None, behind)
    for first in range(0, 8, 2):
        for index in (first, first + 1) * (2 if behind else 1):  # of two chunks, two micro-batches each
            found = there[index]
            assert found.keys() == wanted[index].keys()
            assert all(np.array_equal(found[name].numpy(), array) for name, array in wanted[index].items())
    assert made[0] == list(range(fit)) and [index for copy in made for index in copy] == list(range(8))


@given(st.data())
def test_no_mask_is_left_out_that_would_hide_something(data):
    """Where none is wanted, what there is of text reads what a causal model's does."""
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    segments = np.full((2, 12), PADDING, np.int32)
    prefix = np.zeros((2, 12), bool)
    for row in range(2):
        begin = data.draw(st.integers(0, 1))
        for number, length in enumerate(lengths[: data.draw(st.integers(0, len(lengths)))]):
            segments[row, begin : begin + length] = number
            prefix[row, begin : begin + data.draw(st.sampled_from([0, 0, 0, length]))] = True
            begin += length
    batch = replace(Batch.empty(2, 12, 0), segments=segments, prefix=prefix)
    reads = dense_mask(torch.from_numpy(segments), torch.from_numpy(prefix), torch.float32)[:, 0] == 0
    text = torch.from_numpy(segments != PADDING)
    as_causal = (reads == torch.ones(12, 12, dtype=torch.bool).tril())[text].all()
    assert MicroBatch(batch, LayerPath.full(8)).is_causal <= bool(as_causal)
    if len(lengths) == 1 and segments[:, 0].tolist() == [0, 0] and not prefix.any():
        assert MicroBatch(batch, LayerPath.full(8)).is_causal


def test_without_a_mask_losses_and_gradients_are_the_same(project, ranks, monkeypatch):
    run = project.run("data.objective=causal", "ds.progressive_subnetwork.method=full")
    data = open_data(run)
    segments = np.where(np.arange(run.recipe.data.sequence_length) < 50, 0, PADDING).astype(np.int32)
    batches = [
        replace(batch, segments=segments[None].repeat(len(batch.tokens), 0), targets=batch.targets & (segments == 0))
        for batch in data.batch(1)
    ]
    data.close()
    masks: list[torch.Tensor] = []
    monkeypatch.setattr("pretrain.engine.schedule.dense_mask", lambda *args: masks.append(dense_mask(*args)) or masks[-1])
    without = build_engine(run, ranks).step(1, batches, run.method.paths(1))
    assert not masks
    monkeypatch.setattr(MicroBatch, "is_causal", False)
    with_masks = build_engine(run, ranks).step(1, batches, run.method.paths(1))
    assert len(masks) == len(batches)
    assert without.loss == pytest.approx(with_masks.loss, rel=1e-6)
    assert without.grad_norm == pytest.approx(with_masks.grad_norm, rel=1e-5)
