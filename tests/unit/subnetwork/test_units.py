"""All that may sleep has one number, layer by layer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.subnetwork import LayerPath, make_method
from pretrain.subnetwork.units import Units
from pretrain.subnetwork.width import COLUMNS, GROUPS, Chosen, Width

SOME = st.builds(Units, st.integers(1, 5), st.integers(0, 4), st.integers(0, 4))


@given(SOME)
def test_every_unit_has_a_number_of_its_own(units):
    numbers = []
    for layer in range(units.layers):
        own = [units.number(layer)]
        own += [units.number(layer, GROUPS, block) for block in range(units.groups)]
        own += [units.number(layer, COLUMNS, block) for block in range(units.columns)]
        assert {units.layer_of(unit) for unit in own} == {layer} and len(own) == units.in_layer
        numbers += own
    assert numbers == list(range(units.count))
    assert units.of_path(LayerPath.full(units.layers)) == tuple(numbers), "a path without a width runs all of its layers"


def test_where_nothing_is_cut_units_are_layers():
    path = LayerPath.through([True, False, True])
    assert Units(3).of_path(path) == path.layers and Units(3).count == 3


def test_a_path_runs_the_parts_that_it_says():
    path = LayerPath((True, False), (1.0, 1.0), (Width(Chosen((1,), 2), Chosen((0, 2), 3)),) * 2)
    assert Units(2, 2, 3).of_path(path) == (0, 2, 3, 5)
    assert Units(2, 2, 3).of_path(LayerPath((False, True), (1.0,) * 2, (Width(None, Chosen((1,), 3)),) * 2)) == (6, 7, 8, 10)


@pytest.mark.parametrize("units", [Units(2), Units(2, 4, 3)])
def test_a_width_of_other_blocks_than_the_model_is_cut_into_is_refused(units):
    path = LayerPath((True, True), (1.0, 1.0), (Width(Chosen((1,), 2)),) * 2)
    with pytest.raises(AssertionError, match="the blocks that the model is cut into"):
        units.of_path(path)


@pytest.mark.parametrize(
    ("name", "keys", "units"),
    [
        ("raptr", {"path_lengths": "2-4"}, Units(4)),
        ("raptr_heads", {"group_lengths": "1-2"}, Units(4, 2, 0)),
        ("raptr_parts", {"path_lengths": "2-4", "ffn_lengths": "3-6"}, Units(4, 0, 6)),
        ("raptr_parts", {"path_lengths": "2-4", "group_lengths": "2-2", "ffn_lengths": "3-6"}, Units(4, 0, 6)),
    ],
)
def test_a_method_cuts_what_it_does_not_always_run(name, keys, units):
    assert make_method(name, 4, 20, **keys).units == units
