"""The way to the device."""

import numpy as np
import pytest
import torch

from pretrain.data.loader import open_data
from pretrain.engine import micro_batch
from pretrain.engine.micro_batch import MicroBatch, OnDevice, in_one_copy, side_by_side, views
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
