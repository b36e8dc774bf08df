"""`evaluate` on a checkpoint: the same numbers on any layout, and one line for what cannot be."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.support.launch import torchrun
from tests.support.project import BERT
from tests.support.runs import train

GENERATED = ["induction_copying", *(f"variable_assignment_{depth}" for depth in range(3))]


def evaluate(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pretrain", "evaluate", *map(str, words), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


@pytest.fixture(scope="module")
def run_dir(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    done = train(project, folder, "--stop-at", "5", "--data.sequence_length", "96", "--ds.optimizer.params.lr", "0.02")
    assert done.returncode == 0, done.stderr
    return folder


def rows_of(file) -> dict[str, dict]:
    return {row["task"]: row for row in map(json.loads, file.read_text().splitlines())}


@pytest.mark.dist
@pytest.mark.long
def test_tasks_are_scored_the_same_alone_and_on_layouts(run_dir, tmp_path):
    done = evaluate(run_dir, "--limit", 60, "--out", tmp_path / "one.jsonl", "--tasks", *GENERATED, "held_out")
    assert done.returncode == 0, done.stderr
    one = rows_of(tmp_path / "one.jsonl")
    assert list(one) == [*GENERATED, "held_out"]
    for row in one.values():
        assert row["attention"] == "prefix" and row["mode"] == "[S2S]", "as in training"
        assert row["step"] == 5 and row["precision"] == "fp32" and row["documents"] + row["skipped"] == 60
        found = row["metrics"]
        assert f"{found[row['metric']]['mean']:.3f}" in done.stdout and found["bits_per_byte"]["mean"] > 1
        if row["chance"] is not None:  # three standard errors of chance
            assert abs(found["accuracy"]["mean"] - row["chance"]) <= 0.17, "five steps teach nothing"
    for processes, layout in (
        (2, ["--parallel.tensor", "2"]),
        (2, ["--parallel.pipeline", "2", "--parallel.virtual", "2"]),
        (2, []),
    ):
        words = [run_dir, "--limit", 60, "--device", "cpu", "--out", tmp_path / "other.jsonl", *layout]
        words += ["--tasks", *GENERATED, "held_out"]
        process = torchrun(processes, "pretrain", "evaluate", *words)
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        for name, row in rows_of(tmp_path / "other.jsonl").items():
            bits, expected = row["metrics"].pop("bits_per_byte"), one[name]["metrics"]["bits_per_byte"]
            assert bits["mean"] == pytest.approx(expected["mean"], abs=1e-4)
            others = {metric: value for metric, value in one[name]["metrics"].items() if metric != "bits_per_byte"}
            assert row["metrics"] == others and row["requests"] == one[name]["requests"], (name, layout)


@pytest.mark.long
def test_a_newer_checkpoint_that_is_damaged_is_told_of(project, tmp_path):
    assert train(project, tmp_path / "run", "--stop-at", "10").returncode == 0
    largest = max((tmp_path / "run/checkpoints/step_00000010").iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-4] + b"\0\1\2\3")
    done = evaluate(tmp_path / "run", "--limit", 4, "--tasks", "variable_assignment_0", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipping ") and "step_00000010" in done.stdout.splitlines()[0]
    assert rows_of(tmp_path / "out.jsonl")["variable_assignment_0"]["step"] == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(run_dir, number):
    """Training saves first; here nobody would look for the request."""
    words = [
        sys.executable,
        "-m",
        "pretrain",
        "evaluate",
        run_dir,
        "--limit",
        "100000",
        "--tasks",
        "induction_copying",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        time.sleep(12)
        assert process.poll() is None, "it is still at work"
        process.send_signal(number)
        assert process.wait(10) in (-number, 130)
    finally:
        process.kill()


@pytest.mark.long
def test_a_later_evaluation_never_takes_the_place_of_a_whole_one_by_a_part(run_dir, tmp_path):
    """What is compared with stays, and an evaluation that fails leaves its rows beside."""
    out, words = tmp_path / "one.jsonl", (run_dir, "--limit", 30, "--tasks", "induction_copying")
    assert evaluate(*words, "--out", out).returncode == 0
    whole = out.read_bytes()
    refused = evaluate(*words, "--out", out, "--against", out)
    assert refused.returncode == 2 and "would take the place of what --against compares with" in refused.stderr
    (tmp_path / "mine.jsonl").write_text('{"q": "It is", "c": ["so", "no"], "a": 7}\n')
    mine = {"data": ["mine"], "context": "{q}", "choices": "{c}", "answer": "{a}", "metric": "accuracy", "chance": 0.5}
    about = {"about": "a", "version": 1, "source": "b", "licence": "c", "format": "d"}
    (tmp_path / "own.yaml").write_text(json.dumps(mine | about))
    failed = evaluate(*words, tmp_path / "own.yaml", "--data", tmp_path, "--out", out)
    assert failed.returncode == 2 and 'the answer "7" is none of 0, 1; rows of the tasks before it are in' in failed.stderr
    assert out.read_bytes() == whole and list(rows_of(tmp_path / "part_one.jsonl")) == ["induction_copying"]
    done = evaluate(*words, "--against", out)
    assert done.returncode == 0 and "+0.000 to +0.000" in done.stdout
    out.with_suffix(".npz").write_bytes(out.with_suffix(".npz").read_bytes()[:-40])
    damaged = evaluate(*words, "--against", out)
    assert damaged.returncode == 2 and "one.npz: cannot be read" in damaged.stderr and "Traceback" not in damaged.stderr


def test_a_checkpoint_without_its_text_is_asked_what_needs_none(project, tmp_path):
    for file in project.home.glob("valid.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    own = ("--data.valid", str(tmp_path / "valid"), "--data.sequence_length", "96", "--stop-at", "5")
    assert train(project, tmp_path / "run", *own).returncode == 0
    (tmp_path / "valid.bin").unlink()
    done = evaluate(tmp_path / "run", "--limit", 10, "--tasks", "tiny")
    assert done.returncode == 0 and "induction_copying" in done.stdout and "held_out" in done.stdout.splitlines()[0]
    wanted = evaluate(tmp_path / "run", "--tasks", "held_out")
    assert wanted.returncode == 2 and "valid" in wanted.stderr and "Traceback" not in wanted.stderr


@pytest.mark.long
def test_what_cannot_be_is_one_line(project, run_dir, tmp_path):
    assert "variable_assignment_2" in evaluate("--list").stdout
    told = {
        (): "error: evaluate: name a run directory or a checkpoint, before --tasks; --list says which tasks there are",
        (run_dir, "--tasks", "no_such"): "error: --tasks no_such: no tier, file or task is called so; valid here: arc_",
        (run_dir, "--tasks", "piqa"): "error: task piqa: piqa.validation (.jsonl or .parquet) is missing; name its folder with",
        (run_dir, "--tasks", "paper"): "error: --tasks paper: there is no data for any of it; --list says where to get it",
        (run_dir, "--limit", 0): "error: --limit 0: at least 1",
        ("--tasks", "induction_copying", run_dir): "error: evaluate: name a run directory or a checkpoint, before --tasks",
        (tmp_path / "none",): "holds no checkpoint; give a run directory",
        (run_dir, "--tasks", "induction_copying", "--shots", 40): "is longer than the model's 96 positions; take fewer --shots",
        (run_dir, "--parallel.pipeline", 0): "error: --parallel.pipeline 0: at least 1",
        (run_dir, "--parallel.tensor", 3): "tensor",
        (run_dir, "--out", tmp_path / "none" / "x.jsonl"): "name a file in a folder that is there",
        (run_dir, "--out", tmp_path / "x.json"): "name a file that ends in .jsonl",
        (run_dir, "--data", tmp_path / "none"): "no such folder",
    }
    for words, line in told.items():
        done = evaluate(*words)
        assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr, (words, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    one = evaluate(run_dir, "--limit", 1, "--tasks", "variable_assignment_0", "--out", tmp_path / "one.jsonl")
    assert one.returncode == 0
    assert rows_of(tmp_path / "one.jsonl")["variable_assignment_0"]["metrics"]["accuracy"]["error"] is None
    bert = [word for key, value in BERT.items() for word in (f"--{key}", value)]
    assert train(project, tmp_path / "bert", "--stop-at", "5", *bert).returncode == 0
    assert "a model that fills in masks gives no likelihood" in evaluate(tmp_path / "bert").stderr
