import math
import os
import random
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from pretrain.subnetwork.path import LayerPath, Scheme, draw, fingerprint, path_of_sample

DRAWS = 100_000
SCHEMES = [
    Scheme(12, 6, (0, 11), "bernoulli"),
    Scheme(12, 8, (0, 11), "exact"),
    Scheme(8, 5, (0, 7), "balanced", groups=2),
    Scheme(12, 7, (0, 11), "balanced", groups=4),
    Scheme(8, 3, (), "balanced", groups=4),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.sampler}-{s.length}of{s.layers}-{s.groups}groups")
def test_marginals_are_the_closed_form(scheme):
    """Each layer's share of 1e5 paths lies within 4 standard errors of its exact probability."""
    counts = [0] * scheme.layers
    for step in range(DRAWS):
        for layer, active in enumerate(draw(scheme, step, 0).active):
            counts[layer] += active
    for layer, p in enumerate(map(float, scheme.keep)):
        error = math.sqrt(p * (1 - p) / DRAWS)
        assert abs(counts[layer] / DRAWS - p) <= 4 * error, f"layer {layer}"


def schemes(samplers=("bernoulli", "exact", "balanced")):
    """Random schemes that are possible."""

    @st.composite
    def build(pick):
        size, groups = pick(st.integers(1, 6)), pick(st.integers(1, 4))
        layers = size * groups
        fixed = tuple(sorted(pick(st.sets(st.integers(0, layers - 1), max_size=min(layers, 3)))))
        length = pick(st.integers(max(1, len(fixed)), layers))
        sampler = pick(st.sampled_from(samplers))
        try:
            return Scheme(layers, length, fixed, sampler, groups, seed=pick(st.integers(0, 2**40)))
        except ValueError:
            reject()

    return build()


@given(schemes(("exact", "balanced")), st.integers(1, 10**6), st.integers(0, 7))
def test_length_is_exact(scheme, step, index):
    assert draw(scheme, step, index).length == scheme.length


@given(schemes(), st.integers(1, 10**6), st.integers(0, 7))
def test_fixed_layers_are_always_active(scheme, step, index):
    path = draw(scheme, step, index)
    assert all(path.active[layer] for layer in scheme.fixed)


@given(schemes())
def test_marginals_add_up_to_the_path_length(scheme):
    assert sum(scheme.keep) == scheme.length


@settings(max_examples=300)
@given(schemes(("balanced",)), st.integers(1, 10**6), st.integers(0, 7))
def test_groups_get_their_shares(scheme, step, index):
    """At least lo and at most hi layers in each group, as METHODS defines the sampler."""
    path = draw(scheme, step, index)
    for j in range(scheme.groups):
        group = scheme.group(j)
        fixed = sum(layer in scheme.fixed for layer in group)
        low = max(fixed, scheme.length // scheme.groups)
        high = max(low, min(len(group), math.ceil(scheme.length / scheme.groups)))
        assert low <= sum(path.active[layer] for layer in group) <= high


def test_groups_share_the_rest_in_rotation():
    """12 layers in 4 groups, k = 6: lo = 1, and the 4 groups share 2 as floor((j+u+1) 2/4) - floor((j+u) 2/4)."""
    scheme, seen = Scheme(12, 6, (0, 11), "balanced", 4), set()
    for step in range(300):
        active = draw(scheme, step, 0).active
        seen.add(tuple(sum(active[layer] for layer in scheme.group(j)) for j in range(4)))
    rotations = {tuple(1 + (j + u + 1) * 2 // 4 - (j + u) * 2 // 4 for j in range(4)) for u in range(4)}
    assert seen == rotations == {(1, 2, 1, 2), (2, 1, 2, 1)}


def test_one_group_is_exact():
    balanced, exact = (Scheme(12, 7, (0, 11), sampler, 1, seed=3) for sampler in ("balanced", "exact"))
    assert [draw(balanced, step, 0) for step in range(200)] == [draw(exact, step, 0) for step in range(200)]


def test_bernoulli_lengths_vary():
    lengths = {draw(SCHEMES[0], step, 0).length for step in range(200)}
    assert len(lengths) > 3


def test_path_does_not_depend_on_the_order_of_asking():
    scheme = SCHEMES[3]
    asked = [(step, index) for step in range(1, 50) for index in range(4)]
    in_order = {key: draw(scheme, *key) for key in asked}
    random.Random(0).shuffle(asked)
    assert {key: draw(scheme, *key) for key in asked} == in_order
    assert len(set(in_order.values())) > 50, "paths must differ between steps and indices"


def test_path_is_the_same_in_every_process():
    """Python's own hashes differ between processes; a path may not."""
    code = (
        "from pretrain.subnetwork.path import *;"
        "print([draw(Scheme(12, 7, (0, 11), 'balanced', 4, seed=5), step, 1).active for step in range(50)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1


def test_paths_never_change_between_versions():
    """A resumed run must draw what it drew before; whoever changes these values breaks every running job."""
    drawn = [draw(Scheme(8, 5, (0, 7), "balanced", 2, seed=17), 1000, index) for index in range(3)]
    assert ["".join("01"[a] for a in path.active) for path in drawn] == ["10011011", "11100011", "11001011"]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_samples_take_paths_in_equal_blocks_whatever_the_micro_batch(paths, blocks, micro_batch, replicas):
    """floor(i P / B): every micro-batch lies within one path, and every path gets B / P samples."""
    batch = paths * blocks * micro_batch * replicas
    taken = [path_of_sample(sample, batch, paths) for sample in range(batch)]
    assert taken == sorted(taken) and all(taken.count(p) == batch // paths for p in range(paths))
    for first in range(0, batch, micro_batch):
        assert len(set(taken[first : first + micro_batch])) == 1


@pytest.mark.parametrize("kind, power", [("none", 0), ("1/keep", 1), ("1/sqrt(keep)", 0.5)])
def test_scale_follows_from_the_exact_marginal(kind, power):
    scheme = Scheme(12, 7, (0, 11), "balanced", 4, kind)
    for p, scale in zip(scheme.keep, scheme.scales):
        assert scale == pytest.approx(1.0 if p == 1 else float(p) ** -power)
    assert scheme.scales[0] == scheme.scales[11] == 1.0


def test_a_group_of_fixed_layers_only_has_marginal_one():
    scheme = Scheme(4, 3, (0, 1), "balanced", 2)
    assert scheme.keep == (1, 1, Fraction(1, 2), Fraction(1, 2))


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (dict(length=1), "2 fixed layers among 8; use 2 to 8"),
        (dict(length=9), "impossible"),
        (dict(fixed=(0, 8)), r"\[8\] do not exist"),
        (dict(groups=3), "3 does not divide"),
        (dict(length=4, fixed=(0, 1, 2), groups=2, layers=4), None),
        (dict(length=3, fixed=(0, 1, 2), groups=2), "cannot be spread evenly"),
    ],
)
def test_impossible_schemes_are_refused(arguments, complaint):
    build = lambda: Scheme(**{"layers": 8, "length": 4, "fixed": (0, 7), "sampler": "balanced", **arguments})
    if complaint is None:
        build()
        return
    with pytest.raises(ValueError, match=complaint):
        build()


def test_fingerprint_tells_steps_layers_and_scales_apart():
    path = draw(SCHEMES[2], 1, 0)
    rescaled = LayerPath(path.active, tuple(s * 2 for s in path.scale))
    prints = [fingerprint(1, [path]), fingerprint(2, [path]), fingerprint(1, [path, path]), fingerprint(1, [rescaled])]
    assert len(set(prints)) == 4 and all(0 <= p < 2**63 for p in prints)
