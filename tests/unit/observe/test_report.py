"""The summary of a run says what can be said."""

import pytest

from pretrain.observe.report import Summary


def rows(project, seconds) -> list[dict]:
    """Twenty steps of the test run; `seconds(step, layers)` are a pair of the start's number and the time."""
    found = []
    for step in range(1, 21):
        layers = sum(path.length for path in project.run().method.paths(step)) / 2
        restart, took = seconds(step, layers)
        found.append({"step": step, "loss": 1.0 / step, "active_layers": layers, "step_seconds": took, "restart": restart})
        found[-1]["layer_flops_saved"] = 0.25
    return found


def test_the_steps_at_either_end_do_not_overlap(project):
    summary = Summary.of(project.run(), rows(project, lambda step, layers: (0, layers)))
    assert summary.ends == 10 and summary.first_loss != summary.last_loss
    assert "in the first 10 steps" in dict(summary.lines(project.run()))["training loss"]


def test_only_steps_of_one_start_are_compared(project):
    """Resumed on a layout that is ten times as fast, where all layers run: the times of before say nothing beside these."""
    summary = Summary.of(project.run(), rows(project, lambda step, layers: (0, layers) if step < 13 else (1, layers / 10)))
    assert summary.realised_speedup is None
    assert "no one start ran steps of every length" in dict(summary.lines(project.run()))["speed-up, realised"]
    whole = Summary.of(project.run(), rows(project, lambda step, layers: (0, layers)))
    assert whole.realised_speedup == pytest.approx(8 / 6, rel=0.1)
