"""The permutation of samples: everything once, scattered."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.shuffle import permute


@given(st.integers(1, 3000), st.integers(0, 5), st.integers(0, 5))
def test_permutation_hits_everything_once(size, seed, epoch):
    assert sorted(permute(i, size, seed, epoch) for i in range(size)) == list(range(size))


def test_permutation_differs_by_key_and_scatters():
    orders = [[permute(i, 1000, key) for i in range(1000)] for key in range(2)]
    assert orders[0] != orders[1]
    assert abs(np.corrcoef(range(1000), orders[0])[0, 1]) < 0.15
