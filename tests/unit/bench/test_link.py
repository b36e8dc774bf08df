"""The bars that the committed measurement of a slow link meets."""

import json
from pathlib import Path

import pytest

from bench.link import gain

FOUND = json.loads((Path(__file__).parents[3] / "bench/results/link.json").read_text())
RATES = (400, 800, 1600)


@pytest.mark.parametrize("mbit", RATES)
def test_a_whole_run_is_within_a_twentieth_of_its_ideal_and_steps_within_a_tenth_of_what_plan_said(mbit):
    computing, measured = FOUND["median"]["computing"], FOUND["median"][f"{mbit} Mbit/s"]
    assert len(FOUND["rounds"]) >= 3
    for name, predicted in measured["predicted"].items():
        row = measured["rows"][name]
        seconds = {k: row[k]["seconds"] for k in computing}
        waits = seconds["12"] - computing["12"]
        ideal = gain([computing[k] + waits * row[k]["bytes"] / row["12"]["bytes"] for k in computing])
        assert gain(list(seconds.values())) == pytest.approx(ideal, rel=0.05)
        assert predicted == pytest.approx(seconds, rel=0.1)


def test_at_400_mbit_half_the_layers_and_overlap_pay():
    rows = FOUND["median"]["400 Mbit/s"]["rows"]
    (former,) = (row for name, row in rows.items() if name.startswith("former"))
    plain, overlapped = rows["by layer"], rows["by layer, overlapped"]
    assert former["6"]["seconds"] / overlapped["6"]["seconds"] >= 2.5
    assert plain["12"]["seconds"] / plain["6"]["seconds"] >= 1.8
    assert overlapped["12"]["seconds"] / plain["12"]["seconds"] <= 0.8
