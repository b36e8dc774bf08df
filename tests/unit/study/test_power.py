"""Seeds that a study needs: by their own definition, and held against what such studies really come to."""

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.study.power import MOST, half_width, needs, seeds_for
from pretrain.study.statistics import Estimate, Group
from tests.unit.study.test_page import made_row


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_it_is_the_least_number_of_seeds_that_is_enough(scatter, wanted):
    seeds = seeds_for(scatter, wanted)
    if seeds is None:
        assert half_width(scatter, MOST) > wanted
    else:
        assert half_width(scatter, seeds) <= wanted and (seeds == 2 or half_width(scatter, seeds - 1) > wanted)


def test_a_half_width_is_that_of_an_estimate():
    values = [1.0, 2.0, 6.0]
    assert half_width(7**0.5, 3) == pytest.approx(Estimate.of(values).half_width)


def test_most_studies_are_as_narrow_as_foretold():
    """A pilot of 4 seeds foretells; studies with as many seeds as the cautious number are narrow enough in 4 of 5."""
    draw, enough, tries = random.Random(1), 0, 400
    for _ in range(tries):
        pilot = [made_row("a", seed, draw.gauss(5.0, 0.05)) for seed in range(4)]
        base = Group("b", tuple(made_row("b", seed, 5.0) for seed in range(4)))
        (need,) = needs([Group("a", tuple(pilot)), base], base, 0.03)
        assert need.expected <= need.cautious
        enough += Estimate.of([draw.gauss(0, 0.05) for _ in range(need.cautious)]).half_width <= 0.03
    assert 0.65 < enough / tries < 0.85  # the second study scatters, too


def test_one_seed_says_nothing_of_scatter():
    one, base = (Group(name, (made_row(name, 1, 1.0),)) for name in "ab")
    assert needs([one, base], base, 0.03) == []


def report(out, wanted: str) -> subprocess.CompletedProcess:
    study = "bench/studies/ul2_12_layers/study.yaml"
    words = [sys.executable, "-m", "pretrain", "report", study, "--out", str(out), "--half-width", wanted]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_the_command_prints_them(tmp_path):
    done = report(tmp_path, "0.03")
    assert done.returncode == 0 and "raptr - full_4e3" in done.stdout and "± 0.03 nats" in done.stdout
    wrong = report(tmp_path, "0")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "--half-width" in wrong.stderr
