"""Dashboards hold what metrics.jsonl holds, go on in the same run, and stop none."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.observe.dashboards import named
from tests.support.runs import command, kill_after, rows, train
from tests.support.wandb_file import records
from tests.support.wandb_file import rows as wandb_rows

NAMED = {"train/loss", "train/lr", "train/grad_norm", "pace/tokens_per_second", "eval/eval_loss", "eval/eval_loss_nlu"}
"""Some that must be among them."""


@pytest.fixture(scope="module")
def there(project, tmp_path_factory) -> Path:
    """A run that was killed after step 7 and went on from step 5."""
    there = tmp_path_factory.mktemp("there")
    os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(there / "trackio"), "WANDB_SILENT": "true"}
    words = ["--log-to", "tensorboard, wandb, trackio"]
    process = subprocess.Popen(command(project, there / "run", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kill_after(process, there / "run", 7)
    done = train(project, there / "run", *words)
    assert done.returncode == 0 and "WARNING" not in done.stdout and "wandb:" not in done.stdout + done.stderr, done.stderr
    return there


def of_rows(run: Path) -> dict[tuple[str, int], float]:
    return {(name, row["step"]): value for row in rows(run) for name, value in named(row).items()}


def of_trackio(folder: Path) -> dict[tuple[str, int], float]:
    """Metrics of the one run that Trackio's database has."""
    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as base:
        logged = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, _, _ in logged}) == 1, "one run"
    return {(name, step): value for _, step, metrics in logged for name, value in json.loads(metrics).items()}


def test_wandb_holds_every_metric_under_one_run(there):
    found, ids = {}, set()
    files = sorted((there / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2, "one a start"
    for file in files:
        ids |= {record.run.run_id for record in records(file) if record.WhichOneof("record_type") == "run"}
        for row in wandb_rows(file):
            found |= {(name, row["step"]): value for name, value in row.items()}
    wanted = of_rows(there / "run")
    assert {name for name, _ in wanted} >= NAMED and len(ids) == 1
    assert {key: found[key] for key in wanted} == wanted


def test_trackio_holds_every_metric_under_one_run(there):
    found, wanted = of_trackio(there / "trackio"), of_rows(there / "run")
    assert {key: found[key] for key in wanted} == wanted


def test_tensorboard_holds_every_metric_once(there):
    board = EventAccumulator(str(there / "run" / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    wanted = of_rows(there / "run")
    assert set(board.Tags()["scalars"]) == {name for name, _ in wanted}
    found = {(name, event.step): event.value for name in board.Tags()["scalars"] for event in board.Scalars(name)}
    assert found.keys() == wanted.keys()
    assert all(abs(found[key] - value) <= 1e-5 * max(1.0, abs(value)) for key, value in wanted.items())


def test_one_that_cannot_be_reached_stops_nothing(project, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    monkeypatch.setenv("TRACKIO_DIR", "/dev/null/nowhere")
    done = train(project, tmp_path / "run", "--log-to", "wandb trackio", "--stop-at", "5")
    assert done.returncode == 0 and len(rows(tmp_path / "run")) == 5 and done.stderr == "", done.stderr
    for name in ("wandb", "trackio"):
        assert done.stdout.count(f"WARNING: {name} shows no more of this run") == 1, done.stdout
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    done = train(project, tmp_path / "run", "--log-to", "trackio", "--stop-at", "7")
    assert done.returncode == 0 and "WARNING" not in done.stdout, done.stdout
    assert sorted({step for _, step in of_trackio(tmp_path / "trackio")}) == list(range(1, 8)), "what was lost is there now"


def test_without_a_login_nobody_is_asked_at_a_terminal(project, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    ours, theirs = pty.openpty()
    words = command(project, tmp_path / "run", "--log-to", "wandb", "--stop-at", "2")
    process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(ours), os.close(theirs)
    assert process.returncode == 0 and out.count("WARNING: wandb shows no more") == 1, err


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from pretrain.observe import dashboards
dashboards.FINISH_SECONDS = -4.0
run = SimpleNamespace(name="x", recipe=SimpleNamespace(log_to=("wandb",)), identity=dict, layout=dict, steps=9,
                      method=SimpleNamespace(name="full"))
boards = dashboards.Dashboards(run, Path(sys.argv[1]), 0)
boards.record({"step": 1, "loss": 1.0})
os.kill(boards._open["wandb"]._child.pid, signal.SIGSTOP)
for step in range(2, 20_000):
    boards.record({"step": step, "loss": 1.0})
boards.close()
print("ended")
"""


def test_one_that_does_not_answer_delays_nothing_and_is_left_behind(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path)], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0 and "did not end within" in done.stdout and done.stdout.endswith("ended\n"), done.stderr


def test_a_state_that_cannot_be_read_or_written_stops_nothing(project, tmp_path):
    (tmp_path / "run" / "dashboards.json").mkdir(parents=True)
    done = train(project, tmp_path / "run", "--stop-at", "2")
    assert done.returncode == 0 and "dashboards.json cannot be read" in done.stdout, done.stderr


def test_none_is_an_answer_and_another_is_refused(project, tmp_path):
    done = train(project, tmp_path / "run", "--log-to", "[]", "--stop-at", "1")
    assert done.returncode == 0 and not (tmp_path / "run" / "tensorboard").exists(), done.stderr
    done = train(project, tmp_path / "other", "--log-to", "weights")
    assert done.returncode == 2 and "log_to" in done.stderr and "wandb" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.long
def test_one_that_is_asked_for_later_has_all_rows(project, tmp_path):
    assert train(project, tmp_path / "run", "--log-to", "[]", "--stop-at", "5").returncode == 0
    assert train(project, tmp_path / "run", "--stop-at", "7").returncode == 0
    assert train(project, tmp_path / "run", "--stop-at", "8").returncode == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 9))
