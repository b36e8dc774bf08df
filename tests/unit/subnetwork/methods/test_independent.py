"""The other methods: probabilities step by step as their papers have them, and what each refuses."""

import math

import pytest

from pretrain.subnetwork import make_method

STEPS, LAYERS = 500, 12
GRAIN = 2**-32


@pytest.mark.parametrize("theta, gamma", [(0.5, 0.001), (0.2, 0.05), (0.7, 0.0)])
def test_pld_keeps_each_layer_with_its_papers_probability(theta, gamma):
    method = make_method("pld", layers=LAYERS, steps=STEPS, theta=theta, gamma=gamma)
    for step in (1, 2, 77, STEPS):
        now = (1 - theta) * math.exp(-gamma * (step - 1)) + theta
        for layer, keep in enumerate(method.keep(step, step), start=1):
            assert float(keep) == pytest.approx(1 - layer / LAYERS * (1 - now), abs=GRAIN)
    assert method.keep(1, 1) == (1,) * LAYERS, "all layers in the first step"


@pytest.mark.parametrize("q_max", [0.6, 0.99, 1.0])
def test_ild_dts_drops_each_layer_with_its_papers_probability(q_max):
    method = make_method("ild_dts", layers=LAYERS, steps=STEPS, q_max=q_max)
    for step in (1, 2, 77, STEPS):
        for layer, keep in enumerate(method.keep(step, step)):
            assert 1 - float(keep) == pytest.approx(q_max * layer / (LAYERS - 1) * (1 - (step - 1) / (STEPS - 1)), abs=GRAIN)
    assert method.keep(STEPS, STEPS) == (1,) * LAYERS, "all layers in the last step"


@pytest.mark.parametrize("name", ["pld", "ild_dts"])
def test_the_mean_over_steps_is_the_steps_mean(name):
    method = make_method(name, layers=LAYERS, steps=STEPS)
    for first, last in ((1, STEPS), (1, 1), (77, 300)):
        steps = [method.keep(step, step) for step in range(first, last + 1)]
        for layer, keep in enumerate(method.keep(first, last)):
            assert float(keep) == pytest.approx(float(sum(s[layer] for s in steps) / len(steps)), abs=2 * GRAIN)


@pytest.mark.parametrize("name", ["pld", "ild_dts"])
def test_layers_are_drawn_with_their_probability_and_scaled_by_it(name):
    method = make_method(name, layers=LAYERS, steps=STEPS, paths_per_step=64, path_seed=7)
    counts, expected, variance = [0] * LAYERS, [0.0] * LAYERS, [0.0] * LAYERS
    for step in range(1, STEPS + 1):
        keep = method.keep(step, step)
        for path in method.paths(step):
            for layer in range(LAYERS):
                counts[layer] += path.active[layer]
                assert path.scale[layer] == pytest.approx(1 if keep[layer] == 0 else 1 / float(keep[layer]))
                expected[layer] += float(keep[layer])
                variance[layer] += float(keep[layer] * (1 - keep[layer]))
    for layer in range(LAYERS):
        assert abs(counts[layer] - expected[layer]) <= 4 * math.sqrt(variance[layer]) + 1e-6
    assert make_method(name, layers=LAYERS, steps=STEPS, residual_scale="none").paths(99)[0].scale == (1.0,) * LAYERS


@pytest.mark.parametrize(
    "name, settings, complaint",
    [
        ("pld", {"theta": 1.5}, "theta 1.5 must lie between 0 and 1"),
        ("pld", {"gamma": -1}, "gamma -1 must not be negative"),
        ("ild_dts", {"q_max": 1.1}, "q_max 1.1 must lie between 0 and 1"),
        ("ild_dts", {"steps": 1}, "needs 2 layers and 2 steps"),
        ("stacking", {"path_lengths": [4, 8]}, "end with all 12 layers"),
        ("stacking", {"path_lengths": [4, 12]}, "can copy 1 to 4"),
        ("stacking", {"path_lengths": [6, 6, 12]}, "from 6 to 6 layers"),
        ("midas", {"path_lengths": [8, 12]}, None),
        ("midas", {"path_lengths": [7, 10, 12]}, "3 does not divide 7"),
    ],
)
def test_what_cannot_run_is_refused(name, settings, complaint):
    settings = {"layers": 12, "steps": 100, **settings}
    if complaint is None:
        assert make_method(name, **settings)
    else:
        with pytest.raises(ValueError, match=complaint):
            make_method(name, **settings)
