from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.subnetwork.schedule import Stage, make_stages


def test_equal_stages_after_a_full_model_start():
    stages = make_stages(100, 12, [6, 8, 10, 12], full_model_first_fraction=0.2)
    assert stages == (
        Stage(0, 1, 20, 12),
        Stage(1, 21, 40, 6),
        Stage(2, 41, 60, 8),
        Stage(3, 61, 80, 10),
        Stage(4, 81, 100, 12),
    )


def test_boundaries_are_rounded_cumulative_fractions():
    stages = make_stages(10, 8, [4, 6, 8], [0.25, 0.25, 0.5])
    assert [stage.last_step for stage in stages] == [2, 5, 10]  # 2.5 and 5.0, ties to even


@given(st.integers(4, 10_000), st.integers(1, 4), st.floats(0, 0.5), st.randoms())
def test_stages_cover_every_step_once(steps, count, first, random):
    parts = [random.randint(1, 9) for _ in range(count)]
    fractions = [float(Fraction(part, sum(parts))) for part in parts]
    try:
        stages = make_stages(steps, 12, sorted(random.randint(2, 12) for _ in range(count)), fractions, first)
    except ValueError as error:
        assert "empty" in str(error)
        return
    covered = [step for stage in stages for step in range(stage.first_step, stage.last_step + 1)]
    assert covered == list(range(1, steps + 1))
    assert abs(sum(s.steps for s in stages if s.index == 0) - first * steps) <= 0.5


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (dict(path_lengths=[]), "empty"),
        (dict(path_lengths=[8, 6]), "8-6 shrink"),
        (dict(path_lengths=[6, 13]), "between 1 and the model's 12 layers"),
        (dict(path_lengths=[6, 12], stage_fractions=[0.5]), "1 entries for 2"),
        (dict(path_lengths=[6, 12], stage_fractions=[0.5, 0.6]), "add up to 1.1"),
        (dict(path_lengths=[6, 12], stage_fractions=[1.5, -0.5]), "positive"),
        (dict(path_lengths=[6, 12], full_model_first_fraction=1.0), "below 1"),
        (dict(path_lengths=[6, 8, 12], steps=2), "stage 2 of path_lengths 6-8-12 would be empty in 2 steps"),
    ],
)
def test_schedules_that_cannot_run_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_stages(**{"steps": 100, "layers": 12, **arguments})
