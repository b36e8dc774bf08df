"""`compile: layers` with generated code, as people run it: losses of an eager run to rounding, and a resume to the bit."""

import pytest

from tests.support.runs import essence, rows, train

pytestmark = pytest.mark.long
COMPILED = ("--compile", "layers", "--save-every", "10")


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("compiled") / "run"
    done = train(project, run_dir, *COMPILED)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_losses_are_those_of_an_eager_run_to_rounding(project, unbroken, tmp_path):
    assert train(project, tmp_path / "eager").returncode == 0
    ours, theirs = ([row["loss"] for row in rows(run) if "loss" in row] for run in (unbroken, tmp_path / "eager"))
    assert ours == pytest.approx(theirs, rel=1e-6) and len(ours) == 20


def test_a_resumed_run_has_the_bits_of_one_without_a_break_and_may_not_turn_eager_in_silence(project, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    assert train(project, run_dir, *COMPILED, "--stop-at", "10").returncode == 0
    refused = train(project, run_dir)
    assert refused.returncode == 2 and "recipe.compile is 'layers' there" in refused.stderr
    done = train(project, run_dir, *COMPILED)
    assert done.returncode == 0, done.stderr
    assert essence(rows(run_dir)) == essence(rows(unbroken))
