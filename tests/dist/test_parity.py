"""The same losses, norms and weights on every layout, and breaks that a wrong joint would let pass.

All layouts of one world size run in one launch, because starting processes takes longer than training.
"""

import json

import pytest
import torch

from pretrain.config import read_run
from pretrain.plan.memory import parameters
from tests.dist.launch import torchrun

pytestmark = pytest.mark.dist
TOLERANCE = 1e-4
BF16_LOSS, BF16_NORM = 2e-3, 2e-2
"""Against one process in bf16: sums of tensor ranks are rounded to bf16 in another order."""


def layout(tensor=1, pipeline=1, virtual=1, sequence=False, zero=1, **more) -> dict[str, str]:
    settings = {"parallel.tensor": tensor, "parallel.pipeline": pipeline, "parallel.virtual": virtual}
    settings |= {"parallel.sequence": str(sequence).lower(), "ds.zero_optimization.stage": zero}
    return {key: str(value) for key, value in {**settings, **more}.items()}


RECOMPUTE = {"model.recompute": "layer"}
SMALL = {"ds.train_micro_batch_size_per_gpu": 1}
APART = {"ds.progressive_subnetwork.paths_per_step": 4}
"""Of two replicas one runs path 0 while the other runs path 1: they skip different layers."""
ONE = {"fp32": {}, "bf16": layout(**{"ds.bf16.enabled": "true"}), "apart": layout(**APART)}
TWO = {
    "TP2": layout(tensor=2),
    "TP2 with sequence parallelism, recomputed": layout(tensor=2, sequence=True, **RECOMPUTE),
    "PP2": layout(pipeline=2),
    "PP2 with two virtual chunks": layout(pipeline=2, virtual=2),
    "PP2 with two virtual chunks, recomputed": layout(pipeline=2, virtual=2, **RECOMPUTE),
    "DP2": layout(),
    "DP2, replicas on paths apart": layout(**APART),
    "DP2 without ZeRO, replicas on paths apart": layout(zero=0, **APART),
    "DP2 without ZeRO": layout(zero=0),
    "DP2 with ZeRO-2": layout(zero=2),
    "DP2 with ZeRO-3": layout(zero=3),
    "PP2 without ZeRO": layout(pipeline=2, zero=0),
}
FOUR = {
    "PP4": layout(pipeline=4),
    "TP2 x PP2 with sequence parallelism": layout(tensor=2, pipeline=2, sequence=True),
    "TP2 x PP2 with sequence parallelism, recomputed": layout(tensor=2, pipeline=2, sequence=True, **RECOMPUTE),
    "TP2 x PP2 without ZeRO": layout(tensor=2, pipeline=2, zero=0),
    "DP2 x PP2 with two virtual chunks": layout(pipeline=2, virtual=2, **SMALL),
    "TP2 x DP2, replicas on paths apart": layout(tensor=2, **APART),
    "PP2 x DP2, replicas on paths apart": layout(pipeline=2, **APART),
    "TP2 x DP2 with ZeRO-3, recomputed": layout(tensor=2, zero=3, **RECOMPUTE),
    "bf16 TP2 x PP2": layout(tensor=2, pipeline=2, **{"ds.bf16.enabled": "true"}),
}
BROKEN_TWO = {
    "no_zero_filling": layout(**APART, **{"break": "no_zero_filling"}),
    "tied_embedding_counted_twice": layout(pipeline=2, **{"break": "tied_embedding_counted_twice"}),
    "stale_gradient": layout(zero=3, **{"break": "stale_gradient"}),
}
BROKEN_FOUR = {"no_clone": layout(pipeline=4, **{"break": "no_clone"})}


def train(project, folder, processes: int, cases: dict) -> tuple[dict, str]:
    """Results by case, and what was written to standard error."""
    out, file = folder / f"{processes}.pt", folder / f"{processes}.json"
    file.write_text(json.dumps(cases))
    process = torchrun(processes, "tests.dist.worker", project.recipe, project.ds, out, file)
    _, errors = process.communicate(timeout=900)
    return (torch.load(out) if process.returncode == 0 else {}), errors


@pytest.fixture(scope="module")
def one(project, tmp_path_factory):
    results, errors = train(project, tmp_path_factory.mktemp("one"), 1, ONE)
    assert results, errors
    return results


@pytest.fixture(scope="module")
def several(project, tmp_path_factory):
    """Results of all layouts, of two and of four processes."""
    results = {}
    for processes, cases in ((2, TWO), (4, FOUR)):
        part, errors = train(project, tmp_path_factory.mktemp(f"of{processes}"), processes, cases)
        assert part, errors
        results |= part
    return results


def distances(ours: dict, theirs: dict) -> dict[str, float]:
    a, b = torch.tensor(ours["rows"]), torch.tensor(theirs["rows"])
    assert ours["weights"].keys() == theirs["weights"].keys()
    return {
        "loss": float((a[:, 0] - b[:, 0]).abs().max()),
        "norm": float(((a[:, 1] - b[:, 1]) / b[:, 1]).abs().max()),
        "weights": float(torch.stack([(w - theirs["weights"][name]).abs().max() for name, w in ours["weights"].items()]).max()),
        "evaluation": abs(ours["evaluation"][0] - theirs["evaluation"][0]),
    }


@pytest.mark.parametrize("name", [*TWO, *(name for name in FOUR if "bf16" not in name)])
def test_every_layout_trains_like_one_process(one, several, name):
    assert min(norm for _, norm in one["fp32"]["rows"]) > 0.5, "clipping must act, or the test does not cover it"
    found = distances(several[name], one["apart" if "apart" in name else "fp32"])
    assert all(value < TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_plan_counts_the_parameters_of_every_rank(project, several, name):
    cases, world = (TWO, 2) if name in TWO else (FOUR, 4)
    run = read_run(str(project.recipe), [("--" + k, v) for k, v in cases[name].items()], str(project.ds), world)
    ranks_per_stage = world // run.recipe.parallel.pipeline
    assert several[name]["parameters"] == [parameters(run, rank // ranks_per_stage) for rank in range(world)]


def test_a_skipped_layer_does_no_tensor_parallel_collective(project, tmp_path):
    cases = {"counted": layout(tensor=2, count="0-1-3-8")}
    results, errors = train(project, tmp_path, 2, cases)
    assert results, errors
    none, one_layer, three, eight = results["counted"]
    assert one_layer - none == 4, "two in the forward pass, two in the backward pass"
    assert (three - none, eight - none) == (3 * 4, 8 * 4)


def test_bf16_stays_within_its_bound(one, several):
    found = distances(several["bf16 TP2 x PP2"], one["bf16"])
    assert found["loss"] < BF16_LOSS and found["norm"] < BF16_NORM and found["evaluation"] < BF16_LOSS, found


def test_chunks_without_an_active_layer_occur(project):
    """Four pipeline ranks hold two layers each; the parity above covers ranks with none of them active."""
    paths = [path for step in range(1, 8) for path in project.run().method.paths(step)]
    assert any(not any(path.active[2 * rank : 2 * rank + 2]) for path in paths for rank in range(4))


@pytest.fixture(scope="module")
def broken(project, tmp_path_factory):
    """Results of each break, alone in its launch: it may end in a crash, which is noticing too."""
    results = {}
    for processes, cases in ((2, BROKEN_TWO), (4, BROKEN_FOUR)):
        for name, case in cases.items():
            results[name] = train(project, tmp_path_factory.mktemp(name), processes, {name: case})
    return results


@pytest.mark.parametrize("name", [*BROKEN_TWO, *BROKEN_FOUR])
def test_a_broken_joint_is_noticed(one, broken, name):
    results, errors = broken[name]
    if not results and name in ("no_zero_filling", "no_clone"):
        assert "Traceback" in errors and "AttributeError" not in errors, "it must fail in the joint, not in breaking it"
        return
    reference = one["apart" if name == "no_zero_filling" else "fp32"]
    assert max(distances(results[name], reference).values()) > TOLERANCE


def test_a_rank_with_other_paths_stops_the_job_within_the_step_and_is_named(project, tmp_path):
    cases = {"shifted": layout(pipeline=2, **{"break": "shifted_path"})}
    results, errors = train(project, tmp_path, 2, cases)
    assert not results and "TrainingStopped: step 1: rank 1 drew other paths than the rest" in errors
