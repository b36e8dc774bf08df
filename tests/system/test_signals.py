"""Several processes as torchrun starts them: killed, resumed, refused."""

import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import time

import psutil
import pytest

from pretrain.job.status import status_of
from tests.support.launch import pretrain, ranks_of, torchrun

pytestmark = pytest.mark.dist
PP2 = ("--parallel.pipeline", "2", "--device", "cpu")


def losses(run_dir) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def wait_for(run_dir, step: int, process) -> None:
    metrics, deadline = run_dir / "metrics.jsonl", time.time() + 120
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    process = pretrain(project, run_dir, 2, *PP2)
    out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert out.count("step 20/20  held-out loss") == 1, "only rank 0 speaks"
    return run_dir


def test_a_rank_that_dies_takes_the_others_down_and_the_run_goes_on_bit_for_bit(project, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    process = pretrain(project, run_dir, 2, *PP2)
    wait_for(run_dir, 12, process)
    others = psutil.Process(process.pid).children(recursive=True)
    ranks_of(process)[1].kill()
    died = time.time()
    out, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.time() - died < 60
    assert "rank      : 1" in errors and "SIGKILL" in errors, "the rank is named"
    assert not any(other.is_running() for other in others), "nothing is left hanging"
    assert "another rank is gone" in errors and "ended after" not in out, "no word of a good end"
    again = pretrain(project, run_dir, 2, *PP2)
    out, errors = again.communicate(timeout=180)
    assert again.returncode == 0, errors
    assert "resuming after step 10" in out or "resuming after step 5" in out, "the second, if it was complete"
    assert losses(run_dir) == losses(unbroken)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGUSR1, signal.SIGKILL))],
    ids=lambda number: number.name,
)
def test_a_launcher_that_is_told_to_go_or_killed_leaves_a_checkpoint_and_no_process(project, unbroken, tmp_path, number):
    """torchrun passes SIGTERM on, and dies of the others; its ranks take that for a SIGTERM, and save."""
    run_dir = tmp_path / "run"
    process = pretrain(project, run_dir, 2, *PP2, "--save-every", "20")
    wait_for(run_dir, 7, process)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    process.send_signal(number)
    gone, alive = psutil.wait_procs(ranks.values(), timeout=60)
    assert not alive
    process.communicate(timeout=60)
    (checkpoint,) = (run_dir / "checkpoints").glob("step_*")
    step = int(checkpoint.name.removeprefix("step_"))
    assert step >= 7 and losses(run_dir) == losses(unbroken)[:step]


@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0])
def test_a_launcher_that_is_killed_while_its_ranks_start_leaves_none(project, tmp_path, seconds):
    process = pretrain(project, tmp_path / "run", 2, *PP2)
    deadline = time.time() + 60
    while len(ranks := ranks_of(process)) < 2:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    time.sleep(seconds)
    process.kill()
    assert not psutil.wait_procs(ranks.values(), timeout=60)[1]
    process.communicate(timeout=60)


@pytest.mark.long
def test_the_slowest_rank_is_named(project, tmp_path):
    """Two replicas, one of which is stopped for most of the time."""
    run_dir = tmp_path / "run"
    larger = ("--model.hidden_size", "128", "--model.ffn_hidden_size", "512")
    larger += ("--ds.train_batch_size", "32", "--ds.train_micro_batch_size_per_gpu", "8")
    process = pretrain(project, run_dir, 2, "--device", "cpu", "--steps", "30", *larger)
    wait_for(run_dir, 4, process)
    victim = ranks_of(process)[1]
    with contextlib.suppress(psutil.NoSuchProcess):  # it is done
        while process.poll() is None:
            victim.suspend()
            time.sleep(0.08)
            victim.resume()
            time.sleep(0.02)  # the forward passes of a step, which are what is timed, take longer: there is a stop in each
    assert process.wait() == 0
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    slow = [row["slowest_over_median"] for row in rows if row.get("slowest_rank") == 1 and row["step"] > 5]
    assert len(slow) >= 2 / 3 * (30 - 5) and statistics.median(slow) > 1.2
    assert f"1 on {socket.gethostname()}" in status_of(run_dir)["slowest rank"]


def only_on_rank_1(command: str, *words, **how) -> list[str]:
    """Start two ranks, of which the second runs a shell command first."""
    script = f'if [ $RANK = 1 ]; then {command}; fi; exec "$@"'
    train = [sys.executable, "-m", "pretrain", "train", *map(str, words)]
    return torchrun(2, "", "--no-python", "sh", "-c", script, "sh", *train, **how)


def test_what_only_one_rank_finds_wrong_is_told_once_with_its_number(project, tmp_path):
    process = only_on_rank_1(
        'set -- "$@" --steps 0', project.recipe, "--ds-config", project.ds, "--run-dir", tmp_path / "run", *PP2
    )
    _, errors = process.communicate(timeout=60)
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0 and len(told) == 1 and told[0].startswith("error: rank 1: ") and "steps" in told[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_rank_that_cannot_write_its_part_tells_why_and_no_other_makes_a_reason_up(project, tmp_path):
    run_dir = tmp_path / "run"
    process = only_on_rank_1("ulimit -f 8", project.recipe, "--ds-config", project.ds, "--run-dir", run_dir, *PP2)
    _, errors = process.communicate(timeout=120)
    told = [line for line in errors.splitlines() if "could not be completed" in line]
    assert process.returncode != 0 and len(told) == 1 and told[0].startswith("rank 1: stopped: checkpoint "), errors
    assert not list((run_dir / "checkpoints").glob("step_" + "[0-9]" * 8))


@pytest.mark.long
def test_a_run_directory_that_not_all_nodes_share_is_refused(project, tmp_path):
    (tmp_path / "other").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    words = (project.recipe, "--ds-config", project.ds, "--run-dir", "run", *PP2)
    process = only_on_rank_1("cd other", *words, cwd=tmp_path, env=environment)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "rank 1: run directory" in errors and "is not the one that rank 0 sees" in errors


@pytest.mark.parametrize(
    "words, complaint",
    [
        (("--parallel.tensor", "4"), "2 processes cannot hold replicas of 4 tensor x 1 pipeline ranks"),
        (("--data.valid", "nowhere"), "nowhere.bin: no such file"),
        (("--stop-at", "abc"), "argument --stop-at: invalid int value: 'abc'"),
    ],
)
def test_bad_input_is_told_once_and_at_once(project, tmp_path, words, complaint):
    started = time.time()
    process = pretrain(project, tmp_path / "run", 2, "--device", "cpu", *words)
    _, errors = process.communicate(timeout=60)
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0 and len(told) == 1 and complaint in told[0]
    assert time.time() - started < 60
