"""Stacking and MIDAS: which layers exist, and which become copies of which."""

from hypothesis import given
from hypothesis import strategies as st

from pretrain.cost.flops import expected_active
from pretrain.subnetwork import make_method


def test_stacking_copies_the_top_and_midas_the_middle():
    stacking = make_method("stacking", layers=12, steps=40, path_lengths=[6, 8, 10, 12])
    assert [stacking.whole(step).length for step in (1, 10, 11, 21, 31, 40)] == [6, 6, 8, 10, 12, 12]
    assert stacking.whole(1).active == (True,) * 6 + (False,) * 6
    assert [stacking.copies(step) for step in (1, 11, 12, 21, 31)] == [
        (),
        ((6, 4), (7, 5)),
        (),
        ((8, 6), (9, 7)),
        ((10, 8), (11, 9)),
    ]
    midas = make_method("midas", layers=12, steps=40, path_lengths=[6, 8, 10, 12])
    # blocks of two: a b c -> a b b' c -> a b b'' b' c -> a b b'' b''' b' c
    assert midas.whole(1).active == (True,) * 4 + (False,) * 6 + (True,) * 2
    assert [midas.copies(step) for step in (11, 21, 31)] == [((8, 2), (9, 3)), ((4, 2), (5, 3)), ((6, 4), (7, 5))]


def grow(layers: list[str], name: str, added: int) -> list[str]:
    """By the papers' words, without places in a full-size model."""
    blocks = [layers[n : n + added] for n in range(0, len(layers), added)]
    if name == "stacking":
        return layers + layers[-added:]
    middle = (len(blocks) + 1) // 2
    return [layer for block in (*blocks[:middle], blocks[middle - 1], *blocks[middle:]) for layer in block]


@given(st.sampled_from(["stacking", "midas"]), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_growth_is_the_papers_whatever_the_sizes(name, added, first, times):
    lengths = [added * (first + n) for n in range(times + 1)]
    method = make_method(name, layers=lengths[-1], steps=10 * len(lengths), path_lengths=lengths)
    content: dict[int, str] = {}
    plain = [f"layer {n}" for n in range(lengths[0])]
    for number, stage in enumerate(method.stages):
        path = method.whole(stage.first_step)
        if number == 0:
            content = dict(zip((n for n, active in enumerate(path.active) if active), plain))
        else:
            plain = grow(plain, name, added)
            content |= {new: content[old] for new, old in method.copies(stage.first_step)}
        assert [content[n] for n, active in enumerate(path.active) if active] == plain
        assert expected_active(method, stage) == len(plain) == stage.path_length
    assert all(path == method.whole(step) for step in (1, 10) for path in method.paths(step))
