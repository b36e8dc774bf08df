"""A dashboard in a process of its own, which may hang or die as it likes: `dashboards.py` starts this file and talks to it.

It reads lines of JSON, first what the run is, then metrics by step, and answers in lines of JSON. When there are no more lines,
also because the training was killed, it hands on what it has and ends. Nothing of the package is imported: it starts at once.
"""

import json
import os
import sys
import threading
import warnings
from typing import Any

INIT_SECONDS = 30.0
"""Longest that a server is waited for."""
FINISH_SECONDS = 60.0
"""Longest that it takes to hand on what it has."""


class Wandb:
    """Weights & Biases, in RUN/wandb and, unless WANDB_MODE=offline, on its server.

    Steps are a metric of their own, since its own count never goes back, and a run that was killed trains some steps again.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", setup["project"]),
            name=setup["name"],
            id=setup["id"],
            resume="allow",
            dir=setup["directory"],
            config=setup["config"],
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                disable_git=True,
                save_code=False,
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
            ),  # fmt: skip
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Hugging Face's Trackio, in its own folder (TRACKIO_DIR)."""

    def __init__(self, setup: dict[str, Any]) -> None:
        import trackio

        self._trackio, self._run = (
            trackio,
            trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", setup["project"]),
                name=f"{setup['name']}-{setup['id'][:4]}",
                resume="allow",
                config=setup["config"],
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            ),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._trackio.finish()


BOARDS: dict[str, type[Wandb] | type[Trackio]] = {"wandb": Wandb, "trackio": Trackio}


def main(name: str) -> None:
    """Serve one dashboard until there are no more lines."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # libraries print what they like

    def answer(**facts: object) -> None:
        try:
            answers.write(json.dumps(facts) + "\n")
        except OSError:
            pass  # the training is gone

    def fail(error: object) -> None:
        answer(error=(str(error).splitlines() or [""])[0])
        os._exit(1)  # without the libraries' own farewells, which may wait for ever

    def warned(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
        if name in filename.split(os.sep):  # Trackio warns where it has lost something
            fail(f"{category.__name__}: {message}")

    warnings.showwarning = warned  # type: ignore[assignment]  # takes what the library hands over
    try:
        setup = json.loads(sys.stdin.readline())
        board = BOARDS[name](setup)
        for line in sys.stdin:
            row = json.loads(line)
            board.log(row["step"], row["metrics"])
            answer(step=row["step"])
        timer = threading.Timer(FINISH_SECONDS, fail, ("TimeoutError: it did not end in time",))
        timer.daemon = True
        timer.start()
        board.close()
        answer(closed=True)
        os._exit(0)
    except BaseException as error:
        fail(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
