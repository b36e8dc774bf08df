"""Runs of a study as processes of this machine, a few at a time."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pretrain.errors import TrainingStopped, UserError
from pretrain.options import LOCK_SECONDS
from pretrain.place import alone
from pretrain.ranks.device import DeviceName, device_type
from pretrain.ranks.signals import end_with_parent
from pretrain.study.compare import Bench
from pretrain.study.plan import Planned

POLL_SECONDS = 0.2
SIGN_SECONDS = 60.0
"""Seconds between lines that say how far the runs are."""


class RunsFailed(TrainingStopped):
    """Some runs have failed; the others have finished."""


@dataclass
class _Job:
    planned: Planned
    process: subprocess.Popen
    slot: int
    """Which share of the machine it has."""
    log: Path
    told: int
    """Bytes of the log that earlier starts have written."""


def run_here(bench: Bench, jobs: int, device: DeviceName) -> None:
    """Do what is missing.

    Args:
        jobs: runs at a time.
        device: auto, cuda or cpu, as `train` knows it.

    Raises:
        UserError: more GPUs are asked for than there are.
        RunsFailed: by name, after the others were done.
        TrainingStopped: this process was asked to stop.
    """
    gpus = gpus_of(device, jobs * bench.study.processes)
    waiting, failed = list(bench.missing), list[Planned]()
    running: list[_Job] = []
    asked: list[str] = []
    stuck_since = shown = time.monotonic()
    handlers = {
        number: signal.signal(number, lambda number, _: asked.append(signal.Signals(number).name))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        while waiting or running:
            for planned in list(waiting):
                if len(running) < jobs and not asked and _is_free(bench.run_dir(planned)):
                    waiting.remove(planned)
                    slot = min(set(range(jobs)) - {job.slot for job in running})
                    running.append(_start(bench, planned, slot, gpus, device))
            time.sleep(POLL_SECONDS)
            if asked:
                break
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                if not _ended(bench, job):
                    failed.append(job.planned)
            if running and time.monotonic() - shown > SIGN_SECONDS:
                shown = time.monotonic()
                print(
                    "; ".join(f"{job.planned.name}: step {_step(bench, job)} of {job.planned.run.steps}" for job in running),
                    flush=True,
                )
            if running:
                stuck_since = time.monotonic()
            elif waiting and time.monotonic() - stuck_since > LOCK_SECONDS:
                for planned in waiting:
                    print(f"{planned.name}: another process trains in {bench.run_dir(planned)}", flush=True)
                failed, waiting = failed + waiting, []
    finally:
        for job in running:
            job.process.terminate()  # saves, and ends
        for job in running:
            job.process.wait()
            _ended(bench, job, asked=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if asked:
        raise TrainingStopped(f"{asked[0]}: what was running has saved; the same command resumes")
    if failed:
        raise RunsFailed(
            f"{len(failed)} of {len(bench.study.planned)} runs have failed: {', '.join(one.name for one in failed)}; the same"
            " command tries again"
        )


def _start(bench: Bench, planned: Planned, slot: int, gpus: list[str], device: DeviceName) -> _Job:
    words, count = bench.prepare(planned), bench.study.processes
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    # Safe path: the copy of the code, not the folder that we are in.
    search = [str(bench.code.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**alone(os.environ), "PYTHONPATH": os.pathsep.join(search), "PYTHONSAFEPATH": "1"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * count : (slot + 1) * count])
    file = bench.folder(planned) / "log.txt"
    with file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "pretrain", "train", *words, "--device", device],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        told = log.tell()
    print(f"{planned.name}: {planned.run.steps} steps, log in {file}", flush=True)
    return _Job(planned, process, slot, file, told)


def _step(bench: Bench, job: _Job) -> int:
    """Return the step that a run has come to, from the end of its rows."""
    file = bench.run_dir(job.planned) / "metrics.jsonl"
    end = file.read_bytes()[-2000:].decode(errors="replace") if file.is_file() else ""
    return max((int(step) for step in re.findall(r'"step": (\d+),', end)), default=0)


def _is_free(run_dir: Path) -> bool:
    """Is no process training there? One may be saving still, its parent gone."""
    lock = FileLock(run_dir / ".lock")
    if not Path(lock.lock_file).exists():
        return True
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


def _ended(bench: Bench, job: _Job, asked: bool = False) -> bool:
    """Tell of a run that has ended; True if it has finished.

    Args:
        asked: to save and to end, so that it need not have.
    """
    name, code = job.planned.name, job.process.returncode
    try:
        row = bench.collect(job.planned) if code == 0 else None
    except UserError as error:
        print(f"{name}: {error}", flush=True)
        return False
    if row is None:
        if not asked:
            how = f"failed with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
            print(f"{name}: {how}: {_last_line(job)}", flush=True)
        return False
    done = len(bench.study.planned) - len(bench.missing)
    print(
        f"{name}: held-out loss {row.loss:.4f} after {row.steps} steps; {done} of {len(bench.study.planned)} runs are done",
        flush=True,
    )
    return True


def _last_line(job: _Job) -> str:
    lines = job.log.read_bytes()[job.told :].decode(errors="replace").strip().splitlines()
    told = [line for line in lines[-30:] if line.startswith(("error: ", "stopped: "))]
    return (told or lines or ["no output"])[-1]


def gpus_of(device: DeviceName, wanted: int) -> list[str]:
    """Return the GPUs to be shared out; none on a CPU.

    Raises:
        UserError: there are fewer than wanted.
    """
    if device_type(device) == "cpu":
        return []
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]
    if len(found) < wanted:
        raise UserError(
            f"command line: {wanted} GPUs are asked for, --jobs times the study's processes, and there are {len(found)}; use"
            " fewer, or --device cpu"
        )
    return found
