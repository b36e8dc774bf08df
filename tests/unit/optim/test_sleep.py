"""Who sleeps, since when, and at which rates the updates that it missed are made up for."""

from hypothesis import given
from hypothesis import strategies as st

from pretrain.optim.sleep import LONGEST_SLEEP, Sleepers

STEPS = st.lists(st.sets(st.integers(0, 3)), max_size=30)


@given(STEPS)
def test_a_layer_misses_the_rates_of_the_steps_since_its_last_one(steps):
    sleepers = Sleepers(4, is_exact=True)
    for step, awake in enumerate(steps, start=1):
        for layer in awake:
            since = [s for s, others in enumerate(steps[: step - 1], start=1) if layer in others]
            assert sleepers.missed(layer) == [s / 10 for s in range((since[-1] if since else 0) + 1, step)]
            sleepers.made_up(layer)
        sleepers.stepped(awake, step / 10)
        assert all(sleepers.updates[layer] == step for layer in awake)
    for layer in range(4):
        sleepers.made_up(layer)
    assert sleepers.updates == [len(steps)] * 4 and not any(sleepers.missed(layer) for layer in range(4))


@given(STEPS)
def test_what_stands_still_misses_nothing_and_is_counted_by_itself(steps):
    sleepers = Sleepers(4, is_exact=False)
    for step, awake in enumerate(steps, start=1):
        sleepers.stepped(awake, step / 10)
    assert sleepers.updates == [sum(layer in awake for awake in steps) for layer in range(4)]
    assert not any(sleepers.missed(layer) for layer in range(4)) and sleepers.overslept() == []


def test_a_sleep_has_an_end():
    sleepers = Sleepers(2, is_exact=True)
    for step in range(1, LONGEST_SLEEP + 1):
        assert sleepers.overslept() == []
        sleepers.stepped([0], step / 10)
    assert sleepers.overslept() == [1]


def test_ranks_that_updated_other_layers_tell_another_fingerprint():
    def after(*steps, rate=0.1):
        sleepers = Sleepers(3, is_exact=True)
        for awake in steps:
            sleepers.stepped(awake, rate)
        return sleepers.fingerprint()

    assert after([0, 1], [2]) == after([1, 0], [2])
    assert len({after([0, 1], [2]), after([0], [2]), after([0, 1]), after([0, 1], [2], rate=0.2)}) == 4


def test_a_restored_count_goes_on():
    sleepers = Sleepers(2, is_exact=True)
    sleepers.restored(10, (10, 4))
    sleepers.stepped([0], 0.1)
    sleepers.stepped([0, 1], 0.2)
    assert sleepers.updates == [12, 5] and sleepers.step == 12
