"""`compare` as people run it: what is missing is done, once, whatever happens in between, and nothing is mixed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from pretrain.errors import UserError
from pretrain.study.compare import _require_alike
from pretrain.study.plan import read_study
from pretrain.study.row import read_table
from tests.support.project import copy_code
from tests.support.studies import METHODS, compare, compare_command, numbers, write_study


def rows_file(study: Path) -> Path:
    return study.with_name("study.rows.jsonl")


def rows(study: Path) -> list:
    return read_table(rows_file(study))


def moments(runs: Path) -> dict[str, int]:
    """When each file of the runs was last written."""
    return {str(file): file.stat().st_mtime_ns for file in runs.rglob("*") if file.is_file() and file.name != ".lock"}


def test_every_run_has_its_row_and_a_second_time_nothing_runs(finished):
    study, runs, told = finished
    assert [(row.method, row.seed, row.steps) for row in rows(study)] == [
        ("full", 1, 20), ("short", 1, 15), ("raptr", 1, 20), ("full", 2, 20), ("short", 2, 15), ("raptr", 2, 20),
    ]  # fmt: skip
    assert "6 of 6 runs are done" in told
    before, content = moments(runs), rows_file(study).read_bytes()
    again = compare(study, runs)
    assert again.returncode == 0 and "6 of 6 runs are done" in again.stdout and "log in" not in again.stdout
    assert moments(runs) == before and rows_file(study).read_bytes() == content


def test_the_same_seed_begins_alike_and_sees_the_same_data(finished):
    study, _, _ = finished
    by_name = {(row.method, row.seed): row for row in rows(study)}
    assert by_name["full", 1].training[0] == by_name["short", 1].training[0]  # the first step, before any update
    assert by_name["full", 1].training[0] != by_name["full", 2].training[0]


@pytest.mark.dist
@pytest.mark.parametrize(
    "seed",
    [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)],
)
def test_killed_at_random_and_started_again_it_ends_with_the_same_numbers(finished, project, tmp_path, seed):
    study, runs = write_study(project, tmp_path), tmp_path / "runs"
    dice, kills = random.Random(seed), 0
    for _ in range(12):
        process = subprocess.Popen(
            compare_command(study, runs, "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            output, errors = process.communicate(timeout=dice.uniform(8, 40))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    else:
        process = subprocess.Popen(
            compare_command(study, runs, "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, output + errors
    assert kills, "the study was never killed, so that this shows nothing"
    assert numbers(rows(study)) == numbers(rows(finished[0]))


@pytest.mark.long
def test_asked_to_stop_it_saves_and_leaves_no_process(project, tmp_path):
    study, runs = write_study(project, tmp_path, options={"steps": 400, "save_every": 400}, seeds=[1]), tmp_path / "runs"
    process = subprocess.Popen(
        compare_command(study, runs, "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics, deadline = runs / "full-seed1/run/metrics.jsonl", time.time() + 120
    while time.time() < deadline and not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "stopped: SIGTERM: what was running has saved; the same command resumes" in errors
    assert children and not [child for child in children if child.is_running()]
    assert list((runs / "full-seed1/run/checkpoints").glob("step_*")) and not rows_file(study).exists()


@pytest.mark.long
def test_a_killed_run_is_told_by_its_signal(project, tmp_path):
    study, runs = (
        write_study(project, tmp_path, options={"steps": 400}, seeds=[1], methods={"full": {"method": "full"}}),
        tmp_path / "runs",
    )
    process = subprocess.Popen(compare_command(study, runs), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = runs / "full-seed1/run/metrics.jsonl", time.time() + 120
    while time.time() < deadline and not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children():
        child.kill()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "full-seed1: was killed by signal 9: " in output and "1 of 1 runs have failed" in errors, (
        output + errors
    )


@pytest.mark.long
def test_one_at_a_time(project, tmp_path):
    study, runs = write_study(project, tmp_path, seeds=[1]), tmp_path / "runs"
    first = subprocess.Popen(compare_command(study, runs), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while time.time() < deadline and not (runs / "full-seed1").is_dir():
        time.sleep(0.05)
    second = compare(study, runs)
    assert second.returncode == 2 and "another process is at work on this study" in second.stderr
    first.terminate()
    first.communicate(timeout=120)


@pytest.fixture
def one_missing(finished, tmp_path):
    """A copy of the finished study, of which the last run has yet to be done."""
    study, runs, _ = finished
    for file in study.parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("raptr-seed2"))
    copy = tmp_path / "study.yaml"
    rows_file(copy).write_text("".join(rows_file(study).read_text().splitlines(keepends=True)[:-1]))
    return copy, tmp_path / "runs"


@pytest.mark.long
def test_a_run_that_ended_before_its_last_evaluation_makes_up_for_it(finished, tmp_path):
    """Killed between the checkpoint of the last step and the evaluation after it: the run is resumed, not refused."""
    study, runs, _ = finished
    for file in study.parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    shutil.copytree(runs, tmp_path / "runs")
    copy = tmp_path / "study.yaml"
    *others, whole = rows_file(study).read_text().splitlines(keepends=True)
    rows_file(copy).write_text("".join(others))
    metrics = tmp_path / "runs" / "raptr-seed2" / "run" / "metrics.jsonl"
    *before, last = metrics.read_text().splitlines(keepends=True)
    assert "eval_loss" in last
    metrics.write_text("".join(before))
    done = compare(copy, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    row, former = (json.loads(line) for line in (rows_file(copy).read_text().splitlines()[-1], whole))
    assert row["losses"] == former["losses"] and row["evaluations"] == former["evaluations"]


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2 and all(word in done.stderr for word in words), done.stdout + done.stderr


def test_rows_of_other_data_are_not_mixed(one_missing, project):
    study, runs = one_missing
    other = study.parent / "other"
    for end in (".bin", ".idx", ".json"):
        shutil.copy(f"{project.home}/valid{end}", f"{other}{end}")
    refused(
        compare(study, runs, "--data.train", str(other)),
        "study.rows.jsonl: full, seed 1: data train.train is",
        "remove the rows to run all again",
    )


def test_rows_of_other_settings_are_not_mixed(one_missing):
    study, runs = one_missing
    refused(compare(study, runs, "--ds.optimizer.params.lr", "2e-3"), "settings ds.optimizer.params.lr is 0.001 there, 0.002 now")


def test_rows_of_other_code_are_not_mixed(one_missing):
    study, runs = one_missing
    with (runs / "code/pretrain/train.py").open("a") as file:
        file.write("# another thought\n")
    refused(compare(study, runs), "study.rows.jsonl: full, seed 1: its code is")


def test_sizes_may_differ_in_data_but_not_in_code(finished):
    study, (first, second, *_) = read_study(finished[0]), rows(finished[0])
    wide = {"size": "wide", "data": {"tokenizer": "other"}}
    _require_alike(study, [first, second.model_copy(update=wide)])
    with pytest.raises(UserError, match="wide, short, seed 1, beside full, seed 1: its code is"):
        _require_alike(study, [first, second.model_copy(update=wide | {"made_with": ("code 11",)})])


@pytest.mark.parametrize("what", ["code", "data"])
def test_rows_of_two_kinds_are_refused_also_where_none_is_missing(finished, tmp_path, what):
    for file in finished[0].parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    file = rows_file(tmp_path / "study.yaml")
    lines = file.read_text().splitlines(keepends=True)
    row = json.loads(lines[-1])
    value = row["data"]["train.train"] if what == "data" else next(line for line in row["made_with"] if line.startswith("code "))
    other = lines[-1].replace(value, value[:-4] + "0000").replace(row["sha256"], "")  # as a program without checksums wrote it
    file.write_text("".join(lines[:-1]) + other)
    done = compare(tmp_path / "study.yaml", tmp_path / "runs")
    refused(
        done,
        "raptr, seed 2, beside full, seed 1",
        "data train.train is" if what == "data" else "its code is",
        "rows of two kinds are not compared",
    )


def test_what_a_run_was_asked_that_cannot_be_read_is_told_with_a_way_out(one_missing):
    study, runs = one_missing
    rows_file(study).unlink()
    (runs / "full-seed1/asked.json").write_text('{"settings": ')
    refused(compare(study, runs), "asked.json: line 1", "remove that folder, or choose another with --runs")


@pytest.mark.long
def test_a_finished_run_whose_last_checkpoint_is_damaged_is_not_taken_for_finished(one_missing, finished):
    study, runs = one_missing
    rows_file(study).write_text("".join(rows_file(study).read_text().splitlines(keepends=True)[:-1]))
    manifest = runs / "short-seed2/run/checkpoints/step_00000015/manifest.json"
    manifest.write_text("{")
    done = compare(study, runs, "--jobs", "2")
    assert done.returncode == 0 and "4 of 6 runs are done" in done.stdout and "short-seed2: held-out loss" in done.stdout, (
        done.stdout + done.stderr
    )
    assert numbers(rows(study)) == numbers(rows(finished[0]))


def test_data_that_is_exchanged_under_its_name_is_noticed(one_missing, project):
    study, runs = one_missing
    recipe = (study.parent / "recipe.yaml").read_text()
    for end in (".bin", ".idx", ".json"):
        shutil.copy(f"{project.home}/train{end}", study.parent / f"mine{end}")
    (study.parent / "recipe.yaml").write_text(recipe.replace(f"train: {project.home}/train", f"train: {study.parent}/mine"))
    with (study.parent / "mine.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x07\x01")
    refused(compare(study, runs), "data train.train is")
    (study.parent / "mine.bin").unlink()
    refused(compare(study, runs), "mine.bin: cannot be read: No such file")


def test_two_folders_of_runs_are_not_at_work_on_one_file_of_rows(one_missing):
    study, runs = one_missing
    with FileLock(study.parent / ".study.lock"):
        refused(compare(study, study.parent / "other"), "another process is at work on this study")


def test_a_row_that_nobody_asked_for_is_named(one_missing):
    study, runs = one_missing
    study.write_text(study.read_text().replace("short:", "brief:"))
    refused(compare(study, runs), "holds a row of short, seed 1, which", "does not ask for")


def test_a_run_begun_with_other_settings_is_not_gone_on_with(one_missing):
    study, runs = one_missing
    rows_file(study).unlink()
    refused(
        compare(study, runs, "--ds.gradient-clipping", "0.5"),
        "full-seed1: settings ds.gradient_clipping is 0.4 there, 0.5 now; remove that folder",
    )


@pytest.mark.long
def test_rows_that_were_lost_come_back_from_the_runs(one_missing, finished):
    study, runs = one_missing
    rows_file(study).unlink()
    done = compare(study, runs)
    assert done.returncode == 0 and "5 of 6 runs are done" in done.stdout and done.stdout.count("log in") == 1
    assert numbers(rows(study)) == numbers(rows(finished[0]))


@pytest.mark.long
def test_the_code_is_that_of_the_beginning(one_missing):
    study, runs = one_missing
    assert json.loads((runs / "full-seed1/asked.json").read_text())["code"]["code"] == rows(study)[0].of("code")
    asked = subprocess.run(
        [sys.executable, "-c", "import pretrain.study.local as local, pretrain.study.compare as c; print(c.HOME)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() != str(runs / "code"), "the runs' code and ours are two places"
    (runs / "code/pretrain/train.py").write_text("raise SystemExit('this is the copy')\n")
    rows_file(study).unlink()
    for folder in runs.glob("*-seed*"):
        shutil.rmtree(folder)
    done = compare(study, runs)
    assert done.returncode == 1 and done.stdout.count("failed with exit code 1: this is the copy") == 6
    assert "runs use the code in" in done.stdout and "6 of 6 runs have failed" in done.stderr


@pytest.mark.long
def test_rows_that_were_committed_are_gone_on_from_with_the_code_that_made_them(project, tmp_path):
    """In another clone, another day: the runs are gone, the code has changed, the rows and git are there."""
    clone = tmp_path / "clone"
    copy_code(clone)

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", clone, "-c", "user.name=t", "-c", "user.email=t@t", *words], check=True, capture_output=True)

    def compare_there(study: Path) -> subprocess.CompletedProcess:
        return subprocess.run(compare_command(study, tmp_path / "runs"), cwd=clone, capture_output=True, text=True, timeout=400)

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "before")
    methods, options = {"full": {"method": "full"}}, {"steps": 4, "eval_every": 4, "eval_parts": False}
    first = compare_there(write_study(project, tmp_path / "study", methods=methods, options=options, seeds=[1]))
    assert first.returncode == 0, first.stdout + first.stderr
    with (clone / "pretrain/train.py").open("a") as file:
        file.write("raise SystemExit('code that must not run')\n")
    git("commit", "--quiet", "--all", "--message", "after")
    shutil.rmtree(tmp_path / "runs")
    study = write_study(project, tmp_path / "study", methods=methods, options=options, seeds=[1, 2])
    second = compare_there(study)
    assert second.returncode == 0 and "with which the rows were made" in second.stdout, second.stdout + second.stderr
    assert (
        len(rows(study)) == 2
        and len({row.of("code") for row in rows(study)}) == len({row.of("commit") for row in rows(study)}) == 1
    )


@pytest.mark.long
def test_a_run_that_fails_is_told_with_its_reason_and_the_others_are_done(project, tmp_path):
    methods = {"bad": {"method": "full", "options": {"ds.optimizer.params.lr": 1e30}}, **METHODS}
    study = write_study(project, tmp_path, methods=methods, seeds=[1], options={"data.tokenizer": str(tmp_path / "none")})
    refused(compare(study, tmp_path / "runs"), f"{tmp_path}/none: no tokenizer here")
    study = write_study(project, tmp_path, methods=methods, seeds=[1], evaluate={"tasks": "held_out", "limit": 4})
    done = compare(study, tmp_path / "runs")
    evals = study.with_name("study.evals.jsonl").read_text().splitlines()
    assert len(evals) == 3, "those that have finished are put to tasks"
    assert done.returncode == 1 and "bad-seed1: failed with exit code 1: stopped: " in done.stdout
    assert "1 of 4 runs have failed: bad-seed1" in done.stderr and len(rows(study)) == 3


@pytest.mark.dist
@pytest.mark.long
def test_finished_runs_are_put_to_tasks_whatever_happens(project, tmp_path):
    """Killed while it asks, it goes on; what is there is not asked again; another way of asking asks anew."""
    settings = {"data.sequence_length": 96, "steps": 20, "save_every": 10, "keep_every": 10, "eval_parts": False}
    keys = {"tasks": ["induction_copying", "held_out"], "limit": 20, "attention": ["prefix", "causal"], "every_checkpoint": True}
    asked = {"seeds": [1], "methods": {"full": {"method": "full"}, "growing": {"method": "stacking", "path_lengths": "4-8"}}}
    study, runs = write_study(project, tmp_path, options=settings, evaluate=keys, **asked), tmp_path / "runs"
    process = subprocess.Popen(
        compare_command(study, runs, "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not (begun := list(runs.glob("*/evals/*/part_*"))) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert begun, "it was killed while it asked"
    done = compare(study, runs, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in study.with_name("study.evals.jsonl").read_text().splitlines()]
    names = [(row["method"], row["step"], row["attention"], row["task"]) for row in found]
    ways, tasks = ("prefix", "causal"), ("induction_copying", "held_out")
    expected = [("full", 10), ("full", 20), ("growing", 20)]  # a growing model is asked when it is whole
    assert sorted(names) == sorted((*one, way, task) for one in expected for way in ways for task in tasks)
    assert str(tmp_path) not in study.with_name("study.evals.jsonl").read_text()
    assert not list(runs.glob("*/evals/*/part_*")) and len(list(runs.glob("*/evals/*/*.npz"))) == 6
    before = moments(runs)
    again = compare(study, runs)
    assert again.returncode == 0 and "are put to tasks" not in again.stdout and moments(runs) == before
    page = subprocess.run(
        [sys.executable, "-m", "pretrain", "report", str(study), "--out", str(tmp_path / "report")],
        capture_output=True,
        text=True,
    )
    assert page.returncode == 0, page.stderr
    text = (tmp_path / "report/index.html").read_text()
    assert "induction_copying, prefix" in text and "(one seed)" in text and (tmp_path / "report/abilities.png").exists()
    write_study(project, tmp_path, options=settings, evaluate={**keys, "limit": 8, "every_checkpoint": False}, **asked)
    assert "4 checkpoints are put to tasks" in compare(study, runs, "--jobs", "2").stdout
    found = [json.loads(line) for line in study.with_name("study.evals.jsonl").read_text().splitlines()]
    assert len(found) == 8 and {row["documents"] + row["skipped"] for row in found} == {8}
    write_study(project, tmp_path, options=settings, evaluate={"tasks": "no_such"}, **asked)
    refused = compare(study, tmp_path / "others")
    assert refused.returncode == 2 and "no tier, file or task is called so" in refused.stderr
    assert "study.yaml: evaluate: tasks no_such" in refused.stderr and not (tmp_path / "others").exists(), "before any training"
    write_study(project, tmp_path, options=settings, evaluate={"tasks": "induction_copying", "shots": 60}, **asked)
    failed = compare(study, runs)
    assert failed.returncode == 1 and "take fewer --shots" in failed.stdout
    assert "2 evaluations have failed: full-seed1, step_00000020; growing-seed1, step_00000020" in failed.stderr
