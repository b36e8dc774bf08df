"""Operations of a layer, and what a schedule saves."""

import pytest

from pretrain.cost.flops import Shape, ideal_ratio, savings
from pretrain.subnetwork import make_method

BERT = dict(layers=12, steps=1000, path_lengths=[6, 8, 10, 12])


def test_the_papers_schedule_saves_a_quarter_of_the_layer_flops():
    method = make_method("raptr", **BERT)
    saved = savings(method, Shape(12, 768, 3072, 512, 30528))
    assert float(saved.layer_flops) == 0.75
    assert saved.layer_factor == pytest.approx(4 / 3)
    assert saved.model_flops > 0.75, "embedding and output projection are never skipped"


def test_flops_of_a_layer_counted_by_hand():
    """hidden 8, ffn 16, 4 positions: q, k, v and output 8x8 each, scores and mix 4x8 each, three 8x16 matrices."""
    shape = Shape(layers=2, hidden=8, ffn=16, sequence=4, vocab=10)
    by_hand = 2 * (4 * 8 * 8 + 2 * 4 * 8 + 3 * 8 * 16) + 2 * 4 * 8
    assert shape.layer() == by_hand
    assert shape.outside() == 8 + 4 * 8 + 2 * 8 * 10
    assert ideal_ratio(shape, 1) == pytest.approx((by_hand + shape.outside()) / (2 * by_hand + shape.outside()))
