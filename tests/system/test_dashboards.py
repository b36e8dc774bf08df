"""Dashboards hold what metrics.jsonl holds, go on in the same run, and stop none."""

import os
import sqlite3
import subprocess
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
    import json

    (file,) = (there / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        logged = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    found = {(name, step): value for _, step, metrics in logged for name, value in json.loads(metrics).items()}
    wanted = of_rows(there / "run")
    assert len({name for name, _, _ in logged}) == 1, "one run"
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
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setenv("TRACKIO_DIR", "/dev/null/nowhere")
    done = train(project, tmp_path / "run", "--log-to", "wandb trackio", "--stop-at", "3")
    assert done.returncode == 0 and len(rows(tmp_path / "run")) == 3, done.stderr
    assert done.stdout.count("WARNING: wandb shows no more of this run") == 1, done.stdout  # trackio says it itself
    assert "Traceback" not in done.stdout + done.stderr


def test_none_is_an_answer_and_another_is_refused(project, tmp_path):
    done = train(project, tmp_path / "run", "--log-to", "[]", "--stop-at", "1")
    assert done.returncode == 0 and not (tmp_path / "run" / "tensorboard").exists(), done.stderr
    done = train(project, tmp_path / "other", "--log-to", "weights")
    assert done.returncode == 2 and "log_to" in done.stderr and "wandb" in done.stderr and done.stderr.count("\n") == 1


def test_one_that_is_asked_for_later_has_all_rows(project, tmp_path):
    assert train(project, tmp_path / "run", "--log-to", "[]", "--stop-at", "5").returncode == 0
    assert train(project, tmp_path / "run", "--stop-at", "7").returncode == 0
    assert train(project, tmp_path / "run", "--stop-at", "8").returncode == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 9))
