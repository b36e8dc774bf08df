"""A run goes on from its checkpoint on any other layout, with the losses of one that was never interrupted.

All layouts of one world size save in one launch, and resume in another.
"""

import itertools

import pytest
import torch

from tests.support.layouts import BF16, BF16_LOSS, BF16_NORM, OVERLAP, PARTS, REPLICAS, TOLERANCE, layout, train

pytestmark = pytest.mark.dist
HALF, LAST = 10, 20

LAYOUTS = {
    "one": (1, layout()),
    "TP2": (2, layout(tensor=2)),
    "PP2": (2, layout(pipeline=2)),
    "DP2": (2, layout(**REPLICAS)),
    "DP2 with ZeRO-2": (2, layout(zero=2, **REPLICAS)),
    "DP2 with ZeRO-3": (2, layout(zero=3, **REPLICAS)),
    "TP2 x PP2": (4, layout(tensor=2, pipeline=2, sequence=True)),
    "PP2 with two virtual chunks": (2, layout(pipeline=2, virtual=2)),
    "TP2 x DP2": (4, layout(tensor=2, **REPLICAS)),
}
BF16_LAYOUTS = {
    "bf16 one": (1, layout(**BF16)),
    "bf16 DP2": (2, layout(**REPLICAS, **BF16)),
    "bf16 DP2 with ZeRO-3": (2, layout(zero=3, **REPLICAS, **BF16)),
    "bf16 TP2 x PP2": (4, layout(tensor=2, pipeline=2, **BF16)),
}
ASLEEP = {"ds.progressive_subnetwork.skipped_update": "none"}
"""Layers that sleep keep their own count of steps, which goes with them."""
ASLEEP_LAYOUTS = {
    "asleep DP2 with ZeRO-3": (2, layout(zero=3, **REPLICAS, **OVERLAP, **ASLEEP)),
    "asleep PP2 with ZeRO-2": (2, layout(pipeline=2, zero=2, **ASLEEP)),
    "asleep TP2 x DP2": (4, layout(tensor=2, **REPLICAS, **ASLEEP)),
}
PARTS_LAYOUTS = {
    "parts one": (1, layout(**PARTS, **ASLEEP)),
    "parts TP2 x DP2": (4, layout(tensor=2, **REPLICAS, **PARTS, **ASLEEP)),
    "parts DP2 with ZeRO-3": (2, layout(zero=3, **REPLICAS, **PARTS, **ASLEEP)),
}
"""So do parts of layers, of which a rank keeps one behind the other."""
FAMILIES = (LAYOUTS, BF16_LAYOUTS, ASLEEP_LAYOUTS, PARTS_LAYOUTS)
EVERYTHING = {name: case for family in FAMILIES for name, case in family.items()}
SAMPLE = {
    ("one", "TP2 x PP2"),
    ("TP2 x PP2", "DP2 with ZeRO-2"),
    ("DP2 with ZeRO-2", "TP2 x DP2"),
    ("TP2 x DP2", "DP2 with ZeRO-3"),
    ("DP2 with ZeRO-3", "PP2 with two virtual chunks"),
    ("PP2 with two virtual chunks", "TP2"),
    ("TP2", "DP2"),
    ("DP2", "PP2"),
    ("PP2", "one"),
    ("bf16 DP2", "bf16 TP2 x PP2"),
    ("bf16 TP2 x PP2", "bf16 DP2 with ZeRO-3"),
    ("asleep DP2 with ZeRO-3", "asleep PP2 with ZeRO-2"),
    ("asleep PP2 with ZeRO-2", "asleep TP2 x DP2"),
    ("parts one", "parts TP2 x DP2"),
    ("parts TP2 x DP2", "parts DP2 with ZeRO-3"),
    ("parts DP2 with ZeRO-3", "parts one"),
}
"""A tour of all layouts, to fewer ranks and to more. The others are for `make test-all`; test_layouts.py has some of the
diagonal."""
QUICK = {("TP2", "DP2"), ("DP2", "PP2"), ("PP2", "one")}
"""Its part for `make test`."""
SOURCES = {source for source, _ in SAMPLE}
QUICK_SOURCES = {source for source, _ in QUICK}
OTHERS = {pair for family in FAMILIES for pair in itertools.permutations(family, 2)} - SAMPLE


def launch(project, folder, cases: dict[str, dict]) -> dict:
    """Results of cases, which are grouped by their number of processes."""
    results = {}
    for processes in (1, 2, 4):
        own = {name: case for name, (count, case) in cases.items() if count == processes}
        if own:
            part, errors = train(project, folder, processes, own)
            assert part, errors
            results |= part
    return results


def whole_runs(project, folder, names) -> dict:
    """Each layout's own whole run, which leaves a checkpoint in the middle."""
    cases = {}
    for name in names:
        processes, case = EVERYTHING[name]
        cases[name] = (processes, {**case, "go on": {"folder": str(folder / name), "last": LAST, "saves": [HALF]}})
    return launch(project, folder, cases)


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return whole_runs(project, folder, [name for name in EVERYTHING if name in QUICK_SOURCES]), folder


@pytest.fixture(scope="module")
def sample_unbroken(project, unbroken):
    results, folder = unbroken
    return results | whole_runs(project, folder, [name for name in EVERYTHING if name in SOURCES - QUICK_SOURCES])


@pytest.fixture(scope="module")
def all_unbroken(project, unbroken, sample_unbroken):
    results, folder = sample_unbroken, unbroken[1]
    return results | whole_runs(project, folder, [name for name in EVERYTHING if name not in SOURCES])


def second_halves(project, folder, pairs) -> dict:
    """For each pair, the steps that its second layout takes from the checkpoint of the first."""
    cases = {}
    for source, target in pairs:
        processes, case = EVERYTHING[target]
        cases[f"{source} -> {target}"] = (processes, {**case, "go on": {"folder": str(folder / source), "last": LAST}})
    return launch(project, folder, cases)


def furthest(unbroken: dict, resumed: dict) -> dict[str, float]:
    """Largest distances of losses, gradient norms (relative) and final weights."""
    assert resumed["from"] == HALF and len(resumed["rows"]) == LAST - HALF
    a, b = torch.tensor(unbroken["rows"][HALF:]), torch.tensor(resumed["rows"])
    assert torch.equal(a[:, 2], b[:, 2]), "the learning rate is a function of the step"
    assert unbroken["weights"].keys() == resumed["weights"].keys()
    weights = [(weight - resumed["weights"][name]).abs().max() for name, weight in unbroken["weights"].items()]
    return {
        "loss": (a[:, 0] - b[:, 0]).abs().max(),
        "norm": ((a[:, 1] - b[:, 1]) / a[:, 1]).abs().max(),
        "weights": torch.stack(weights).max(),
    }


def require_close(unbroken: dict, resumed: dict, in_bf16: bool) -> None:
    found = {name: float(value) for name, value in furthest(unbroken, resumed).items()}
    bounds = {"loss": BF16_LOSS, "norm": BF16_NORM} if in_bf16 else dict.fromkeys(found, TOLERANCE)
    assert all(found[name] < bound for name, bound in bounds.items()), found


@pytest.fixture(scope="module")
def quick(project, unbroken):
    return second_halves(project, unbroken[1], QUICK)


@pytest.fixture(scope="module")
def sample(project, unbroken, sample_unbroken):
    return second_halves(project, unbroken[1], SAMPLE - QUICK)


@pytest.fixture(scope="module")
def others(project, unbroken, all_unbroken):
    return second_halves(project, unbroken[1], [*OTHERS, *zip(EVERYTHING, EVERYTHING)])


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYTHING)
def test_on_the_same_layout_a_run_goes_on_bit_for_bit(all_unbroken, others, name):
    whole, resumed = all_unbroken[name], others[f"{name} -> {name}"]
    assert resumed["from"] == HALF and resumed["rows"] == whole["rows"][HALF:]
    assert all(torch.equal(weight, resumed["weights"][parameter]) for parameter, weight in whole["weights"].items())


@pytest.mark.parametrize("source, target", sorted(QUICK))
def test_a_run_goes_on_on_another_layout(unbroken, quick, source, target):
    require_close(unbroken[0][source], quick[f"{source} -> {target}"], "bf16" in source)


@pytest.mark.long
@pytest.mark.parametrize("source, target", sorted(SAMPLE - QUICK))
def test_a_run_goes_on_on_a_tour_of_layouts(sample_unbroken, sample, source, target):
    require_close(sample_unbroken[source], sample[f"{source} -> {target}"], "bf16" in source)


@pytest.mark.slow
@pytest.mark.parametrize("source, target", sorted(OTHERS))
def test_a_run_goes_on_on_every_other_layout(all_unbroken, others, source, target):
    require_close(all_unbroken[source], others[f"{source} -> {target}"], "bf16" in source)


@pytest.mark.long
def test_the_comparison_notices_moments_that_were_lost(project, unbroken, tmp_path):
    """The same resume with AdamW's moments forgotten is no longer close."""
    processes, case = LAYOUTS["DP2"]
    broken = {**case, "go on": {"folder": str(unbroken[1] / "TP2"), "last": LAST}, "break": "moments_forgotten"}
    results = launch(project, tmp_path, {"broken": (processes, broken)})
    assert float(furthest(unbroken[0]["TP2"], results["broken"])["weights"]) > TOLERANCE
