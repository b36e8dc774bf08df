"""What `status` says of a run in each state, from its files alone."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from pretrain.errors import UserError
from pretrain.job import log
from pretrain.job.events import report_to_job
from pretrain.job.status import print_status, status_of


@pytest.fixture
def run(project, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text(project.recipe.read_text())
    return run_dir


def row(run_dir, step: int, age: float = 0.0) -> None:
    moment = datetime.now(UTC) - timedelta(seconds=age)
    facts = {
        "step": step,
        "time": moment.isoformat(timespec="milliseconds"),
        "loss": 2.5,
        "step_seconds": 1.0,
        "tokens_per_second": 100.0,
        "restart": 0,
    }
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def test_from_its_start_to_its_end(run):
    log.started(run, dict(os.environ), most=3)
    found = status_of(run)
    assert (found["state"], found["job"], found["step"]) == ("no step yet", "7", "0/20")
    row(run, 5, age=-2)
    found = status_of(run)
    assert (found["state"], found["step"], found["loss"], found["ETA"], found["checkpoint"]) == (
        "running",
        "5/20",
        "2.5000",
        "0:00",
        "none",
    )
    (run / "metrics.jsonl").unlink()
    row(run, 5, age=2)
    report_to_job(run, "saved", "SIGUSR1", step=5)
    assert log.ended(run, dict(os.environ), 0, ("USR1",), most=3).requeue
    found = status_of(run)
    assert found["state"] == "queued again: saved at step 5 before the time limit; queued again" and found["ETA"] == ""
    row(run, 20)
    assert status_of(run)["state"] != "finished", "its last checkpoint is not there"
    (run / "checkpoints" / "step_00000020").mkdir(parents=True)
    assert status_of(run)["state"] == "finished"


def test_a_run_that_says_nothing_is_called_silent(run):
    row(run, 5, age=600)
    assert status_of(run)["state"] == "silent for 10 min"


def test_a_failed_one_says_why_and_a_job_that_was_refused_too(run, tmp_path):
    row(run, 5, age=10)
    report_to_job(run, "stopped", "step 6: the loss is nan")
    log.ended(run, dict(os.environ), 1, (), most=1)
    assert status_of(run)["state"].startswith("ended: rank 0 on") and "the loss is nan" in status_of(run)["state"]
    refused = tmp_path / "refused"
    refused.mkdir()
    log.write_line(refused, "job 8, start 0: not started: error: no such key")
    assert status_of(refused)["state"] == "job 8, start 0: not started: error: no such key"


def test_what_is_wrong_with_one_run_stands_in_its_line(run, tmp_path, capsys):
    row(run, 5)
    damaged, none = tmp_path / "damaged", tmp_path / "none"
    damaged.mkdir()
    none.mkdir()
    (damaged / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    (damaged / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    print_status([run, damaged, none, tmp_path / "missing"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "2.5000" in shown
    for folder, words in (
        (damaged, "is not of this program"),
        (none, "it has no recipe.yaml"),
        (tmp_path / "missing", "missing: no such folder"),
    ):
        with pytest.raises(UserError, match=words):
            status_of(folder)


def test_a_folder_of_runs_stands_for_them(run, capsys):
    (run.parent / "other").mkdir()
    (run.parent / "other" / "job.log").write_text("2026-01-01T00:00:00Z  waits\n")
    (run.parent / "no run").mkdir()
    print_status([run.parent])
    shown = capsys.readouterr().out
    assert str(run) in shown and f"{run.parent}/other" in shown and "no run" not in shown
    print_status([run.parent / "no run"])
    assert "neither a run directory" in capsys.readouterr().out
