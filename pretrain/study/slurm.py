"""Runs of a study as the tasks of one SLURM array, each a job that survives time limits and dead nodes as any other does."""

import getpass
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from pretrain.config.strict import read_json
from pretrain.errors import UserError
from pretrain.files import write_whole
from pretrain.study.compare import Bench

SUBMITTED = "submitted.json"
"""Which job each run was last submitted as, as 1234_5."""


def submit(bench: Bench, options: str, device: str) -> None:
    """Submit what is missing and not in the queue.

    Args:
        options: for sbatch, as "--nodes 1 --ntasks-per-node 8 --gpus-per-node 8".
        device: auto, cuda or cpu, as `train` knows it.

    Raises:
        UserError: there is no SLURM, or it refuses.
    """
    jobs: dict[str, str] = read_json(bench.runs / SUBMITTED) if (bench.runs / SUBMITTED).exists() else {}
    queued = _queued()
    there = [planned for planned in bench.missing if jobs.get(planned.name) in queued]
    for planned in there:
        print(f"{planned.name}: in the queue as {jobs[planned.name]}")
    new = [planned for planned in bench.missing if planned not in there]
    if not new:
        return
    array = bench.runs / f"array_{1 + max((int(folder.name[6:]) for folder in bench.runs.glob('array_*')), default=0)}"
    array.mkdir()
    for number, planned in enumerate(new):
        bench.prepare(planned)
        (array / str(number)).symlink_to(Path("..") / planned.name)
    script = new[0].run.recipe.data.made_as.script
    task = f"{array.absolute()}/%a"
    words = [
        "--recipe",
        f"{task}/recipe.yaml",
        "--ds-config",
        f"{task}/ds_config.json",
        "--run-dir",
        f"{task}/run",
        "--device",
        device,
    ]
    command = [
        "sbatch", "--parsable", f"--array=0-{len(new) - 1}", f"--job-name={bench.study.name}", f"--output={task}/log.txt",
        *shlex.split(options), str(bench.code.absolute() / "slurm" / script), *words,
    ]  # fmt: skip
    environment = {**os.environ, "PRETRAIN_HOME": str(bench.code.absolute()), "PYTHON": sys.executable}
    job = _answer(command, environment).split(";")[0].strip()
    write_whole(
        bench.runs / SUBMITTED,
        json.dumps(jobs | {planned.name: f"{job}_{number}" for number, planned in enumerate(new)}, indent=2) + "\n",
    )
    print(
        f"{len(new)} runs submitted as job {job}; the same command keeps the rows of those that have finished, and submits again"
        " what has failed"
    )


def _queued() -> set[str]:
    """Tasks of this user's arrays that wait or run."""
    return set(_answer(["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%F_%K"]).split())


def _answer(command: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    except FileNotFoundError:
        raise UserError(f"command line: --slurm: there is no {command[0]} here; leave it out to train on this machine") from None
    except subprocess.CalledProcessError as failed:
        raise UserError(f"command line: --slurm: {command[0]}: {(failed.stderr or failed.stdout).strip()}") from None
