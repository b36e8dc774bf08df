"""The program as people run it: killed, resumed, stopped, refused, and short of disk."""

import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.runs import command, essence, kill_after, rows, train


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory) -> Path:
    """A run of 20 steps that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    done = train(project, run_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run_dir}\n"), "the run directory is the first thing printed"
    return run_dir


def test_rows_and_report_of_a_whole_run(unbroken):
    steps = [row for row in rows(unbroken) if "loss" in row]
    evaluations = [row for row in rows(unbroken) if "eval_loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    assert [row["step"] for row in evaluations] == [10, 20]
    assert {"eval_loss_nlu", "eval_loss_nlg", "eval_loss_s2s"} <= evaluations[0].keys()
    assert [row["active_layers"] for row in steps] == [4.0] * 7 + [6.0] * 6 + [8.0] * 7
    assert steps[-1]["layer_flops_saved"] == pytest.approx(1 - (7 * 4 + 6 * 6 + 7 * 8) / 160)
    assert steps[-1]["tokens"] == 20 * 8 * 64
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.2
    report = unbroken / "report"
    assert {p.name for p in report.iterdir()} == {
        "index.html",
        "loss_by_step.png",
        "loss_by_flops.png",
        "paths.png",
        "step_time.png",
    }
    assert "subnetwork" in (report / "index.html").read_text()
    assert list((unbroken / "tensorboard").glob("events*"))
    assert (unbroken / "checkpoints" / "LATEST").read_text() == "step_00000020\n"
    assert len(list((unbroken / "checkpoints").glob("step_*"))) == 2, "keep_checkpoints"


def test_resume_is_bit_equal_after_kill(project, unbroken, tmp_path):
    """SIGKILL after step 12: rows up to the newest checkpoint stay byte for byte, the others equal the unbroken run's."""
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command(project, run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kill_after(process, run_dir, 12)
    assert process.returncode == -signal.SIGKILL
    before = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    newest = int(max(p.name for p in (run_dir / "checkpoints").glob("step_????????"))[5:])
    assert newest in (5, 10), "the one that was begun at step 10 may not have been complete at step 12"
    done = train(project, run_dir)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {newest}" in done.stdout
    after = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in before if json.loads(line)["step"] <= newest]
    assert after[: len(kept)] == kept
    assert essence(rows(run_dir)) == essence(rows(unbroken))
    assert [row["restart"] for row in rows(run_dir) if "loss" in row] == [0] * newest + [1] * (20 - newest)


def test_resume_notices_another_order_of_data(project, unbroken, tmp_path):
    """The comparison above can fail: another data order is another run."""
    run_dir = tmp_path / "run"
    assert train(project, run_dir, "--seed", "1", "--stop-at", "3").returncode == 0
    assert essence(rows(run_dir)) != essence(rows(unbroken))[:3]


def test_stop_at_and_signals_save_and_resume_goes_on(project, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    assert train(project, run_dir, "--stop-at", "3").returncode == 0
    assert (run_dir / "checkpoints" / "LATEST").read_text() == "step_00000003\n"
    process = subprocess.Popen(command(project, run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = run_dir / "metrics.jsonl"
    while '"step": 6,' not in metrics.read_text():
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    stopped = int((run_dir / "checkpoints" / "LATEST").read_text()[5:])
    assert 6 <= stopped < 20 and rows(run_dir)[-1]["step"] == stopped
    assert train(project, run_dir).returncode == 0
    assert essence(rows(run_dir)) == essence(rows(unbroken))


@pytest.mark.long
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(project, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    assert train(project, run_dir, "--stop-at", "10").returncode == 0
    newest = max((run_dir / "checkpoints").glob("step_*"))
    (victim,) = newest.glob("*.safetensors")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = train(project, run_dir)
    assert done.returncode == 0, done.stderr
    assert f"skipping {newest}: {victim.name} is not what was written (checksum)" in done.stdout
    assert "resuming after step 5" in done.stdout
    assert essence(rows(run_dir)) == essence(rows(unbroken))


def test_a_directory_with_another_run_is_refused(project, unbroken):
    before = (unbroken / "metrics.jsonl").read_bytes()
    done = train(project, unbroken, "--seed", "3")
    assert done.returncode == 2 and "holds another run: recipe.seed is 0 there, 3 here" in done.stderr
    done = train(project, unbroken, "--resume", "never")
    assert done.returncode == 2 and "holds a run; choose another with --run-dir" in done.stderr
    done = train(project, unbroken, "--resume", str(unbroken / "checkpoints" / "step_00000007"))
    assert done.returncode == 2 and "expected auto, never or a checkpoint folder" in done.stderr
    assert (unbroken / "metrics.jsonl").read_bytes() == before


@pytest.mark.long
def test_a_full_disk_while_saving_leaves_the_last_good_checkpoint(project, unbroken, tmp_path):
    """No file may grow beyond the limit: the kernel refuses the write, as it does on a full disk."""
    run_dir = tmp_path / "run"
    assert train(project, run_dir, "--stop-at", "5").returncode == 0
    limit = max(p.stat().st_size for p in (run_dir / "checkpoints").rglob("*.safetensors")) // 2
    done = train(project, run_dir, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1
    assert "stopped: checkpoint" in done.stderr and "could not be completed" in done.stderr
    assert f"older ones stay, the newest is {run_dir}/checkpoints/step_00000005" in done.stderr
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["LATEST", "step_00000005"]
    assert train(project, run_dir).returncode == 0
    assert essence(rows(run_dir)) == essence(rows(unbroken))


def test_a_run_that_blows_up_stops_before_the_update_and_says_where(project, tmp_path):
    run_dir = tmp_path / "run"
    done = train(project, run_dir, "--ds.optimizer.params.lr", "1e30", "--ds.scheduler.params.warmup_num_steps", "1")
    assert done.returncode == 1
    assert "stopped: step " in done.stderr and ("micro-batch" in done.stderr or "norm" in done.stderr)
    assert not list((run_dir / "checkpoints").glob("step_*"))


@pytest.mark.long
def test_an_older_checkpoint_may_be_chosen_and_the_newer_ones_are_put_aside(project, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    chosen = run_dir / "checkpoints" / "step_00000005"
    assert train(project, run_dir, "--stop-at", "10").returncode == 0
    done = train(project, run_dir, "--resume", str(chosen), "--stop-at", "7")
    assert done.returncode == 0 and "ended after step 7 of 20; the same command resumes" in done.stdout
    names = ["step_00000005", "step_00000007", "step_00000010.abandoned0"]
    assert sorted(p.name for p in (run_dir / "checkpoints").glob("step_*")) == names
    assert [row["step"] for row in rows(run_dir)] == list(range(1, 8))
    (run_dir / "metrics.jsonl").unlink()
    done = train(project, run_dir, "--resume", str(chosen), "--stop-at", "8")
    assert "resuming after step 7" in done.stdout, "the same command resumes from what it has saved since"
    assert train(project, run_dir).returncode == 0
    assert essence(rows(run_dir)) == essence(rows(unbroken))[7:], "what was saved so far is known without the rows"


def test_a_checkpoint_of_another_run_is_refused(project, unbroken, tmp_path):
    newest = str(unbroken / "checkpoints" / "step_00000020")
    done = train(project, tmp_path / "run", "--resume", newest, "--ds.optimizer.params.lr", "0.5")
    assert done.returncode == 2 and "holds another run: ds.optimizer.params.lr is 0.001 there, 0.5 here" in done.stderr


def test_two_processes_do_not_train_in_one_directory(project, tmp_path):
    run_dir = tmp_path / "run"
    first = subprocess.Popen(
        command(project, run_dir, "--steps", "2000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").read_text():
        time.sleep(0.01)
        assert first.poll() is None
    second = train(project, run_dir, "--steps", "2000")
    first.kill()
    first.wait()
    assert second.returncode == 2 and "another process trains in it" in second.stderr


@pytest.mark.long
def test_killed_while_saving_every_time_it_goes_on_from_a_good_checkpoint(project, unbroken, tmp_path):
    """SIGKILL the moment an unfinished checkpoint appears: it never gets a name, and the next start removes it."""
    run_dir = tmp_path / "run"
    checkpoints = run_dir / "checkpoints"
    for _ in range(2):
        for leftover in checkpoints.glob("*.unfinished"):
            shutil.rmtree(leftover)  # of the kill before, so that the next one to appear is new
        process = subprocess.Popen(command(project, run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(checkpoints.glob("*.unfinished")):
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert all((folder / "manifest.json").exists() for folder in checkpoints.glob("step_*[0-9]"))
    assert train(project, run_dir).returncode == 0
    assert essence(rows(run_dir)) == essence(rows(unbroken))
    assert not list((run_dir / "checkpoints").glob("*.unfinished"))


def test_a_read_only_or_impossible_directory_is_refused(project, tmp_path):
    (tmp_path / "file").write_text("")
    done = train(project, tmp_path / "file")
    assert done.returncode == 2 and "error: run directory" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("seconds", [1, 2, 3])
def test_interrupted_while_starting(project, tmp_path, seconds):
    process = subprocess.Popen(command(project, tmp_path / "run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, 0) and "Traceback" not in errors


def test_a_terminal_shows_a_bar(project, tmp_path):
    """On a terminal each step updates one line; in a log every line is plain."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        command(project, tmp_path / "run", "--stop-at", "3"), stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the program has closed its end
            break
    os.close(main)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "step 3/20  stage 1/3 (4 of 8 layers)" in text and "\x1b[" in text and "\u2501" in text
    assert "ended after step 3 of 20" in text


def test_a_failed_start_leaves_the_directory_free(project, tmp_path):
    run_dir = tmp_path / "run"
    done = train(project, run_dir, "--data.train", str(tmp_path / "nothing"))
    assert done.returncode == 2 and "nothing.bin: no such file" in done.stderr
    assert train(project, run_dir, "--stop-at", "1").returncode == 0
