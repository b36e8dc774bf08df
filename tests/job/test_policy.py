"""What happens after each way in which a start of a job can end."""

import os
import socket

import pytest

from pretrain.errors import NodesUnfit, TrainingStopped, UserError
from pretrain.job import log
from pretrain.job.events import Event, failures_told, read_events, tell_job
from pretrain.job.policy import decide, without_progress


def event(kind: str, text: str = "", rank: int = 0, node: str = "n1", step: int | None = None) -> Event:
    return Event("7", 0, kind, text, rank, node, step, "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    "events, code, terminated, saved, requeue, exit_code, words",
    [
        ([event("finished", step=40)], 0, False, [40], False, 0, "finished at step 40"),
        ([event("ended", step=15)], 0, False, [15], False, 0, "ended at step 15, as --stop-at says"),
        ([event("saved", "SIGUSR1", step=17)], 0, False, [17], True, 0, "saved at step 17 before the time limit; queued again"),
        ([event("saved", "SIGUSR1", step=17)], 0, True, [17], False, 143, "told to end (SIGUSR1), saved at step 17"),
        ([event("saved", "SIGTERM", step=17)], 0, True, [17], False, 143, "told to end (SIGTERM), saved at step 17"),
        ([], 143, True, [10], False, 143, "told to end before it could save; goes on from step 10"),
        ([event("config", "recipe x: no such thing")], 2, False, [0], False, 2, "recipe x: no such thing; not queued again"),
        ([event("stopped", "step 7: the loss is nan")], 1, False, [5], True, 0, "step 7: the loss is nan; queued again from step 5 (failure 1 of 3"),
        ([event("stopped", "step 7: the loss is nan")], 1, False, [5, 5], True, 0, "failure 2 of 3"),
        ([event("stopped", "step 7: the loss is nan")], 1, False, [5, 5, 5], False, 1, "3 starts in a row brought no newer checkpoint than step 5"),
        ([event("stopped", "disk full")], 1, False, [5, 5, 10], True, 0, "from step 10 (failure 1 of 3"),
        ([event("hung", "no step for 600 s", 0), event("hung", "no step for 600 s", 2)], 70, False, [5], True, 0, "rank 0 on n1: no step for 600 s"),
        ([event("stopped", "a peer", 1), event("crash", "KeyError: x", 2, "n2")], 1, False, [5], True, 0, "rank 1 on n1: a peer"),
        ([event("node", "no GPU is visible", 3, "n4")], 1, False, [5], True, 0, "n4: no GPU is visible; queued again from step 5, without n4"),
        ([], 137, False, [5], True, 0, "the launcher ended with 137 and no process said why"),
    ],
)
def test_every_end_has_an_outcome(events, code, terminated, saved, requeue, exit_code, words):
    decision = decide(events, code, terminated, saved, most=3)
    assert (decision.requeue, decision.exit_code) == (requeue, exit_code) and words in decision.reason


def test_progress_is_a_newer_checkpoint():
    assert [without_progress(steps) for steps in ([0], [0, 0], [0, 0, 5], [5, 5, 5])] == [1, 2, 1, 3]


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("RANK", "3")


@pytest.mark.parametrize("error, kind", [(UserError("a"), "config"), (TrainingStopped("b"), "stopped"), (KeyError("c"), "crash")])
def test_what_ends_a_process_is_told(job, tmp_path, error, kind):
    with pytest.raises(type(error)), failures_told(tmp_path):
        raise error
    (told,) = read_events(tmp_path)
    assert (told.job, told.restart, told.kind, told.rank, told.node) == ("7", 2, kind, 3, socket.gethostname())


def test_a_node_that_is_not_fit_is_told_by_the_first_rank_of_one_that_is(job, tmp_path, monkeypatch):
    """It may be unable to write."""
    for rank, node in enumerate(nodes := ["n1", "n1", "n2", "n2", "n3"]):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("SLURMD_NODENAME", node)
        with pytest.raises(NodesUnfit, match="not fit: n1: no GPU; n3: too old"), failures_told(tmp_path):
            raise NodesUnfit({"n3": "too old", "n1": "no GPU"}, nodes)
    assert [(told.kind, told.node, told.text, told.rank) for told in read_events(tmp_path)] == [("node", "n3", "too old", 2), ("node", "n1", "no GPU", 2)]


def test_the_loss_of_another_process_is_not(job, tmp_path):
    with pytest.raises(RuntimeError), failures_told(tmp_path):
        raise RuntimeError("[gloo] Connection closed by peer")
    assert read_events(tmp_path) == []


def test_outside_of_a_job_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    tell_job(tmp_path, "finished", "")
    assert not list(tmp_path.iterdir())


def test_the_story_across_starts(job, tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "step_00000005").mkdir(parents=True)
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        log.started(tmp_path, dict(os.environ))
        tell_job(tmp_path, "node" if restart == 0 else "stopped", "no GPU is visible", 3)
        decision = log.ended(tmp_path, dict(os.environ), 1, False, most=3)
        assert decision.requeue == (restart < 2)
    assert (tmp_path / "bad_nodes").read_text() == socket.gethostname() + "\n"
    lines = (tmp_path / "job.log").read_text().splitlines()
    assert len(lines) == 6 and "start 0: " in lines[0] and "failure 2 of 3" in lines[3] and "so it ends here" in lines[5]
