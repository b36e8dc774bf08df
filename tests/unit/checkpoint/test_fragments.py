"""Every number of a parameter comes back, whatever cuts wrote it and whatever cuts read it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoint.fragments import Fragment, Split, common


@st.composite
def shapes(draw):
    """A shape, the dimension in which it is split, and how many matrices stand side by side there; up to 4 ranks can share it."""
    dims = draw(st.integers(1, 2))
    matrices = draw(st.sampled_from([1, 2]))
    shape = [draw(st.integers(1, 5)) for _ in range(dims)]
    dim = draw(st.integers(0, dims - 1))
    shape[dim] *= 4 * matrices
    return tuple(shape), dim, matrices


@st.composite
def cuts(draw, whole):
    """All fragments of one layout: tensor ranks, and stretches of each rank's part."""
    shape, dim, matrices = whole
    ranks = draw(st.sampled_from([1, 2, 4]))
    fragments = []
    for rank in range(ranks):
        split = Split.of(shape, dim, matrices, ranks, rank) if ranks > 1 else Split.whole(shape)
        size = int(np.prod(shape)) // ranks
        edges = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))})
        fragments += [Fragment(split, a, b - a) for a, b in zip(edges, edges[1:])]
    return fragments


def part_of(whole: np.ndarray, dim: int, matrices: int, ranks: int, rank: int) -> np.ndarray:
    """What a rank holds, said the way tensor parallelism is explained: every matrix is cut, and each rank takes its piece of
    each."""
    if ranks == 1:
        return whole.ravel()
    return np.concatenate([np.split(matrix, ranks, dim)[rank] for matrix in np.split(whole, matrices, dim)], dim).ravel()


def held(fragment: Fragment, whole: np.ndarray, dim: int, matrices: int) -> np.ndarray:
    part = part_of(whole, dim, matrices, fragment.split.ranks, fragment.split.rank)
    return part[fragment.start : fragment.start + fragment.length]


@given(st.data())
def test_any_layout_reads_what_any_other_wrote(data):
    shape, dim, matrices = kind = data.draw(shapes())
    whole = np.arange(np.prod(shape)).reshape(shape)
    written, wanted = data.draw(cuts(kind)), data.draw(cuts(kind))
    for target in wanted:
        found = np.full(target.length, -1)
        for source in written:
            numbers, copies = held(source, whole, dim, matrices), common(source, target)
            for a, b, n in zip(copies.source, copies.target, copies.length):
                assert (found[b : b + n] == -1).all(), "a number comes from one place"
                found[b : b + n] = numbers[a : a + n]
        assert (found == held(target, whole, dim, matrices)).all()


@given(st.data())
def test_fragments_that_share_nothing_have_nothing_in_common(data):
    kind = data.draw(shapes())
    fragments = data.draw(cuts(kind))
    for one in fragments:
        for other in fragments:
            assert common(one, other).total == (one.length if one == other else 0)


def test_a_wrong_block_is_noticed():
    """The comparison above can fail: a row-split matrix read as if it were split by columns."""
    shape = (4, 4)
    whole = np.arange(16).reshape(shape)
    right, wrong = (Fragment(Split.of(shape, dim, 1, 2, 1), 0, 8) for dim in (1, 0))
    copies = common(wrong, Fragment(Split.whole(shape), 0, 16))
    numbers = held(right, whole, 1, 1)
    found = np.full(16, -1)
    for a, b, n in zip(copies.source, copies.target, copies.length):
        found[b : b + n] = numbers[a : a + n]
    assert not (found[8:] == whole.ravel()[8:]).all()
