"""Random parts of the width: the same everywhere, equally many of every part, all equally likely."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.subnetwork.width import Blocks, Chosen, Width


@st.composite
def blocks(draw) -> Blocks:
    parts = draw(st.integers(1, 4))
    size = draw(st.integers(1, 8))
    each = draw(st.integers(1, size))
    return Blocks(each * parts, size * parts, parts, draw(st.integers(0, each)))


@given(blocks(), st.integers(0, 2**32), st.integers(1, 10**6), st.integers(0, 8), st.integers(0, 64), st.integers(0, 1))
def test_every_part_runs_equally_many_and_the_first_ones_always(scheme, seed, step, index, layer, kind):
    chosen = scheme.draw(kind, seed, step, index, layer)
    assert chosen == scheme.draw(kind, seed, step, index, layer), "the same on every rank"
    assert list(chosen.blocks) == sorted(set(chosen.blocks)) and chosen.of == scheme.of and len(chosen.blocks) == scheme.count
    size = scheme.of // scheme.parts
    by_part = Counter(block // size for block in chosen.blocks)
    assert set(by_part.values()) == {scheme.count // scheme.parts} and len(by_part) == scheme.parts
    assert all(part * size + first in chosen.blocks for part in range(scheme.parts) for first in range(scheme.fixed))


@given(blocks(), st.integers(0, 100))
def test_tensor_ranks_that_hold_whole_parts_have_equal_work(scheme, step):
    chosen = scheme.draw(0, 1, step, 0, 0)
    for ranks in (n for n in range(1, scheme.parts + 1) if scheme.parts % n == 0):
        own = [chosen.of_rank(rank, ranks) for rank in range(ranks)]
        assert len({len(part) for part in own}) == 1
        size = scheme.of // ranks
        assert tuple(rank * size + block for rank, part in enumerate(own) for block in part) == chosen.blocks


def test_free_blocks_are_equally_likely_and_layers_differ():
    scheme, steps = Blocks(4, 8, 2, 1), 3000
    counts = Counter(block for step in range(steps) for block in scheme.draw(0, 7, step, 0, 3).blocks)
    assert counts[0] == counts[4] == steps
    expected, error = steps / 3, (steps * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(counts[block] - expected) < 4 * error for block in (1, 2, 3, 5, 6, 7))
    draws = {scheme.draw(kind, 7, 1, index, layer).blocks for kind in (0, 1) for index in range(4) for layer in range(4)}
    assert len(draws) > 4


def test_shares():
    assert Width(Chosen((0, 2), 4), None).shares == (0.5, 1.0)


@pytest.mark.parametrize(("count", "of", "parts", "fixed"), [(3, 8, 2, 0), (4, 9, 2, 0), (2, 8, 2, 2)])
def test_what_cannot_be_is_refused(count, of, parts, fixed):
    with pytest.raises(ValueError, match="width_"):
        Blocks(count, of, parts, fixed)
