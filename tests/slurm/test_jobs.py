"""Jobs on a real SLURM of three nodes: to the end, through signals, and through the loss of nodes."""

import json
import time

import pytest

from tests.dist.launch import pretrain

pytestmark = [pytest.mark.slurm, pytest.mark.dist]
TP2_PP2 = ("--parallel.tensor", "2", "--parallel.pipeline", "2")
TP2 = ("--parallel.tensor", "2")
TOLERANCE = 1e-4


def rows(run_dir) -> list[dict]:
    return [row for row in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    """Of torchrun, on this machine alone."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    process = pretrain(project, run_dir, 2, "--parallel.pipeline", "2", "--device", "cpu", "--steps", "40")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return rows(run_dir)


def require_same(run_dir, unbroken) -> None:
    found = rows(run_dir)
    assert [row["step"] for row in found] == [row["step"] for row in unbroken], "every step stands once"
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(found, unbroken)) < TOLERANCE


@pytest.mark.parametrize("layout", [TP2_PP2, TP2], ids=["TP2 x PP2", "TP2 x DP2 with ZeRO-1"])
def test_two_nodes_train_to_the_end(submit, unbroken, layout):
    job = submit(*layout, "--steps", "40")
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    story = (job.run_dir / "job.log").read_text()
    assert "start 0: 4 tasks on n[1-2], from the beginning" in story and "finished at step 40" in story
    assert "4 processes on 2 nodes, started by srun" in job.log.read_text()


def test_before_the_time_limit_it_saves_and_is_queued_again(submit, unbroken):
    job = submit(*TP2_PP2, "--steps", "40", "--save-every", "100")
    job.wait_for_step(15)
    job.signal("USR1")
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    story = (job.run_dir / "job.log").read_text()
    assert "before the time limit; queued again" in story and "start 1: 4 tasks" in story and "finished at step 40" in story
