"""Sources blended by weight."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.blend import BLOCK, Blend
from pretrain.data.loader import open_data
from pretrain.data.objectives.causal import Causal
from pretrain.data.packing import PackedSamples
from pretrain.errors import UserError
from tests.unit.data.conftest import stream_of


@settings(max_examples=15)
def blend(*weights: float) -> Blend:
    stream = stream_of(5000)
    sources = tuple(PackedSamples(stream, Causal(0, 1), 50, 0) for _ in weights)
    return Blend(sources, weights, 3, 1)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_a_blend_takes_each_sources_samples_in_order_and_by_weight(weights):
    blended = blend(*weights)
    seen = [0] * len(weights)
    for sample in range(2 * BLOCK):
        source, number = blended.place(sample)
        assert number == seen[source], "none is left out, none comes twice"
        seen[source] += 1
    for count, weight in zip(seen, weights):
        assert abs(count / (2 * BLOCK) - weight / sum(weights)) <= 1 / BLOCK


def test_sources_are_mixed_throughout_and_a_tiny_one_is_refused():
    blended = blend(0.7, 0.3)
    places = [blended.place(sample)[0] for sample in range(1000)]
    for first in range(0, 1000, 100):
        assert 10 < sum(places[first : first + 100]) < 50
    with pytest.raises(UserError, match="below 0.0001 of their sum"):
        blend(1.0, 1e-6)


def test_kinds_tell_sources_apart(project, home):
    sources = f"[{{name: a, train: {home}/train, weight: 3}}, {{name: b, train: {home}/valid, valid: {home}/valid}}]"
    run = project.run("data.train=null", "data.valid=null", f"data.sources={sources}", "data.valid_share=0.1", "eval_samples=4")
    data = open_data(run)
    batch = data.train.batch(0, 200)
    data.close()
    kinds = run.recipe.data.kinds
    of_row = [{kinds[kind].source for kind in set(row[row >= 0].tolist())} for row in batch.kinds]
    assert all(len(row) == 1 for row in of_row)
    assert 0.6 < sum(row == {"a"} for row in of_row) / 200 < 0.9
