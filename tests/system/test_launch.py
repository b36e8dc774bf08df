"""Ranks that fail alone: what they know is on disk before anything collective, and a checkpoint that was begun is kept."""

import json
import os

import pytest

from tests.support.launch import torchrun
from tests.support.runs import command, rows, train
from tests.system.test_signals import PP2, losses, unbroken  # noqa: F401  # a fixture

pytestmark = pytest.mark.dist
BEFORE = """
import os, sys, time
from pretrain.ranks.libraries import prepare_libraries
prepare_libraries("cpu")
import torch.distributed as dist
from pretrain.engine.engine import Engine
from pretrain.errors import TrainingStopped
evaluate, step = Engine.evaluate, Engine.begin
"""
AFTER = """
from pretrain.__main__ import main
main()
"""


def patched(folder, code: str):
    """The program with something in it that goes wrong."""
    file = folder / "patched.py"
    file.write_text(BEFORE + code + AFTER)
    return file


def start(project, file, run_dir, processes: int, *words: str, **environment: str):
    words = [*command(project, run_dir, *words)[3:]]
    home = {"PYTHONPATH": os.getcwd()}
    return torchrun(processes, "", str(file), *words, env={**os.environ, **home, **environment})


EVALUATION_FAILS = """
def fails(self, batches, path=None):
    if self.ranks.rank in {ranks}:
        raise RuntimeError("no memory left in this evaluation")
    return evaluate(self, batches, path)
Engine.evaluate = fails
"""


@pytest.mark.parametrize(
    "processes, ranks",
    [(1, [0]), *(pytest.param(2, ranks, marks=pytest.mark.long) for ranks in ([1], [0, 1], [0]))],
    ids=str,
)
def test_an_evaluation_that_fails_costs_no_step(project, unbroken, tmp_path, processes, ranks):  # noqa: F811
    """Whether on one rank or on all, the checkpoint of its step is there, and the next start evaluates what is missing."""
    run_dir = tmp_path / "run"
    layout = PP2 if processes == 2 else ()
    file = patched(tmp_path, EVALUATION_FAILS.replace("{ranks}", str(ranks)))
    process = start(project, file, run_dir, processes, *layout)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "no memory left in this evaluation" in errors
    assert (run_dir / "checkpoints" / "step_00000010" / "manifest.json").is_file()
    if processes == 2 and ranks == [0]:
        return  # the rest is the same
    if processes == 1:
        done = train(project, run_dir)
        assert done.returncode == 0 and "resuming after step 10" in done.stdout, done.stderr
    else:
        again = torchrun(2, "pretrain", *command(project, run_dir, *layout)[3:])
        out, errors = again.communicate(timeout=180)
        assert again.returncode == 0 and "resuming after step 10" in out, errors
        assert losses(run_dir) == losses(unbroken)
    assert [row["step"] for row in rows(run_dir) if "eval_loss" in row] == [10, 20]


STOPS_ALONE = """
def stops(self, number, *words):
    if number == 3 and self.ranks.rank == 1:
        raise TrainingStopped.on_this_rank("rank 1 has a reason of its own")
    return step(self, number, *words)
Engine.begin = stops
dist.destroy_process_group = lambda *words: time.sleep(3600)  # as NCCL's would, which waits for the others
"""


def test_a_rank_that_fails_alone_reports_why_and_does_not_wait_for_the_others(project, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    process = start(project, patched(tmp_path, STOPS_ALONE), run_dir, 2, *PP2, SLURM_JOB_ID="7")
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0 and "stopped: rank 1 has a reason of its own" in errors
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines() if line]
    assert [(event["kind"], event["rank"]) for event in events if "reason of its own" in event["text"]] == [("stopped", 1)]


COUNTS_SOCKETS = """
def counts(self, number, *words):
    found = step(self, number, *words)
    if number == 2 and self.ranks.rank == 0:
        links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        print("sockets:", sum("socket:" in link for link in links), flush=True)
    return found
Engine.begin = counts
"""
GROUPS_OF_ALL = 8
"""Groups that hold every rank of a job without model parallelism, each of which connects all with all: torch's own, those that
Megatron-Core makes whatever the layout, and DeepSpeed's."""


@pytest.mark.long
def test_connections_of_a_rank_grow_with_the_groups_that_hold_all(project, tmp_path):
    counts = {}
    for processes in (1, 2, 4):
        file = patched(tmp_path, COUNTS_SOCKETS)
        words = ("--stop-at", "2", "--ds.train_micro_batch_size_per_gpu", "2", "--ds.progressive_subnetwork.paths_per_step", "1")
        process = start(project, file, tmp_path / f"run{processes}", processes, *words)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        counts[processes] = int(out.split("sockets: ")[1].split()[0])
    assert counts[4] - counts[2] <= GROUPS_OF_ALL * 2, counts


def test_a_mistake_is_told_however_late_rank_0_finds_it(project, tmp_path):
    """The launcher ends all ranks when the first one ends, which must not be before it is told."""
    file = patched(tmp_path, "import time; time.sleep(4 * (os.environ['RANK'] == '0'))")
    process = start(project, file, tmp_path / "run", 2, "--stop-at", "abc")
    _, errors = process.communicate(timeout=60)
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0 and len(told) == 1 and "invalid int value" in told[0], errors
