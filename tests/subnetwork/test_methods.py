import pytest

from pretrain.cost.flops import Shape, expected_active, ideal_ratio, savings
from pretrain.subnetwork import make_method

BERT = dict(layers=12, steps=1000, path_lengths=[6, 8, 10, 12])


def test_the_papers_schedule_saves_a_quarter_of_the_layer_flops():
    method = make_method("raptr", **BERT)
    saved = savings(method, Shape(12, 768, 3072, 512, 30528))
    assert float(saved.layer_flops) == 0.75
    assert saved.layer_factor == pytest.approx(4 / 3)
    assert saved.model_flops > 0.75, "embedding and output projection are never skipped"


def test_full_runs_all_layers_unscaled():
    method = make_method("full", layers=4, steps=10, path_lengths=())
    (path,) = method.paths(7)
    assert path.active == (True,) * 4 and path.scale == (1.0,) * 4
    assert float(savings(method, Shape(4, 8, 16, 8, 32)).layer_flops) == 1


def test_paths_follow_the_stage_and_the_last_stage_runs_all_layers():
    method = make_method("raptr", **BERT, paths_per_step=3, balance_groups=2)
    for step, length in ((1, 6), (250, 6), (251, 8), (500, 8), (750, 10), (751, 12), (1000, 12)):
        paths = method.paths(step)
        assert [path.length for path in paths] == [length] * 3
        assert expected_active(method, method.stage(step)) == length
    assert len(set(method.paths(1))) > 1


def test_layers_that_would_never_run_are_refused():
    with pytest.raises(ValueError, match=r"layers \[1, 6\] would never run"):
        make_method("raptr", layers=8, steps=10, path_lengths=[4], balance_groups=4)


def test_paths_of_fixed_layers_only_are_allowed():
    method = make_method("raptr", layers=8, steps=10, path_lengths=[2, 8])
    assert method.paths(1)[0].active == (True,) + (False,) * 6 + (True,)


def test_flops_of_a_layer_counted_by_hand():
    """hidden 8, ffn 16, 4 positions: q, k, v and output 8x8 each, scores and mix 4x8 each, three 8x16 matrices."""
    shape = Shape(layers=2, hidden=8, ffn=16, sequence=4, vocab=10)
    by_hand = 2 * (4 * 8 * 8 + 2 * 4 * 8 + 3 * 8 * 16) + 2 * 4 * 8
    assert shape.layer() == by_hand
    assert shape.outside() == 8 + 4 * 8 + 2 * 8 * 10
    assert ideal_ratio(shape, 1) == pytest.approx((by_hand + shape.outside()) / (2 * by_hand + shape.outside()))
