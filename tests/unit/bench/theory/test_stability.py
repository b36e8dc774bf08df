"""The small networks are what they are called, and what is fitted to them is what is there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.theory.network import SYMBOLS, Kind, Language, Network, spread, train
from bench.theory.stability import KINDS, LAYERS, WHEN, Row, exponent, without_each

SIZE = {"hidden": 16, "heads": 2, "length": 12, "seed": 1}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_layer_that_is_left_out_is_as_if_it_had_never_been(kind):
    text = Language(3).text(4, 13)
    network = Network(kind, 3, **SIZE)
    whole, differences = without_each(network, text)
    assert len(differences) == 3
    for number, difference in enumerate(differences):
        shorter = Network(kind, 2, **SIZE)
        kept = [layer for at, layer in enumerate(network.layers) if at != number]
        shorter.layers = torch.nn.ModuleList(kept)
        for name in ("embedding", "places", "norm", "head"):
            setattr(shorter, name, getattr(network, name))
        assert shorter.loss(text).item() == pytest.approx(whole + difference, abs=1e-6)


def test_a_network_without_residual_connections_forgets_what_a_layer_does_not_pass_on():
    """A last layer that gives zero leaves nothing there, and everything where there is a residual connection."""
    text = Language(3).text(4, 13)
    for residual in (True, False):
        network = Network(Kind(residual, "none"), 2, **SIZE)
        with torch.no_grad():
            network.layers[1].out.weight.zero_()
            network.layers[1].down.weight.zero_()
        same = network.loss(text).item() == pytest.approx(network.loss(text, {1}).item(), abs=1e-6)
        assert same == residual
        if not residual:
            assert network.loss(text).item() == pytest.approx(np.log(SYMBOLS), abs=1e-6)


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.3])
def test_a_power_of_the_depth_is_found(power):
    depths, draw = [4, 8, 16, 32, 64] * 3, np.random.default_rng(1)
    sizes = [3 * depth**power * np.exp(draw.normal(0, 0.05)) for depth in depths]
    found, half = exponent(depths, sizes)
    assert abs(found - power) < half < 0.1
    assert exponent(depths, [0.0, *sizes[1:]]) is None and exponent(depths, [np.nan, *sizes[1:]]) is None


def test_the_language_follows_its_rule_and_can_be_learned():
    language = Language(1)
    text = language.text(200, 50).numpy()
    expected = language.rule[text[:, :-2], text[:, 1:-1], 0]
    assert (text[:, 2:] == expected).mean() == pytest.approx(0.7, abs=0.03)
    assert np.array_equal(Language(5).text(2, 9), Language(5).text(2, 9))
    losses = train(Network(Kind(True, "pre"), 2, **SIZE), Language(1), 40, 8, 12, 1e-2)
    assert losses[-1] < losses[0] - 0.2


def test_what_stands_for_all_layers_is_spread_over_them():
    assert spread(4, LAYERS) == [0, 1, 2, 3] and spread(1, LAYERS) == [0]
    chosen = spread(64, LAYERS)
    assert len(chosen) == LAYERS and chosen[0] == 0 and chosen[-1] == 63


def test_a_network_that_is_lost_is_a_row_like_others():
    row = Row("residual, no norm", 64, 1, 200, WHEN[1], float("nan"), 1.5, float("nan"))
    again = Row.read(row.line())
    assert "NaN" not in row.line() and repr(again) == repr(row)


def test_the_page_says_what_the_rows_say():
    """docs/theory.md, worked out again from the committed rows."""
    rows = [Row.read(line) for line in Path("bench/results/theory_stability.rows.jsonl").read_text().splitlines()]
    page = Path("docs/theory.md").read_text()

    def fitted(residual: bool, norm: str, when: str) -> str:
        own = [row for row in rows if (row.kind, row.when) == (Kind(residual, norm).name, when)]
        assert len(own) == 12, "4 depths, 3 seeds"
        slope, half = exponent([row.depth for row in own], [row.size for row in own])
        return f"{slope:+.2f} ± {half:.2f}"

    before, after = WHEN
    assert f"trained: {fitted(True, 'pre', after)}, as 1 / L; norms after: {fitted(True, 'post', after)}," in page
    assert f"| {fitted(True, 'pre', before)} before, {fitted(True, 'post', before)} after:" in page
    assert f"| {fitted(False, 'pre', after)} and {fitted(False, 'post', after)}, of networks" in page
