"""stacking and midas: layers begin as copies of others, weights and moments, wherever those are."""

import json
import subprocess

import pytest
import torch

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.saver import Saver
from pretrain.config.run import Position
from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.optim.names import TENSORS
from tests.support.launch import pretrain
from tests.support.project import DS, Project
from tests.support.runs import command, essence, kill_after, rows, train

TOLERANCE = 1e-4
LAYOUTS = {
    "TP2 x PP2": (4, ("--parallel.tensor", "2", "--parallel.pipeline", "2")),
    "DP2 with ZeRO-1": (2, ()),
    "DP2 with ZeRO-3": (2, ("--ds.zero_optimization.stage", "3")),
    "PP2 with two chunks": (2, ("--parallel.pipeline", "2", "--parallel.virtual", "2")),
}


@pytest.fixture(scope="module", params=["stacking", pytest.param("midas", marks=pytest.mark.long)])
def growing(project, request) -> Project:
    """The test project, of which layers 4 and more come in two stages."""
    ds = project.home / f"{request.param}.json"
    ds.write_text(json.dumps({**DS, "progressive_subnetwork": {"method": request.param, "path_lengths": "4-6-8"}}))
    return Project(project.home, project.recipe, ds)


@pytest.fixture(scope="module")
def unbroken(growing, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    done = train(growing, run_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begin as copies of") == 2
    assert "held-out loss" in done.stdout and "(the 6 layers there are)" in done.stdout and "(all layers)" in done.stdout
    return run_dir


def losses(run_dir) -> list[float]:
    return [row.get("loss", row.get("eval_loss")) for row in rows(run_dir)]


@pytest.mark.dist
@pytest.mark.long
@pytest.mark.parametrize("name", ["TP2 x PP2", *(pytest.param(name, marks=pytest.mark.slow) for name in list(LAYOUTS)[1:])])
def test_every_layout_grows_like_one_process(growing, unbroken, tmp_path, name):
    processes, words = LAYOUTS[name]
    run_dir = tmp_path / "run"
    process = pretrain(growing, run_dir, processes, "--device", "cpu", *words)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    found, wanted = losses(run_dir), losses(unbroken)
    assert len(found) == len(wanted) and max(abs(a - b) for a, b in zip(found, wanted)) < TOLERANCE


def test_killed_after_it_has_grown_it_goes_on_bit_for_bit(growing, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command(growing, run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kill_after(process, run_dir, 9)
    done = train(growing, run_dir)
    assert done.returncode == 0, done.stderr
    assert essence(rows(run_dir)) == essence(rows(unbroken))


@pytest.mark.long
def test_from_a_checkpoint_elsewhere_where_a_stage_ends_it_grows_as_well(growing, unbroken, tmp_path):
    """Step 7 is the last of 4 layers: growing is the first thing that happens."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(growing, first, "--stop-at", "7").returncode == 0
    done = train(growing, second, "--resume", str(first / "checkpoints" / "step_00000007"))
    assert done.returncode == 0, done.stderr
    assert "step 8: layers" in done.stdout
    assert essence(rows(second)) == essence([row for row in rows(unbroken) if row["step"] > 7])


@pytest.mark.parametrize("skipped_update", ["exact", "none"])
def test_copies_have_weights_moments_and_the_count_of_updates(growing, ranks, tmp_path, skipped_update):
    run = growing.run(f"ds.progressive_subnetwork.skipped_update={skipped_update}")
    data, engine = open_data(run, 0, True), build_engine(run, ranks)
    directory = RunDirectory(tmp_path / "run")
    directory.describe(run, "cpu")
    with Saver(run, engine.optimizer, ranks, directory, data.checksums()) as saver:
        for step in range(1, 8):
            result = engine.step(step, data.batch(step), run.method.paths(step))
        saver.begin(run.position(Position(), 7), result.lr)
        copies = dict(run.method.copies(8))
        before, counts = state(engine), engine.optimizer.updates
        saver.grow(Position(), 7, tuple(copies.items()))
        after = state(engine)
        engine.optimizer.settle()
        assert engine.optimizer.updates == tuple(counts[copies.get(layer, layer)] for layer in range(len(counts)))
        assert set(counts) == ({7} if skipped_update == "exact" else {0, 7}), "layers that are not there yet miss nothing"
    data.close()
    assert copies and all(before[name][1].abs().sum() == 0 for name in before if layer_of(name) in copies), (
        "they had no gradient so far"
    )
    for name in after:
        source = (
            name.replace(f"layers.{layer_of(name)}.", f"layers.{copies[layer_of(name)]}.") if layer_of(name) in copies else name
        )
        for ours, theirs in zip(after[name], before[source], strict=True):
            assert torch.equal(ours, theirs), name
        assert torch.equal(dict(engine.model.named_parameters())[name].flatten(), after[name][0].to(torch.float32)), (
            "the model computes with it"
        )
    assert run.saves(7) and not run.saves(8), "a stage's end is saved"


def layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if name.startswith("decoder.layers.") else None


def state(engine) -> dict[str, tuple[torch.Tensor, ...]]:
    """Master and moments of each parameter; one process keeps them whole."""
    found = {}
    for shard in engine.optimizer.shards():
        found[shard.name] = tuple(shard.numbers(kind).clone() for kind in TENSORS)
    return found
