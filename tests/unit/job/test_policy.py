"""What happens after each way in which a start of a job can end."""

import os
import socket

import pytest

from pretrain.errors import NodesUnfit, TrainingStopped, UserError
from pretrain.job import log
from pretrain.job.events import Event, read_events, report_failures, report_to_job
from pretrain.job.policy import decide, without_progress


def event(kind: str, text: str = "", rank: int = 0, node: str = "n1", step: int | None = None) -> Event:
    return Event("7", 0, kind, text, rank, node, step, "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    "events, code, signals, saved, requeue, exit_code, words",
    [
        ([event("finished", step=40)], 0, [], [40], False, 0, "finished at step 40"),
        ([event("ended", step=15)], 0, [], [15], False, 0, "ended at step 15, as --stop-at says"),
        ([event("saved", "SIGUSR1", step=17)], 0, [], [17], True, 0, "saved at step 17 before the time limit; queued again"),
        ([event("saved", "SIGUSR1", step=17)], 0, ["TERM"], [17], False, 143, "asked to end (SIGUSR1), saved at step 17"),
        ([event("saved", "SIGTERM", step=17)], 0, ["TERM"], [17], False, 143, "asked to end (SIGTERM), saved at step 17"),
        ([], 143, ["TERM"], [10], False, 143, "asked to end before it could save; resumes from step 10"),
        ([event("config", "recipe x: no such thing")], 2, [], [0], False, 2, "recipe x: no such thing; not queued again"),
        (
            [event("stopped", "step 7: the loss is nan")],
            1,
            [],
            [5],
            True,
            0,
            "step 7: the loss is nan; queued again from step 5 (failure 1 of 3",
        ),
        ([event("stopped", "step 7: the loss is nan")], 1, [], [5, 5], True, 0, "failure 2 of 3"),
        (
            [event("stopped", "step 7: the loss is nan")],
            1,
            [],
            [5, 5, 5],
            False,
            1,
            "3 starts in a row saved nothing newer than step 5",
        ),
        ([event("stopped", "disk full")], 1, [], [5, 5, 10], True, 0, "from step 10 (failure 1 of 3"),
        (
            [event("hung", "no step for 600 s", 0), event("hung", "no step for 600 s", 2)],
            70,
            [],
            [5],
            True,
            0,
            "rank 0 on n1: no step for 600 s",
        ),
        ([event("stopped", "a peer", 1), event("crash", "KeyError: x", 2, "n2")], 1, [], [5], True, 0, "rank 1 on n1: a peer"),
        (
            [event("node", "no GPU is visible", 3, "n4")],
            1,
            [],
            [5],
            True,
            0,
            "n4: no GPU is visible; queued again from step 5, without n4",
        ),
        ([], 137, [], [5], True, 0, "the launcher ended with 137 and no process said why"),
        ([], 0, [], [5], False, 0, "all tasks have ended well, and could not say at which step"),
        ([], 138, ["USR1"], [0], True, 0, "asked to save (SIGUSR1) before the first step was done; is --time longer"),
        ([], 138, ["USR1"], [0, 0, 0], False, 1, "3 starts in a row saved nothing newer"),
        ([], 138, ["USR1", "TERM"], [0], False, 143, "asked to end before it could save"),
    ],
)
def test_every_end_has_an_outcome(events, code, signals, saved, requeue, exit_code, words):
    decision = decide(events, code, signals, saved, most=3)
    assert (decision.requeue, decision.exit_code) == (requeue, exit_code) and words in decision.reason


def test_progress_is_a_newer_checkpoint():
    assert [without_progress(steps) for steps in ([0], [0, 0], [0, 0, 5], [5, 5, 5])] == [1, 2, 1, 3]


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "5")


@pytest.mark.parametrize("error, kind", [(UserError("a"), "config"), (TrainingStopped("b"), "stopped"), (KeyError("c"), "crash")])
def test_what_ends_a_process_is_told(job, tmp_path, error, kind):
    with pytest.raises(type(error)), report_failures(tmp_path):
        raise error
    (told,) = read_events(tmp_path)
    assert (told.job, told.restart, told.kind, told.rank, told.node) == ("7", 2, kind, 3, socket.gethostname())


def test_a_node_that_is_not_fit_is_told_by_the_first_rank_of_one_that_is(job, tmp_path, monkeypatch):
    """It may be unable to write."""
    for rank, node in enumerate(nodes := ["n1", "n1", "n2", "n2", "n3"]):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("SLURMD_NODENAME", node)
        with pytest.raises(NodesUnfit, match="not fit: n1: no GPU; n3: too old"), report_failures(tmp_path):
            raise NodesUnfit({"n3": "too old", "n1": "no GPU"}, nodes)
    assert [(told.kind, told.node, told.text, told.rank) for told in read_events(tmp_path)] == [
        ("node", "n3", "too old", 2),
        ("node", "n1", "no GPU", 2),
    ]


def test_the_loss_of_another_process_is_not(job, tmp_path):
    with pytest.raises(RuntimeError), report_failures(tmp_path):
        raise RuntimeError("[gloo] Connection closed by peer")
    assert read_events(tmp_path) == []


def test_outside_of_a_job_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    report_to_job(tmp_path, "finished", "")
    assert not list(tmp_path.iterdir())


def start_and_end(run_dir, restart: int, monkeypatch, kind: str | None = "stopped", **how):
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    assert log.started(run_dir, dict(os.environ), most=3) is None
    if kind:
        report_to_job(run_dir, kind, "no GPU is visible", 3)
    return log.ended(run_dir, dict(os.environ), 1, (), most=3)


def test_the_story_across_starts(job, tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "step_00000005").mkdir(parents=True)
    for restart in range(3):
        decision = start_and_end(tmp_path, restart, monkeypatch, "node" if restart == 0 else "stopped")
        assert decision.requeue == (restart < 2)
    assert (tmp_path / "bad_nodes").read_text() == socket.gethostname() + "\n"
    lines = (tmp_path / "job.log").read_text().splitlines()
    assert len(lines) == 6 and "start 0: " in lines[0] and "failure 2 of 3" in lines[3] and "giving up" in lines[5]
    assert [told.kind for told in read_events(tmp_path)] == [
        "started",
        "node",
        "requeued",
        "started",
        "stopped",
        "requeued",
        "started",
        "stopped",
        "over",
    ]
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert start_and_end(tmp_path, 0, monkeypatch).requeue and not (tmp_path / "bad_nodes").exists(), "another job begins anew"


def test_starts_whose_end_nobody_has_told_count(job, tmp_path, monkeypatch):
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        assert log.started(tmp_path, dict(os.environ), most=3) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    decision = log.started(tmp_path, dict(os.environ), most=3)
    assert decision.exit_code == 1 and "not started: 3 starts in a row saved nothing newer than step 0" in decision.reason
    assert (tmp_path / "job.log").read_text().count("nothing is known of its end") == 3


def test_damaged_notes_decide_nothing(job, tmp_path, monkeypatch):
    (tmp_path / ".job.json").write_text("{")
    (tmp_path / "events.jsonl").write_bytes(b'\xff\xfe{"job": "half')
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    report_to_job(tmp_path, "finished", "", step=40)
    decision = log.ended(tmp_path, dict(os.environ), 0, (), most=3)
    assert decision.reason == "finished at step 40" and not decision.requeue


def test_where_nothing_can_be_noted_restarts_are_counted(job, tmp_path, monkeypatch, capsys):
    """The run directory is a file, so that not even root can write in it."""
    run_dir = tmp_path / "run"
    run_dir.write_text("")
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        decision = log.ended(run_dir, dict(os.environ), 1, (), most=3)
        assert decision.requeue == (restart < 2)
    assert "could write no notes; giving up" in decision.reason and "job.log: cannot be written" in capsys.readouterr().err
