"""One path length for the whole run."""

from fractions import Fraction

import pytest

from pretrain.cost.flops import Shape, savings
from pretrain.subnetwork import make_method


def test_constant_is_raptrs_control():
    """The same share of operations as 6-8-10-12, spread evenly over the run."""
    method = make_method("constant", layers=12, steps=100, path_lengths=[9], sampler="bernoulli", residual_scale="1/keep")
    assert [stage.steps for stage in method.stages] == [100] and method.name == "constant"
    assert method.keep(1, 100) == (1, *[Fraction(7, 10)] * 10, 1)
    assert method.paths(5)[0].scale[3] == pytest.approx(10 / 7)
    assert float(savings(method, Shape(12, 768, 3072, 512, 30528)).layer_flops) == 0.75
    with pytest.raises(ValueError, match='"constant" has one path length for the whole run'):
        make_method("constant", layers=12, steps=100, path_lengths=[6, 12])
