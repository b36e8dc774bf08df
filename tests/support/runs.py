"""Runs of the test recipe in one process, as people start them."""

import json
import subprocess
import sys
import time
from pathlib import Path

NOT_COMPARED = {"time", "step_seconds", "data_seconds", "tokens_per_second", "tflops_per_gpu", "peak_memory_gib", "restart"}


def command(project, run_dir: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pretrain",
        "train",
        str(project.recipe),
        "--ds-config",
        str(project.ds),
        "--run-dir",
        str(run_dir),
        "--device",
        "cpu",
        *words,
    ]


def train(project, run_dir: Path, *words: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run(command(project, run_dir, *words), capture_output=True, text=True, timeout=180, **how)


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def essence(rows_: list[dict]) -> list[dict]:
    """What must be equal bit for bit."""
    return [{k: v for k, v in row.items() if k not in NOT_COMPARED} for row in rows_]


def kill_after(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    """SIGKILL as soon as the row of `step` is written."""
    metrics, deadline = run_dir / "metrics.jsonl", time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            process.kill()
            process.wait()
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was never seen: {process.communicate()}")
