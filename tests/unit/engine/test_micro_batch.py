"""The way to the device."""

import numpy as np
import torch

from pretrain.engine.micro_batch import in_one_copy, side_by_side, views


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
