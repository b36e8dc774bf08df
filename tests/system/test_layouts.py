"""The same losses, norms and weights on every layout, and breaks that a wrong joint would let pass.

All layouts of one world size run in one launch, because starting processes takes longer than training.
"""

from collections.abc import Collection, Iterable, Mapping

import pytest
import torch

from pretrain.config import read_run
from pretrain.plan.memory import parameters
from tests.support.layouts import (
    APART,
    BF16,
    BF16_LOSS,
    BF16_NORM,
    FOUR,
    GROUPED,
    ONE,
    REPLICAS,
    TOLERANCE,
    TWO,
    distances,
    layout,
    train,
)
from tests.support.project import CLIPPING

pytestmark = pytest.mark.dist
QUICK = {
    "TP2 with sequence parallelism",
    "TP2, grouped",
    "PP2 with two virtual chunks, recomputed",
    "DP2, replicas on paths apart",
    "DP2 with ZeRO-2",
    "DP2 with ZeRO-3, recomputed",
    "bf16 DP2, replicas on paths apart",
    "fp8 TP2 with sequence parallelism",
    "TP2 x PP2 with sequence parallelism, recomputed",
}
"""Layouts that have each joint once, for `make test`; the others are long."""


def marked(names: Iterable[str], quick: Collection[str]) -> list:
    """The names as parameters, of which all but the quick ones are long."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.long) for name in names]


BROKEN_TWO = {
    "tied_embedding_counted_twice": layout(pipeline=2, **{"break": "tied_embedding_counted_twice"}),
    "last_micro_batch_alone": layout(zero=3, **REPLICAS, **{"break": "last_micro_batch_alone"}),
    "grouped, norms_of_own_heads": layout(tensor=2, **GROUPED, **{"break": "norms_of_own_heads"}),
}
CRASHES = {
    "no_clone": "the gradient's norm is not finite",
    "grouped, norms_of_own_heads": "copies of decoder.layers.0.self_attention.q_layernorm.weight differ between ranks",
}
"""Breaks that may end in a crash, and how."""
BROKEN_FOUR = {"no_clone": layout(pipeline=4, **{"break": "no_clone"})}


@pytest.fixture(scope="module")
def one(project, tmp_path_factory):
    results, errors = train(project, tmp_path_factory.mktemp("one"), 1, ONE)
    assert results, errors
    return results


def train_all(project, factory, families: Mapping[int, dict]) -> dict:
    """Results of cases, by their number of processes."""
    results = {}
    for processes, cases in families.items():
        part, errors = train(project, factory.mktemp(f"of{processes}"), processes, cases)
        assert part, errors
        results |= part
    return results


def chosen(names: Collection[str]) -> dict[int, dict]:
    """The layouts of these names, by their number of processes."""
    return {n: {name: case for name, case in cases.items() if name in names} for n, cases in ((2, TWO), (4, FOUR))}


@pytest.fixture(scope="module")
def quick(project, tmp_path_factory):
    return train_all(project, tmp_path_factory, chosen(QUICK))


@pytest.fixture(scope="module")
def others(project, tmp_path_factory):
    return train_all(project, tmp_path_factory, chosen({*TWO, *FOUR} - QUICK))


@pytest.fixture
def result(request, name):
    """What the layout `name` came to."""
    return request.getfixturevalue("quick" if name in QUICK else "others")[name]


def is_rough(name: str) -> bool:
    """Whether a case computes in a precision in which the order of sums shows."""
    return "bf16" in name or "fp8" in name


def counterpart(name: str) -> str:
    """The case of one process that draws the same paths through the same model in the same precision."""
    if "parts" in name:
        return "parts"
    if "normed after" in name:
        return "normed after"
    if "grouped" in name:
        return "grouped"
    if "fp8" in name:
        return "fp8"
    return {(False, False): "fp32", (True, False): "apart", (False, True): "bf16", (True, True): "apart in bf16"}[
        "apart" in name, "bf16" in name
    ]


@pytest.mark.parametrize("name", marked([name for name in [*TWO, *FOUR] if not is_rough(name)], QUICK))
def test_every_layout_trains_like_one_process(one, result, name):
    assert min(norm for _, norm in one["fp32"]["rows"]) > CLIPPING, "clipping must act, or the test does not cover it"
    found = distances(result, one[counterpart(name)])
    assert all(value < TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("name", marked([*TWO, *FOUR], QUICK))
def test_plan_counts_the_parameters_of_every_rank(project, result, name):
    cases, world = (TWO, 2) if name in TWO else (FOUR, 4)
    run = read_run(str(project.recipe), [("--" + k, v) for k, v in cases[name].items()], str(project.ds), world)
    ranks_per_stage = world // run.recipe.parallel.pipeline
    assert result["parameters"] == [parameters(run, rank // ranks_per_stage) for rank in range(world)]


def test_a_skipped_layer_does_no_tensor_parallel_collective(project, tmp_path):
    cases = {"counted": layout(tensor=2, count="0-1-3-8")}
    results, errors = train(project, tmp_path, 2, cases)
    assert results, errors
    none, one_layer, three, eight = results["counted"]
    assert one_layer - none == 4, "two in the forward pass, two in the backward pass"
    assert (three - none, eight - none) == (3 * 4, 8 * 4)


@pytest.mark.parametrize("name", marked([name for name in [*TWO, *FOUR] if is_rough(name)], QUICK))
def test_bf16_and_fp8_stay_within_their_bound(one, result, name):
    found = distances(result, one[counterpart(name)])
    assert found["loss"] < BF16_LOSS and found["norm"] < BF16_NORM and found["evaluation"] < BF16_LOSS, found


def test_fp8_is_as_near_to_bf16_and_something_else(one):
    found = distances(one["fp8"], one["fp8's size in bf16"])
    assert 0 < found["loss"] < BF16_LOSS and 0 < found["norm"] < BF16_NORM, found


def test_chunks_without_an_active_layer_occur(project):
    """Four pipeline ranks hold two layers each; the parity above covers ranks with none of them active."""
    paths = [path for step in range(1, 8) for path in project.run().method.paths(step)]
    assert any(not any(path.active[2 * rank : 2 * rank + 2]) for path in paths for rank in range(4))


def test_replicas_that_skip_different_layers_occur(project):
    """The parity of replicas on paths apart covers layers that have a gradient on one replica and none on the other."""
    run = project.run(*(f"{key}={value}" for key, value in layout(**APART).items()), world_size=2)

    def layers_run(step: int, replica: int) -> tuple[bool, ...]:
        paths = run.method.paths(step)
        taken = [paths[run.path_index(index, replica, len(paths))].active for index in range(run.micro_batches)]
        return tuple(map(any, zip(*taken)))

    assert sum(layers_run(step, 0) != layers_run(step, 1) for step in range(1, 8)) >= 3


@pytest.fixture(scope="module")
def broken(project, tmp_path_factory):
    """Results of each break, alone in its launch: it may end in a crash, which is noticing too."""
    results = {}
    for processes, cases in ((2, BROKEN_TWO), (4, BROKEN_FOUR)):
        for name, case in cases.items():
            results[name] = train(project, tmp_path_factory.mktemp(name), processes, {name: case})
    return results


@pytest.mark.long
@pytest.mark.parametrize("name", [*BROKEN_TWO, *BROKEN_FOUR])
def test_a_broken_joint_is_noticed(one, broken, name):
    results, errors = broken[name]
    if not results:
        assert CRASHES[name] in errors, "it must fail in the joint, not in breaking it"
        return
    assert max(distances(results[name], one[counterpart(name)]).values()) > TOLERANCE


@pytest.mark.parametrize(
    "case, complaint",
    [
        (layout(pipeline=2), "step 1: the ranks drew different paths: 0 against 1"),
        pytest.param(layout(pipeline=2, tensor=2), "step 1: rank 1 drew other paths than the rest", marks=pytest.mark.long),
    ],
    ids=["PP2", "TP2 x PP2"],
)
def test_a_rank_with_other_paths_stops_the_job_within_the_step_and_is_named(project, tmp_path, case, complaint):
    processes = int(case["parallel.tensor"]) * int(case["parallel.pipeline"])
    results, errors = train(project, tmp_path, processes, {"shifted": {**case, "break": "shifted_path"}})
    assert not results and f"TrainingStopped: {complaint}" in errors


RESUMED_TWO = {
    "TP2": layout(tensor=2),
    "TP2 with sequence parallelism, without ZeRO": layout(tensor=2, sequence=True, zero=0),
    "PP2 with two virtual chunks": layout(pipeline=2, virtual=2),
    "DP2 without ZeRO": layout(zero=0, **REPLICAS),
    "DP2 with ZeRO-2": layout(zero=2, **REPLICAS),
    "DP2 with ZeRO-3": layout(zero=3, **REPLICAS),
    "bf16 DP2": layout(**REPLICAS, **BF16),
    "bf16 PP2": layout(pipeline=2, **BF16),
    "bf16 DP2 with ZeRO-3": layout(zero=3, **REPLICAS, **BF16),
}
RESUMED_FOUR = {
    "TP2 x PP2 with sequence parallelism": layout(tensor=2, pipeline=2, sequence=True),
    "DP2 x PP2 with two virtual chunks": layout(pipeline=2, virtual=2, **REPLICAS),
}


QUICKLY_RESUMED = {"PP2 with two virtual chunks", "DP2 with ZeRO-2", "bf16 DP2"}


def resume_all(project, factory, names: Collection[str]) -> dict:
    folder, families = factory.mktemp("resumed"), {}
    for processes, cases in ((2, RESUMED_TWO), (4, RESUMED_FOUR)):
        own = {name: {**case, "resume": str(folder / name)} for name, case in cases.items() if name in names}
        families |= {processes: own} if own else {}
    return train_all(project, factory, families)


@pytest.fixture(scope="module")
def quickly_resumed(project, tmp_path_factory):
    return resume_all(project, tmp_path_factory, QUICKLY_RESUMED)


@pytest.fixture(scope="module")
def others_resumed(project, tmp_path_factory):
    return resume_all(project, tmp_path_factory, {*RESUMED_TWO, *RESUMED_FOUR} - QUICKLY_RESUMED)


@pytest.mark.parametrize("name", marked([*RESUMED_TWO, *RESUMED_FOUR], QUICKLY_RESUMED))
def test_every_layout_goes_on_from_its_checkpoint_bit_for_bit(request, name):
    resumed = request.getfixturevalue("quickly_resumed" if name in QUICKLY_RESUMED else "others_resumed")[name]
    unbroken, again = resumed["unbroken"], resumed["resumed"]
    assert (unbroken["from"], again["from"]) == (0, 4)
    assert unbroken["rows"] == again["rows"] and len(again["rows"]) == 4
    for parameter, weight in unbroken["weights"].items():
        assert torch.equal(weight, again["weights"][parameter]), parameter


@pytest.mark.long
def test_a_loss_in_several_pieces_is_the_same_on_tensor_ranks(project, tmp_path):
    """The last tensor rank has fewer rows than the others, and as many pieces."""
    (one, _), (two, errors) = (
        train(project, tmp_path, tensor, {"pieces": layout(tensor=tensor, **more)})
        for tensor, more in ((1, {}), (2, {"break": "small_pieces"}))
    )
    assert two, errors
    assert max(distances(two["pieces"], one["pieces"]).values()) < TOLERANCE
