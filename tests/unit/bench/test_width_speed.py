"""The bar that parts of the width are held to, on the numbers that were measured."""

import json
from pathlib import Path

FOUND = json.loads((Path(__file__).parents[3] / "bench/results/width_speed.json").read_text())
MOST = 1.08


def test_half_of_the_width_takes_what_half_of_the_operations_promise():
    assert FOUND["facts"]["hidden_size"] == 768
    for what in ("half the heads", "half the columns", "half of both"):
        row = FOUND["rows"][what]
        assert row["ideal"] < row["measured"] <= MOST * row["ideal"], what
