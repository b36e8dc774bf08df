import pytest

from pretrain.cost.flops import expected_active
from pretrain.subnetwork import make_method

BERT = dict(layers=12, steps=1000, path_lengths=[6, 8, 10, 12])


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
