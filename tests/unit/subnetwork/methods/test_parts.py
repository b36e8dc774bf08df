"""Methods that run parts of layers."""

from fractions import Fraction

import pytest

from pretrain.cost.flops import Shape, expected_cost, savings
from pretrain.subnetwork import make_method

SHAPE = Shape(4, 64, 192, 128, 1000)


def test_shares_grow_from_stage_to_stage_and_the_last_runs_everything():
    method = make_method("raptr_parts", 4, 30, path_lengths="2-3-4", group_lengths="2-4-4", ffn_lengths="3-3-6", width_parts=1)
    for step, groups, columns, layers in ((1, 2, 3, 2), (15, None, 3, 3)):
        (path,) = method.paths(step)
        assert path.length == layers and all(
            (width.groups and len(width.groups.blocks), len(width.columns.blocks)) == (groups, columns) for width in path.width
        )
    (path,) = method.paths(30)
    assert path.width is None and path.length == 4
    assert [method.width(step, step) for step in (1, 15, 30)] == [(0.5, 0.5), (1.0, 0.5), (1.0, 1.0)]


def test_the_last_steps_run_everything_where_it_is_asked_for():
    lengths = {"path_lengths": "2-3", "group_lengths": "2-4", "ffn_lengths": "3-6"}
    method = make_method("raptr_parts", 4, 30, full_model_last_steps=10, **lengths)
    for step in range(21, 31):
        (path,) = method.paths(step)
        assert path.width is None and path.length == 4
    assert [stage.last_step for stage in method.stages] == [10, 20, 30]
    assert method.paths(20)[0].length == 3 and method.paths(20)[0].width is None, "as the last lengths say"
    assert (
        method.width(20, 20) == method.width(30, 30) == (1.0, 1.0)
        and method.units == make_method("raptr_parts", 4, 30, **lengths).units
    )


def test_costs_are_those_of_what_runs():
    heads, columns = (
        make_method(name, 4, 20, **{key: "2-4"}) for name, key in (("raptr_heads", "group_lengths"), ("raptr_ffn", "ffn_lengths"))
    )
    feed_forward = 2 * 3 * 64 * 192
    attention = SHAPE.layer() - feed_forward - 2 * 4 * 64
    for method, half in ((heads, attention), (columns, feed_forward)):
        cost = expected_cost(method, method.stages[0], SHAPE)
        assert float(cost) == pytest.approx(4 * (1 - half / 2 / SHAPE.layer()))
        (path,) = method.paths(1)
        assert SHAPE.layers_of(path) == pytest.approx(float(cost))
        assert expected_cost(method, method.stages[1], SHAPE) == 4
        assert 0 < savings(method, SHAPE).layer_flops < 1
    assert SHAPE.part_of_layer(1.0, 1.0) == 1.0 and isinstance(expected_cost(heads, heads.stages[1], SHAPE), Fraction)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("raptr_heads", {}, '"raptr_heads" needs "group_lengths"'),
        ("raptr_heads", {"group_lengths": "4-2"}, "may only grow"),
        ("raptr_ffn", {"ffn_lengths": "2-4", "group_lengths": "2-4"}, "group_lengths"),
        ("raptr_ffn", {"ffn_lengths": "3-4", "width_parts": 2}, "width_parts 2 does not divide 3 of 4 blocks"),
        ("raptr_ffn", {"ffn_lengths": "2-4", "full_model_last_steps": "decay"}, "needs a scheduler of type WarmupStableDecay"),
        ("raptr_parts", {"path_lengths": "2-4"}, 'needs "group_lengths" or "ffn_lengths"'),
        ("raptr_parts", {"path_lengths": "2-4", "ffn_lengths": "2-3-4"}, "path_lengths has 2 stages, and others 3"),
    ],
)
def test_what_cannot_be_is_refused(name, keys, message):
    with pytest.raises(ValueError, match=message):
        make_method(name, 4, 20, **keys)
