"""A polynomial, what a network has of each of its degrees, and the page about it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.theory.degrees import (
    DEGREES,
    LAYERS,
    LEARNED,
    METHODS,
    Polynomial,
    Residual,
    Row,
    arrivals,
    differences,
    last_errors,
    measure,
    method_of,
    signs,
)  # fmt: skip

ROWS = Path("bench/results/theory_degrees.rows.jsonl")


def test_errors_tell_which_degree_is_missing():
    polynomial, x = Polynomial(3), signs(np.random.default_rng(1), 200_000)
    products = polynomial.products(x)
    assert polynomial(x).var().item() == pytest.approx(len(DEGREES), rel=0.05), "each degree has the same share"
    assert max(polynomial.errors(polynomial(x), x)) < 0.01
    assert polynomial.errors(torch.zeros(len(x)), x) == [1.0] * len(DEGREES)
    without = polynomial(x) - products[:, 2].sum(1) / 2
    assert [round(error) for error in polynomial.errors(without, x)] == [0, 0, 1, 0, 0]
    for seed in range(30):
        assert all(len({frozenset(one.tolist()) for one in sets}) == 4 for sets in Polynomial(seed).sets), "no product twice"


def test_a_path_runs_its_layers_alone():
    network, x = Residual(1), signs(np.random.default_rng(1), 8)
    active = [layer % 3 > 0 for layer in range(LAYERS)]
    shorter = Residual(1)
    shorter.layers = torch.nn.ModuleList(layer for layer, runs in zip(shorter.layers, active) if runs)
    assert torch.equal(network(x, active), shorter(x)) and not torch.equal(network(x), shorter(x))


def test_methods_are_the_programs_own_and_grow_or_shrink_as_they_say():
    lengths = {name: [method_of(name, 1000, 1).paths(step)[0].length for step in (1, 400, 600, 1000)] for name in METHODS}
    assert lengths["full"] == [12] * 4 and lengths["raptr"] == [6, 8, 10, 12] and lengths["constant"] == [9] * 4
    means = [
        np.mean([method_of("pld", 1000, 1).paths(step)[0].length for step in steps]) for steps in (range(1, 6), range(500, 700))
    ]
    assert means[0] > 11 and means[1] < 9.5


def test_a_degree_has_arrived_when_its_error_stays_small():
    low, high = LEARNED / 2, LEARNED * 2
    errors = [[error, *[1.0] * (len(DEGREES) - 1)] for error in (high, low, high, low, low)]
    row = Row("full", 0, 100, [20, 40, 60, 80, 100], [0.2, 0.4, 0.6, 0.8, 1.0], errors)
    assert row.arrival(1) == 0.8 and row.arrival(2) is None
    assert arrivals([row], "full", 1) == "0.80" and arrivals([row], "full", 2) == "never"


def test_a_short_training_learns_the_first_degree_first():
    row = measure("full", 1, 150)
    assert row.errors[-1][0] < 0.5 < row.errors[-1][4] and row.layers[-1] == 1 and row.looks[-1] == 150


def test_the_page_says_what_the_rows_say():
    """docs/theory.md, worked out again from the committed rows."""
    rows = [Row(**json.loads(line)) for line in ROWS.read_text().splitlines()]
    page = Path("docs/theory.md").read_text()
    for name in METHODS:
        cells = [arrivals(rows, name, degree) for degree in DEGREES]
        assert f"| `{name}` | {' | '.join(cells)} |" in page
        if name != "full":
            found = [differences(rows, name, degree) for degree in DEGREES]
            assert f"| `{name}` | {' | '.join('{:+.3f} ± {:.3f}'.format(*one) for one in found)} |" in page
            assert all(abs(mean) < half for mean, half in found), "as the page says"
    assert len(last_errors(rows, "full", 1)) == 6

    def layers_until_degree_5(name: str) -> float:
        there = [(row, at) for row in rows if row.method == name and (at := row.arrival(5)) is not None]
        return float(np.mean([row.layers[row.looks.index(round(at * row.steps))] for row, at in there]))

    assert layers_until_degree_5("raptr") > layers_until_degree_5("full"), "not earlier in layers' operations"
