"""Tasks in a study: every finished run is put to them, by a process of its own, and its rows are kept beside the study.

RUNS/NAME/evals/ASKED/ has what came of each checkpoint, ASKED being a checksum of how the study asks; a file is there when it is
whole.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.directory import RunDirectory
from pretrain.errors import TrainingStopped, UserError
from pretrain.evaluate.catalogue import HELD_OUT, FromData, catalogue, choose
from pretrain.evaluate.rows import EvalRow, read_rows, scores_file
from pretrain.files import write_whole
from pretrain.place import alone
from pretrain.ranks.device import DeviceName
from pretrain.ranks.signals import end_with_parent
from pretrain.study.compare import Bench
from pretrain.study.local import POLL_SECONDS, gpus_of
from pretrain.study.plan import EvaluateKeys, Planned, Study
from pretrain.versions import HOME


class StudyEval(EvalRow):
    """What a checkpoint of a study makes of a task."""

    size: str
    method: str
    seed: int

    @property
    def run(self) -> tuple[str, str, int]:
        return self.size, self.method, self.seed


@dataclass(frozen=True)
class Asked:
    """One checkpoint, asked in one way."""

    planned: Planned
    checkpoint: Path
    attention: str | None
    """None: as in training."""
    out: Path
    """Where rows are once all are there."""

    @property
    def name(self) -> str:
        return f"{self.planned.name}, {self.out.stem}"


def require_askable(study: Study) -> None:
    """Read tasks and data that finished runs are to be asked, before any is trained.

    Raises:
        UserError: something is missing or damaged.
    """
    keys = study.evaluate
    if keys is None:
        return
    folder, key = None if keys.data is None else study.file.parent / keys.data, f"{study.file}: evaluate"
    known = catalogue(None, folder, f"{key}: data")
    words = [word for word in _tasks_of(study, keys) if not word.startswith(HELD_OUT)]
    chosen = choose(words, known, folder, f"{key}: tasks")
    if words and not chosen:
        raise UserError(f"{key}: tasks: there is no data for any of {' '.join(words)}; `evaluate --list` says where to get it")
    for task in chosen:
        if isinstance(task.questions, FromData):
            task.questions.data.documents(keys.limit, 1, keys.shots)


def _tasks_of(study: Study, keys: EvaluateKeys) -> list[str]:
    """Return what is asked; files as seen from here."""
    return [str(study.file.parent / task) if task.endswith((".yaml", ".yml")) else task for task in keys.tasks]


def asked_of(bench: Bench) -> list[Asked]:
    """Return all that the study asks of the runs that have finished and are still there."""
    keys = bench.study.evaluate
    if keys is None:
        return []
    found = []
    for planned in bench.study.planned:
        saved = RunDirectory(bench.run_dir(planned))
        if planned.key not in bench.rows or not saved.path.is_dir():
            continue
        kept = saved.steps_saved() if keys.every_checkpoint else []
        for step in sorted({*(int(folder.name.removeprefix("step_")) for folder in kept), planned.run.steps}):
            if planned.run.method.whole(step).length < planned.run.recipe.model.num_layers:
                continue  # a growing model, before it is whole
            for attention in keys.attention or (None,):
                name = f"step_{step:08d}{'' if attention is None else '_' + attention}.jsonl"
                out = bench.folder(planned) / "evals" / _digest(keys) / name
                found.append(Asked(planned, saved.checkpoint(step), attention, out))
    return found


def evaluate_here(bench: Bench, jobs: int, device: DeviceName) -> None:
    """Put what has not been asked yet to the runs, a few at a time, and keep the rows.

    Raises:
        UserError: more GPUs are wanted than there are.
        TrainingStopped: some could not be asked, after the others were; or a process of this machine was asked to stop.
    """
    keys = bench.study.evaluate
    if keys is None:
        return
    waiting = [asked for asked in asked_of(bench) if not asked.out.exists()]
    gpus, running, failed = gpus_of(device, min(jobs, len(waiting))), list[tuple[Asked, subprocess.Popen, int]](), list[str]()
    if waiting:
        print(f"{len(waiting)} checkpoints are put to tasks: {', '.join(keys.tasks)}", flush=True)
    while waiting or running:
        while waiting and len(running) < jobs:
            slot = min(set(range(jobs)) - {slot for *_, slot in running})
            asked = waiting.pop(0)
            running.append((asked, _start(bench.study, keys, asked, device, gpus[slot : slot + 1]), slot))
        time.sleep(POLL_SECONDS)
        for job in [job for job in running if job[1].poll() is not None]:
            running.remove(job)
            asked, process, _ = job
            if process.returncode == 0:
                _whole(asked)
                collect(bench)
            else:
                said = _log(asked).read_text(errors="replace").strip().splitlines() or ["no output"]
                print(f"{asked.name}: {said[-1]}", flush=True)
                failed.append(asked.name)
    collect(bench)
    if failed:
        raise TrainingStopped(f"{len(failed)} evaluations have failed: {'; '.join(failed)}; the same command tries again")


def collect(bench: Bench) -> None:
    """Write the rows of all that has been asked; those of runs whose folders are gone stay as they are."""
    rows = {asked.planned.key: list[StudyEval]() for asked in asked_of(bench)}
    for asked in asked_of(bench):
        if asked.out.exists():
            size, method, seed = asked.planned.key
            rows[asked.planned.key] += [
                StudyEval(**row.model_dump(), size=size, method=method, seed=seed) for row in read_rows(asked.out, EvalRow)
            ]
    file = bench.study.evals_file
    kept = [row for row in (read_rows(file, StudyEval) if file.exists() else []) if row.run not in rows]
    order = {planned.key: place for place, planned in enumerate(bench.study.planned)}
    together = sorted([*kept, *(row for found in rows.values() for row in found)], key=lambda row: order.get(row.run, len(order)))
    if together:
        write_whole(file, "".join(row.model_dump_json() + "\n" for row in together))


def _start(study: Study, keys: EvaluateKeys, asked: Asked, device: DeviceName, gpus: Sequence[str]) -> subprocess.Popen:
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    words = ["--out", str(_part(asked)), "--shots", str(keys.shots), "--device", device]
    words += [] if keys.data is None else ["--data", str(study.file.parent / keys.data)]
    words += [] if keys.limit is None else ["--limit", str(keys.limit)]
    words += [] if asked.attention is None else ["--attention", asked.attention]
    words += ["--tasks", *_tasks_of(study, keys)]
    environment = {**alone(os.environ), "PYTHONPATH": str(HOME), "PYTHONSAFEPATH": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": gpus[0]} if gpus else {}
    with _log(asked).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pretrain", "evaluate", str(asked.checkpoint), *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip


def _part(asked: Asked) -> Path:
    return asked.out.with_name("part_" + asked.out.name)


def _log(asked: Asked) -> Path:
    return asked.out.with_suffix(".log")


def _whole(asked: Asked) -> None:
    """Give files their names; that with the rows comes last, since it says that all is there."""
    try:
        scores_file(_part(asked)).replace(scores_file(asked.out))
        _part(asked).replace(asked.out)
    except OSError as error:
        raise UserError(f"{asked.out}: cannot be written: {error.strerror}") from None


def _digest(keys: EvaluateKeys) -> str:
    return hashlib.sha256(keys.model_dump_json().encode()).hexdigest()[:8]
