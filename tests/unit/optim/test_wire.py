"""How groups are cut into messages."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pretrain.optim.wire import JOINED_BELOW, bundles


@dataclass(eq=False)
class Group:
    part: int


@given(st.lists(st.integers(1, 400_000), max_size=12), st.sampled_from([1, 2, 4]), st.integers(50_000, 2_000_000))
def test_every_number_is_sent_once_in_order_and_in_messages_of_the_right_size(parts, replicas, most):
    groups = [Group(part) for part in parts]
    found = bundles(groups, most, replicas)
    flat = [(piece.group, piece.begin, piece.end) for bundle in found for piece in bundle]
    assert [(g, n) for g, begin, end in flat for n in (begin, end - 1)] == [
        (g, n) for g, begin, end in sorted(flat, key=lambda p: (groups.index(p[0]), p[1])) for n in (begin, end - 1)
    ]
    for group in groups:
        own = [(begin, end) for g, begin, end in flat if g is group]
        assert own[0][0] == 0 and own[-1][1] == group.part and all(a[1] == b[0] for a, b in zip(own, own[1:]))
    sizes = [sum(piece.end - piece.begin for piece in bundle) * replicas for bundle in found]
    assert all(size <= most for size in sizes)
    for before, after in zip(sizes, sizes[1:]):
        assert max(before, after) >= JOINED_BELOW or before + after > most - replicas, "small neighbours go together"


def test_a_limit_below_the_replicas_still_sends_something():
    assert len(bundles([Group(3)], most=1, replicas=4)) == 3


def test_a_large_group_is_a_message_of_its_own():
    large, small = Group(JOINED_BELOW), Group(10)
    assert [len(bundle) for bundle in bundles([large, small, small, large], 5 * 10**8, 1)] == [1, 2, 1]
    assert bundles([large], 5 * 10**8, 1)[0][0].is_whole
