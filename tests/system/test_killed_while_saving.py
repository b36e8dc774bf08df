"""Two ranks, killed at random moments while they write a checkpoint: both, or one of them."""

import os
import random
import signal
import time

import pytest

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.manifest import problem_of
from tests.support.launch import pretrain, ranks_of
from tests.system.test_signals import PP2, losses

pytestmark = [pytest.mark.dist, pytest.mark.slow]
SAVES = ("--save-every", "5", "--keep-checkpoints", "2")


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    process = pretrain(project, run_dir, 2, *PP2, *SAVES)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return run_dir


@pytest.mark.parametrize("victims", [(0, 1), (0,), (1,)], ids=str)
@pytest.mark.parametrize("number", range(4))
def test_every_resume_finds_a_good_checkpoint(project, unbroken, tmp_path, number, victims):
    run_dir = tmp_path / "run"
    process = pretrain(project, run_dir, 2, *PP2, *SAVES)
    second, begun = run_dir / "checkpoints" / "step_00000010", 0.0
    while process.poll() is None and not begun:
        if second.with_suffix(".unfinished").exists() or second.exists():
            begun = time.time()
        time.sleep(0.0002)
    ranks = ranks_of(process)
    time.sleep(random.uniform(0, 0.04))
    for victim in victims:
        os.kill(ranks[victim].pid, signal.SIGKILL)
    process.communicate(timeout=90)
    named = RunDirectory(run_dir).steps_saved()
    assert named and all(problem_of(folder) is None for folder in named)
    newest = int(named[-1].name[5:])
    rows_before = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    again = pretrain(project, run_dir, 2, *PP2, *SAVES)
    out, errors = again.communicate(timeout=180)
    assert again.returncode == 0, errors
    assert f"resuming after step {newest}" in out and "skipping" not in out
    assert newest >= 5, "no more than the checkpoint that was being written is lost"
    assert losses(run_dir) == losses(unbroken)
    after = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in rows_before if int(line.split(b'"step": ')[1].split(b",")[0]) <= newest]
    assert after[: len(kept)] == kept
