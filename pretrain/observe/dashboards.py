"""Rows of a run on the dashboards that people watch. None of them can stop the training: one that fails is told of once and left
alone."""

import contextlib
import importlib.util
import io
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from pretrain.config import Run
from pretrain.errors import UserError, one_line
from pretrain.files import write_whole
from pretrain.observe.metrics import MetricsRow, read_rows

NOT_SCALARS = {"step", "time", "slowest_node"}
PACE = {"step_seconds", "data_seconds", "tokens_per_second", "tflops_per_gpu", "peak_memory_gib", "restart", "task_seconds"}
"""Metrics of how fast it goes, beside those of the slowest rank."""
PROJECT = "progressive-subnetworks"
"""What runs are filed under unless WANDB_PROJECT or TRACKIO_PROJECT says otherwise."""
STATE = "dashboards.json"
"""File of a run directory by which a resumed run goes on where it was."""
INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0
"""Longest that a dashboard is waited for, at the start and at the end."""


class Dashboard(Protocol):
    """Where metrics go, by the names that `named` gives them."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Dashboards:
    """All that a recipe's `log_to` names, on rank 0."""

    def __init__(self, run: Run, directory: Path, step: int) -> None:
        """Open them, and show rows that one may lack, because the process before this one was killed or did not know it.

        Args:
            step: the run resumes after it; what a dashboard has beyond it is of an earlier start.

        Raises:
            UserError: the library of one is not installed.
        """
        names = run.recipe.log_to
        for name in names:
            if importlib.util.find_spec(name) is None:
                raise UserError(
                    f"recipe {run.name}: log_to {name}: the library is not installed; pip install -r requirements/dashboards.txt"
                )
        self._open: dict[str, Dashboard] = {}
        self._state, self._last = _State.read(directory), step
        for name in names:
            first = min(self._state.complete.get(name, 0), step) + 1
            with self._surviving(name):
                board = self._open[name] = OPENERS[name](run, directory, first)
                for row in _rows(directory, first, step):
                    board.log(row["step"], named(row))

    def record(self, row: MetricsRow) -> None:
        """Show a row of metrics.jsonl."""
        self._last = row["step"]
        for name, board in list(self._open.items()):
            with self._surviving(name):
                board.log(row["step"], named(row))

    def close(self) -> None:
        """Whatever ended the run."""
        for name, board in list(self._open.items()):
            with self._surviving(name):
                board.close()
                self._state.complete[name] = self._last
                self._state.write()
        self._open = {}

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever goes wrong in somebody else's library, the training is worth more
            self._open.pop(name, None)
            print(
                f"WARNING: {name} shows no more of this run ({type(error).__name__}: {one_line(error)}); it goes on", flush=True
            )


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
            state = cls(file, uuid.uuid4().hex[:8], {})
        except (ValueError, KeyError, TypeError, AttributeError):
            print(f"WARNING: {file} is damaged: dashboards show this run as another from here on", flush=True)
            state = cls(file, uuid.uuid4().hex[:8], {})
        state.write()
        return state

    def write(self) -> None:
        write_whole(self.file, json.dumps({"id": self.id, "complete": self.complete}) + "\n")


def _rows(directory: Path, first: int, last: int) -> list[MetricsRow]:
    """Rows of steps that are there already."""
    file = directory / "metrics.jsonl"
    return [row for row in read_rows(file) if first <= row["step"] <= last] if first <= last and file.is_file() else []


class TensorBoard:
    """Events in RUN/tensorboard."""

    def __init__(self, run: Run, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a while to load, and other ranks do without

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases, in RUN/wandb and, unless WANDB_MODE=offline, on its server.

    Steps are a metric of their own, since its own count never goes back, and a run that was killed trains some steps again.
    """

    def __init__(self, run: Run, directory: Path, first_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.name,
            id=_State.read(directory).id,
            resume="allow",
            dir=str(directory),
            config=_config(run),
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False,
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
            ),
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        _within(FINISH_SECONDS, self._run.finish)


class Trackio:
    """Hugging Face's Trackio, in its own folder (TRACKIO_DIR); `trackio show` opens it."""

    def __init__(self, run: Run, directory: Path, first_step: int) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio, self._run = (
                trackio,
                trackio.init(
                    project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                    name=f"{directory.name}-{_State.read(directory).id[:4]}",
                    resume="allow",
                    config=_config(run),
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                ),
            )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()


OPENERS: dict[str, Callable[[Run, Path, int], Dashboard]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}
"""By name, which is that of the library, too."""


def _config(run: Run) -> dict[str, Any]:
    """What decides the run, as its dashboards list it."""
    return {**run.identity(), "layout": run.layout(), "method": run.method.name, "steps": run.steps}


def _within(seconds: float, close: Callable[[], None]) -> None:
    """Wait for a dashboard to end, but not for ever.

    Raises:
        TimeoutError: it took longer, and is left.
    """
    failed: list[Exception] = []

    def work() -> None:
        try:
            close()
        except Exception as error:
            failed.append(error)

    thread = Thread(target=work, daemon=True, name="dashboard")
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise TimeoutError(f"not through in {seconds:.0f} s")
