"""All layers in every step."""

from pretrain.cost.flops import Shape, savings
from pretrain.subnetwork import make_method


def test_full_runs_all_layers_unscaled():
    method = make_method("full", layers=4, steps=10, path_lengths=())
    (path,) = method.paths(7)
    assert path.active == (True,) * 4 and path.scale == (1.0,) * 4
    assert float(savings(method, Shape(4, 8, 16, 8, 32)).layer_flops) == 1
