"""What may change when a run goes on, which checkpoints are kept, and what happens when one cannot be written."""

import json
import os
import random
import resource
import shutil
import subprocess
import time

import pytest

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.manifest import problem_of, read_manifest
from tests.support.runs import command, rows, train
from tokenizer.encode import encode
from tokenizer.load import load_tokenizer

CHANGES = ("--ds.optimizer.params.lr", "0.0005", "--ds.progressive_subnetwork.path_lengths", "6-8")


@pytest.fixture(scope="module")
def half(project, tmp_path_factory):
    """Ten steps of twenty, to be copied."""
    run_dir = tmp_path_factory.mktemp("half") / "run"
    assert train(project, run_dir, "--stop-at", "10").returncode == 0
    return run_dir


@pytest.fixture
def run_dir(half, tmp_path):
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def test_changes_are_refused_with_a_list_and_the_words_that_allow_them(project, run_dir):
    before = (run_dir / "metrics.jsonl").read_bytes()
    done = train(project, run_dir, *CHANGES)
    assert done.returncode == 2
    assert "ds.optimizer.params.lr is 0.001 there, 0.0005 here" in done.stderr
    assert "ds.progressive_subnetwork.path_lengths is [4, 6, 8] there, [6, 8] here" in done.stderr
    assert "pass --resume-changing lr,path_lengths" in done.stderr
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    done = train(project, run_dir, *CHANGES, "--resume-changing", "lr")
    assert done.returncode == 2 and "optimizer" not in done.stderr.split("pass --resume")[0] and "path_lengths is" in done.stderr
    done = train(project, run_dir, *CHANGES, "--resume-changing", "lr,path_length")
    assert done.returncode == 2 and 'path_length: no setting has this name; did you mean "path_lengths"?' in done.stderr
    done = train(project, run_dir, "--model.norm_epsilon", "1e-5", "--resume-changing", "norm_epsilon")
    assert done.returncode == 2 and "holds another run" in done.stderr and "pass --resume-changing" not in done.stderr


@pytest.mark.long
def test_a_change_that_is_named_acts_from_the_checkpoint_on(project, run_dir):
    done = train(project, run_dir, *CHANGES, "--resume-changing", "lr,path_lengths")
    assert done.returncode == 0, done.stderr
    steps = [row for row in rows(run_dir) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    assert steps[10]["lr"] == pytest.approx(steps[9]["lr"] / 2, rel=0.2) and {row["active_layers"] for row in steps[10:]} == {8.0}
    again = train(project, run_dir, *CHANGES)
    assert again.returncode == 0, "from its next checkpoint on the changed run is the run"


def test_another_batch_size_goes_on_where_the_data_was_left(project, run_dir):
    done = train(project, run_dir, "--ds.train_batch_size", "4", "--resume-changing", "train_batch_size", "--stop-at", "14")
    assert done.returncode == 0, done.stderr
    assert [row["tokens"] for row in rows(run_dir) if "loss" in row][-5:] == [(10 * 8 + n * 4) * 64 for n in range(5)]
    manifest = read_manifest(run_dir / "checkpoints" / "step_00000014")
    assert manifest.samples == 10 * 8 + 4 * 4
    back = train(project, run_dir, "--ds.train_batch_size", "8", "--resume-changing", "train_batch_size", "--stop-at", "15")
    assert back.returncode == 0, back.stderr
    assert [row["tokens"] for row in rows(run_dir) if "loss" in row][-1] == (10 * 8 + 4 * 4 + 8) * 64


def test_the_newest_and_every_mth_checkpoint_are_kept(project, tmp_path):
    run_dir = tmp_path / "run"
    assert train(project, run_dir, "--save-every", "2", "--keep-checkpoints", "3", "--keep-every", "8").returncode == 0
    assert [int(p.name[5:]) for p in RunDirectory(run_dir).steps_saved()] == [8, 16, 18, 20]


def room_for_a_checkpoint(run_dir, share: float) -> int:
    return int(max(p.stat().st_size for p in (run_dir / "checkpoints").rglob("*.safetensors")) * share)


def test_a_save_that_fails_may_be_passed_over(project, half, run_dir):
    limit = room_for_a_checkpoint(run_dir, 0.5)
    words = ("--on-save-failure", "continue", "--stop-at", "18")
    # The last checkpoint of a process must be written, whatever the recipe says: it is all there is of the steps before it.
    done = train(project, run_dir, *words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.stdout.count("WARNING: rank 0: checkpoint") == 1 and "on_save_failure: continue" in done.stdout
    assert done.returncode == 1 and "stopped: checkpoint" in done.stderr and "step_00000018 could not be completed" in done.stderr
    assert [row["step"] for row in rows(run_dir) if "loss" in row] == list(range(1, 19)), "training went on"
    assert [int(p.name[5:]) for p in RunDirectory(run_dir).steps_saved()] == [5, 10]


def test_a_failed_save_is_noticed_at_the_next_step_and_stops_the_run(project, run_dir):
    limit = room_for_a_checkpoint(run_dir, 0.5)
    done = train(project, run_dir, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1 and "step_00000015 could not be completed" in done.stderr
    assert rows(run_dir)[-1]["step"] < 20
    assert not list((run_dir / "checkpoints").glob("*.unfinished"))


def test_synchronous_saving_writes_the_same(project, half, tmp_path):
    assert train(project, tmp_path / "run", "--stop-at", "10", "--save-async", "false").returncode == 0
    ours, theirs = (read_manifest(folder / "checkpoints" / "step_00000010") for folder in (tmp_path / "run", half))
    assert ours.files == theirs.files


def test_when_no_checkpoint_is_good_nothing_is_overwritten(project, run_dir):
    before = (run_dir / "metrics.jsonl").read_bytes()
    for file in run_dir.rglob("*.safetensors"):
        os.truncate(file, 10)
    done = train(project, run_dir)
    assert done.returncode == 2 and "none of 2 checkpoints is good" in done.stderr
    assert done.stdout.count("skipping") == 2
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_inspect_verify_and_export_from_the_command_line(project, run_dir, tmp_path):
    def pretrain(*words):
        return subprocess.run([*command(project, run_dir)[:3], *map(str, words)], capture_output=True, text=True, timeout=120)

    shown = pretrain("inspect", "checkpoint", run_dir)
    assert shown.returncode == 0 and "one process, ZeRO-1" in shown.stdout and "embedding.word_embeddings.weight" in shown.stdout
    short = pretrain("inspect", "checkpoint", run_dir, "--short").stdout
    assert "one process, ZeRO-1" in short and "embedding.word_embeddings.weight" not in short
    assert pretrain("verify", run_dir).stdout.count(": good") == 2
    newest = run_dir / "checkpoints" / "step_00000010"
    os.truncate(newest / "rank_00000.safetensors", 99)
    verified = pretrain("verify", run_dir)
    assert verified.returncode == 1 and "rank_00000.safetensors has 99 bytes instead of" in verified.stdout
    exported = pretrain("export", run_dir, "--to", tmp_path / "hf")
    assert exported.returncode == 0 and "step_00000005" in exported.stdout and (tmp_path / "hf" / "config.json").exists()
    assert pretrain("export", run_dir, "--to", tmp_path / "hf").returncode == 2
    assert pretrain("verify", tmp_path).returncode == 2 and pretrain("verify", run_dir, "--deep").returncode == 2


@pytest.mark.long
def test_other_data_under_the_same_name_is_noticed(project, tmp_path):
    """Half of the documents first, then all of them under the same name: samples would come twice, and others never."""
    home = tmp_path / "data"
    home.mkdir()
    texts = (project.home / "train.jsonl").read_text().splitlines(keepends=True)
    tokenizer = load_tokenizer(project.home / "tokenizer")

    def encoded(lines) -> None:
        for file in home.glob("train.*"):
            file.unlink()
        (home / "train.jsonl").write_text("".join(lines))
        encode(str(home / "train.jsonl"), tokenizer, home / "train")

    def start(*words):
        return train(project, tmp_path / "run", "--data.train", str(home / "train"), *words)

    encoded(texts[: len(texts) // 2])
    assert start("--stop-at", "10").returncode == 0
    encoded(texts)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    refused = start()
    assert refused.returncode == 2 and "recipe.data.train holds other tokens than it did then" in refused.stderr
    assert "pass --resume-changing train" in refused.stderr and (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert start("--resume-changing", "data.train").returncode == 0
    encoded(texts)
    assert start().returncode == 0, "encoded again, they are the same bytes"


def test_a_checkpoint_without_checksums_of_data_resumes(project, run_dir):
    """As a program that took none has written them."""
    for folder in RunDirectory(run_dir).steps_saved():
        manifest = read_manifest(folder)
        assert manifest.data is not None and set(manifest.data) == {"data.train", "data.valid"}
        former = manifest.model_copy(update={"data": None}).sealed()
        (folder / "manifest.json").write_text(former.model_dump_json(exclude={"data"}))
    done = train(project, run_dir, "--stop-at", "11")
    assert done.returncode == 0 and "resuming after step 10" in done.stdout, done.stdout + done.stderr


def test_an_old_checkpoint_that_leads_elsewhere_stops_nothing(project, run_dir, tmp_path):
    shutil.move(run_dir / "checkpoints" / "step_00000005", tmp_path / "copy")
    (run_dir / "checkpoints" / "step_00000005").symlink_to(tmp_path / "copy")
    done = train(project, run_dir)
    assert done.returncode == 0, done.stderr
    assert [int(p.name[5:]) for p in RunDirectory(run_dir).steps_saved()] == [15, 20] and (tmp_path / "copy").is_dir()


def test_a_step_at_which_it_stands_already_is_said(project, run_dir):
    done = train(project, run_dir, "--stop-at", "10")
    assert (
        done.returncode == 0 and "nothing to do: the run already stands at step 10 of 20, where --stop-at ends it" in done.stdout
    )


def test_what_plan_warns_of_is_said_by_train_and_noted_once_in_the_story_of_a_job(project, tmp_path):
    words = ("--ds.scheduler.params.warmup_num_steps", "20", "--stop-at")
    for stop in ("1", "2"):
        done = train(project, tmp_path / "run", *words, stop, env={**os.environ, "SLURM_JOB_ID": "7"})
        assert done.stdout.count("warning: the learning rate warms up for 20 steps, and the run has 20") == 1, done.stderr
    assert (tmp_path / "run" / "job.log").read_text().count("the learning rate warms up for 20 steps") == 1
    assert "A record, written at every start. Your own recipe" in (tmp_path / "run" / "recipe.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_killed_at_a_random_moment_of_saving(project, half, run_dir, number):
    """The delay after the folder appears runs over the whole of a save, from the first byte to the removal of older
    checkpoints."""
    process = subprocess.Popen(command(project, run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoints = run_dir / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("*.unfinished")):
        time.sleep(0.0002)
    time.sleep(random.uniform(0, 0.03))
    process.kill()
    process.communicate()
    rows_before = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    named = RunDirectory(run_dir).steps_saved()
    assert all(problem_of(folder) is None for folder in named), "what has a checkpoint's name is whole"
    newest = int(named[-1].name[5:])
    assert newest in (10, 15)
    done = train(project, run_dir)
    assert done.returncode == 0 and f"resuming after step {newest}" in done.stdout and "skipping" not in done.stdout
    kept = [line for line in rows_before if json.loads(line)["step"] <= newest]
    assert (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)[: len(kept)] == kept
