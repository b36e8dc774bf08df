"""`plan` checks what train checks, counts what train builds, and allocates nothing."""

import shutil
import subprocess
import sys

import pytest

from pretrain.engine import build_engine
from pretrain.plan.tables import paths
from pretrain.plan.warnings import expected_longest, warnings


def plan(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "pretrain", "plan", *words], capture_output=True, text=True, timeout=120)


def test_a_large_recipe_is_planned_on_a_laptop():
    done = plan("ul2_1.6b")
    assert done.returncode == 0, done.stderr
    for text in ("1,602,959,616", "1.20x", "0: 1  1-5: 0.4  6-17: 0.5", "140,501 to 200,000", "everything that can be checked"):
        assert text in done.stdout
    assert done.stderr == ""


def test_the_learning_rate_is_drawn_where_it_turns(project):
    schedule = "{type: WarmupStableDecay, params: {warmup_num_steps: 5, warmup_type: linear, decay_num_steps: 5}}"
    done = plan(str(project.recipe), "--ds-config", str(project.ds), "--ds.scheduler", schedule)
    assert done.returncode == 0, done.stderr
    rows = {words[0].strip(): words[1].strip() for line in done.stdout.splitlines() if len(words := line.split("│")[1:3]) == 2}
    assert (rows["step 1"], rows["step 5"], rows["step 16"], rows["step 20"]) == ("0.0002", "0.001", "0.001", "0.0002")
    drawn = next(value for name, value in rows.items() if name == "" and "█" in value)
    assert len(drawn) == 60 and drawn[0] == drawn[-1] == "▂" and drawn[20:40] == 20 * "█"


def test_it_counts_the_parameters_that_are_built(project, ranks):
    built = sum(p.numel() for p in build_engine(project.run(), ranks).model.parameters())
    assert f"{built:,}" in plan(str(project.recipe), "--ds-config", str(project.ds)).stdout


def test_uneven_layers_and_a_short_last_stage_are_warned_of(project):
    block = "ds.progressive_subnetwork."
    uneven = project.run(f"{block}path_lengths=5-8", f"{block}fixed_layers=[0]", f"{block}balance_groups=4")
    assert "stage 1: layers [1] run with probability 0.25, while 0.57 would be even" in next(warnings(uneven))
    short = project.run("ds.progressive_subnetwork.path_lengths=4-6")
    assert list(warnings(short)) == ["the last stage runs 6 of 8 layers; RaPTr ends with the full model"]
    assert list(warnings(project.run())) == []


def test_a_cluster_is_planned_with_memory_time_and_money():
    words = [
        "--nodes",
        "4",
        "--gpus-per-node",
        "8",
        "--parallel.tensor",
        "2",
        "--parallel.pipeline",
        "4",
        "--price-per-gpu-hour",
        "2",
    ]
    done = plan("ul2_1.6b", *words, "--suggest")
    assert done.returncode == 0, done.stderr
    for text in (
        "tensor 2 x pipeline 4 x data 4",
        "228,142,080",
        "ideal speed-up of this layout",
        "1.19x",
        "layouts that can run",
    ):
        assert text in done.stdout


def test_a_layout_that_does_not_fit_or_cannot_run_is_told_and_others_are_suggested():
    small = plan("ul2_1.6b", "--nodes", "1", "--gpus-per-node", "1", "--gpu", "a100-40gb", "--model.recompute", "none")
    assert (
        small.returncode == 0 and "pipeline rank 0 needs about" in small.stdout and "each GPU, by pipeline rank" in small.stdout
    )
    odd = plan(
        "ul2_1.6b", "--nodes", "3", "--gpus-per-node", "6", "--parallel.tensor", "4", "--ds.train_batch_size", "576", "--suggest"
    )
    assert odd.returncode == 0, odd.stderr
    assert "this layout cannot run" in odd.stdout and "18 processes cannot hold replicas of 4 tensor" in odd.stdout
    assert "layouts that can run" in odd.stdout
    none = plan("ul2_1.6b", "--nodes", "3", "--gpus-per-node", "6", "--suggest")
    assert none.returncode == 2 and "train_batch_size 512 is not a multiple of" in " ".join(none.stdout.split())


def test_independent_draws_are_told_what_they_cost(project):
    """METHODS: the longest of 64 independent paths of 12 of 24 layers has about 17.5."""
    assert expected_longest([1.0] + [10 / 22] * 22 + [1.0], 64) == pytest.approx(17.5, abs=0.3)
    block = "ds.progressive_subnetwork"
    run = project.run(f"{block}.sampler=bernoulli", f"{block}.paths_per_step=4", world_size=4)
    assert any("the slowest replica sets the pace" in text for text in warnings(run))


def test_more_paths_a_step_use_more_layers_and_send_more(project):
    table = paths(project.run("ds.progressive_subnetwork.paths_per_step=2", world_size=2))
    assert table is not None
    counts, layers, sent = (list(column.cells) for column in table.columns)
    assert counts[:3] == ["1", "2 (this run)", "4"] and float(layers[0]) == 6
    used = [float(count) for count in layers]
    assert sorted(used) == used and used[0] < used[-1], layers
    megabytes = [float(text.removesuffix(" MB")) for text in sent]
    assert sorted(megabytes) == megabytes
    assert paths(project.run()) is None and paths(project.run("ds.progressive_subnetwork.method=full", world_size=2)) is None


def test_unbalanced_pipelines_and_long_warm_ups_are_warned_of(project):
    run = project.run("parallel.pipeline=4", world_size=4)
    assert any('use "sampler": "balanced" with balance_groups a multiple of 4' in text for text in warnings(run))
    assert any("warms up for 4 steps" in text for text in warnings(project.run("steps=4")))


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--nodes", "4"], "--nodes and --gpus-per-node go together"),
        (["--suggest"], "--suggest needs --nodes"),
        (["--price-per-gpu-hour", "2"], "need --nodes and --gpus-per-node"),
        (["--nodes", "0", "--gpus-per-node", "8"], "--nodes 0 must be at least 1"),
        (["--nodes", "1", "--gpus-per-node", "1", "--mfu", "2"], "--mfu 2 must be above 0 and at most 1"),
        (["--nodes", "1", "--gpus-per-node", "1", "--price-per-gpu-hour", "-1"], "must be at least 0"),
        (["--nodes", "1", "--gpus-per-node", "8", "--gpu", "h1000"], "known are a100-40gb"),
        (["--nodes", "1", "--gpus-per-node", "3", "--parallel.tensor", "2"], "3 processes cannot hold replicas of 2 tensor x 1"),
    ],
)
def test_a_cluster_that_makes_no_sense_is_refused(words, complaint):
    done = plan("ul2_tiny", *words)
    assert done.returncode == 2 and complaint in done.stderr


@pytest.mark.parametrize("setting", [("--ds.progressive_subnetwork.path_lengths", "4-30"), ("--model.num_layers", "13")])
def test_it_refuses_what_train_would(setting):
    done = plan("ul2_1.6b", *setting)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_token_files_without_a_manifest_are_warned_of(project, tmp_path):
    for end in (".bin", ".idx", ".json"):
        shutil.copy(f"{project.home}/train{end}", tmp_path / f"mine{end}")
    run = project.run(f"data.valid={tmp_path}/mine")
    assert list(warnings(run)) == []
    (tmp_path / "mine.json").unlink()
    assert [text for text in warnings(run) if f"{tmp_path}/mine.json is not there" in text]
