"""Rows of a run on the dashboards that people watch. None can stop or delay the training: TensorBoard writes files, others are in
processes of their own, fed from a queue. One that fails is told of once and left alone."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from pretrain.config import Run
from pretrain.errors import UserError, one_line
from pretrain.files import write_whole
from pretrain.observe.dashboard_process import FINISH_SECONDS
from pretrain.observe.metrics import MetricsRow, read_rows

NOT_SCALARS = {"step", "time", "slowest_node"}
PACE = {"step_seconds", "data_seconds", "tokens_per_second", "tflops_per_gpu", "peak_memory_gib", "restart", "task_seconds"}
"""Metrics of how fast it goes, beside those of the slowest rank."""
PROJECT = "progressive-subnetworks"
"""What runs are filed under unless WANDB_PROJECT or TRACKIO_PROJECT says otherwise."""
STATE = "dashboards.json"
"""File of a run directory by which a resumed run goes on where it was."""
MOST_WAITING = 100_000
"""Rows that a dashboard may be behind before it is given up."""


class Dashboard(Protocol):
    """Where metrics go, by the names that `named` gives them."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take a row, at once."""

    def safe(self) -> int | None:
        """Return the last step whose rows are safe, also if this process is killed; None if that is not known."""

    def close(self) -> None:
        """Wait until all rows are safe, a minute at most."""


class Dashboards:
    """All that a recipe's `log_to` names, on rank 0."""

    def __init__(self, run: Run, directory: Path, step: int) -> None:
        """Open them, and show rows that one may lack, because the process before this one was killed or did not know it.

        Args:
            step: the run resumes after it; what a dashboard has beyond it is of an earlier start.

        Raises:
            UserError: the library of one is not installed.
        """
        for name in run.recipe.log_to:
            if importlib.util.find_spec(name) is None:
                raise UserError(
                    f"recipe {run.name}: log_to {name}: the library is not installed; pip install -r requirements/dashboards.txt"
                )
        self._open: dict[str, Dashboard] = {}
        self._state, self._last = _State.read(directory), step
        for name in run.recipe.log_to:
            first = min(self._state.complete.get(name, 0), step) + 1
            with self._surviving(name):
                board: Dashboard
                board = TensorBoard(directory, first) if name == "tensorboard" else Apart(name, run, directory, self._state.id)
                self._open[name] = board
                for row in _rows(directory, first, step):
                    board.log(row["step"], named(row))

    def record(self, row: MetricsRow) -> None:
        """Show a row of metrics.jsonl."""
        self._last = row["step"]
        for name, board in list(self._open.items()):
            with self._surviving(name):
                board.log(row["step"], named(row))

    def saved(self) -> None:
        """Note what is safe, so that it is not shown again after a kill; called when a checkpoint begins."""
        for name, board in list(self._open.items()):
            with self._surviving(name):
                if (step := board.safe()) is not None:
                    self._state.complete[name] = step
        if self._open:
            self._state.write()

    def close(self) -> None:
        """Whatever ended the run."""
        there = list(self._open.items())
        for name, board in there:
            with self._surviving(name):
                board.close()
                self._state.complete[name] = self._last
        self._open = {}
        if there:
            self._state.write()

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever goes wrong in somebody else's library, the training is worth more
            self._open.pop(name, None)
            why = str(error) if isinstance(error, Lost) else f"{type(error).__name__}: {one_line(error)}"
            print(f"WARNING: {name} shows no more of this run ({why}); the training goes on", flush=True)


class Lost(RuntimeError):
    """Says in one line what happened to a dashboard's process."""


def named(row: MetricsRow) -> dict[str, float]:
    """Return a row's numbers as dashboards group them: the names of metrics.jsonl, with what they are of before a slash."""
    return {f"{_group(name, row)}/{name}": value for name, value in row.items() if name not in NOT_SCALARS}


def _group(name: str, row: MetricsRow) -> str:
    if name in PACE or name.startswith("slowest"):
        return "pace"
    if name.startswith("task_"):
        return "tasks"
    return "train" if "loss" in row else "eval"


@dataclass
class _State:
    """What a run's next start must know of its dashboards: RUN/dashboards.json."""

    file: Path
    id: str
    complete: dict[str, int]
    """The step up to which each has all rows."""

    @classmethod
    def read(cls, directory: Path) -> "_State":
        file = directory / STATE
        try:
            facts = json.loads(file.read_text())
            return cls(file, str(facts["id"]), {str(name): int(step) for name, step in facts["complete"].items()})
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(
                f"WARNING: {file} cannot be read ({one_line(error)}): dashboards show this run as another from here on",
                flush=True,
            )
        return cls(file, uuid.uuid4().hex[:8], {})

    def write(self) -> None:
        try:
            write_whole(self.file, json.dumps({"id": self.id, "complete": self.complete}) + "\n")
        except OSError as error:
            print(f"WARNING: {self.file} cannot be written ({one_line(error)}); dashboards may show rows twice", flush=True)


def _rows(directory: Path, first: int, last: int) -> list[MetricsRow]:
    """Rows of steps that are there already."""
    file = directory / "metrics.jsonl"
    return [row for row in read_rows(file) if first <= row["step"] <= last] if first <= last and file.is_file() else []


class TensorBoard:
    """Events in RUN/tensorboard."""

    def __init__(self, directory: Path, first_step: int) -> None:
        """first_step: events from it on, of an earlier start, are no longer shown."""
        from torch.utils.tensorboard import SummaryWriter  # takes a while to load, and other ranks do without

        self._writer, self._last = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step), first_step - 1

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._last = step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def safe(self) -> int | None:
        self._writer.flush()
        return self._last

    def close(self) -> None:
        self._writer.close()


class Apart:
    """A dashboard whose library runs in a process of its own (dashboard_process.py)."""

    def __init__(self, name: str, run: Run, directory: Path, id: str) -> None:
        script = Path(__file__).with_name("dashboard_process.py")
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(script), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # outlives a signal to the training, and hands on what it has
        )
        self._waiting: SimpleQueue[str | None] = SimpleQueue()
        self._error, self._closed = "", False
        self._last: int | None = None
        """The last step that the process has taken."""
        self._before: int | None = None
        """The last one that it had taken when the newest checkpoint began."""
        config = {**run.identity(), "layout": run.layout(), "method": run.method.name, "steps": run.steps}
        facts = {"project": PROJECT, "name": directory.name, "id": id, "directory": str(directory), "config": config}
        self._waiting.put(json.dumps(facts))
        self._threads = [Thread(target=work, daemon=True, name=f"dashboard {name}") for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._require_alive()
        if self._waiting.qsize() > MOST_WAITING:
            self._kill()
            raise Lost(f"it is {MOST_WAITING:,} rows behind")
        self._waiting.put(json.dumps({"step": step, "metrics": metrics}))

    def safe(self) -> int | None:
        """What was taken a checkpoint ago has been handed on since."""
        self._require_alive()
        before, self._before = self._before, self._last
        return before

    def close(self) -> None:
        self._waiting.put(None)
        try:
            self._child.wait(FINISH_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._kill()
            raise Lost(f"it did not end within {FINISH_SECONDS:.0f} s") from None
        self._threads[1].join()
        if not self._closed:
            raise Lost(self._error or f"its process ended with {self._child.returncode}")

    def _require_alive(self) -> None:
        if self._error or self._child.poll() is not None:
            self._threads[1].join(1.0)
            self._kill()
            raise Lost(self._error or f"its process ended with {self._child.returncode}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _write(self) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):  # the process is gone; whoever logs next notices
            while (line := self._waiting.get()) is not None:
                self._child.stdin.write(line + "\n")
                self._child.stdin.flush()
            self._child.stdin.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            facts: dict[str, Any] = json.loads(line)
            self._error = self._error or str(facts.get("error", ""))
            self._closed = self._closed or "closed" in facts
            self._last = facts.get("step", self._last)
