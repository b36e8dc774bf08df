"""Linear residual networks: what is expected of a layer that is left out is what wide networks do."""

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch

from bench.theory import linear
from bench.theory.linear import KINDS, Linear, Row, Teacher, expected, fitted, loss_of, measure
from bench.theory.stability import WHEN


@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_change_of_direction_is_that_of_wide_networks(monkeypatch, kind):
    monkeypatch.setattr(linear, "WIDTH", 1024)
    depth, network = 6, Linear(kind, 6, seed=1)
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = network(x)
        found = [(whole - network(x, layer)).norm(dim=-1).mean().item() for layer in range(depth)]
    assert found == pytest.approx([expected(kind, depth, layer + 1) for layer in range(depth)], rel=0.05)


def test_the_loss_changes_by_the_change_of_direction_at_most():
    for kind in KINDS:
        for row in measure(kind, 4, 1, steps=20):
            assert 0 < row.gap <= row.change
    teacher = Teacher(1)
    _, right = teacher.samples(16)
    assert loss_of(right, right).item() == pytest.approx(0, abs=1e-6) and loss_of(-right, right).item() == pytest.approx(2)


def test_the_page_says_what_the_rows_say():
    rows = [Row(**json.loads(line)) for line in Path("bench/results/theory_linear.rows.jsonl").read_text().splitlines()]
    page = " ".join(Path("docs/theory.md").read_text().split())

    def of(kind: str, when: str) -> list[Row]:
        return [row for row in rows if (row.kind, row.when) == (kind, when)]

    norms = of(KINDS[0], WHEN[0])
    ratios = [row.change / row.expected for row in norms]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} of what is expected" in page
    for when, what in ((WHEN[0], "change"), (WHEN[1], "change"), (WHEN[1], "gap")):
        assert fitted(of(KINDS[0], when), what) in page
    shares = [fmean(row.gap / row.change for row in of(KINDS[0], when)) for when in WHEN]
    assert f"{shares[0]:.0%} of its bound at initialisation, {shares[1]:.0%} after training".replace("%", " %") in page
