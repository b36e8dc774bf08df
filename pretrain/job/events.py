"""RUN/events.jsonl: what the processes of a job say of their end, each in a line of its own.

Exit codes are not enough: a launcher that kills the others when one fails may answer with the code of one that it has killed.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pretrain.errors import NodesUnfit, TrainingStopped, UserError, lost_a_peer, one_line
from pretrain.place import rank_here, this_node

EventKind = Literal["started", "finished", "ended", "saved", "config", "stopped", "crash", "hung", "node", "requeued", "over"]
"""started, requeued, over: of the batch script, whose words these are; the others of the processes. finished: the last step is
done. ended: --stop-at. saved: asked to stop, and has saved. config: a mistake of the user's. stopped: cannot continue. crash: a
bug, or the machine. hung: no step for too long. node: a node that is not fit."""


@dataclass(frozen=True)
class Event:
    """One line."""

    job: str
    restart: int
    kind: EventKind
    text: str
    rank: int
    node: str
    step: int | None
    """The newest step, or that of the newest checkpoint, as the kind may be."""
    time: str


def this_start(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return job and restart of a process, which together identify one start of a run."""
    restart = environment.get("SLURM_RESTART_COUNT", "")
    return environment.get("SLURM_JOB_ID", "none"), int(restart) if restart.isdecimal() else 0


def report_to_job(
    run_dir: Path, kind: EventKind, text: str, rank: int = 0, step: int | None = None, node: str | None = None
) -> None:
    """Append a line, on a line of its own whatever a killed process has left; only in a job of SLURM, whose batch script reads
    it.

    Args:
        node: the node that it is about; this one if None.

    A run directory that is not there, or full, is no failure here: something else is wrong, and reported elsewhere.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return
    job, restart = this_start(os.environ)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = "\n" + json.dumps(asdict(Event(job, restart, kind, text, rank, node or this_node(os.environ), step, now))) + "\n"
    try:
        descriptor = os.open(run_dir / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError:
        pass


@contextmanager
def report_failures(run_dir: Path | None) -> Iterator[None]:
    """Report what ends this process, but for the loss of another one, which reports itself."""
    try:
        yield
    except Exception as error:
        if run_dir is not None and not lost_a_peer(error):
            rank = rank_here(os.environ)
            if isinstance(error, NodesUnfit):
                for node, complaint in error.complaints.items() if rank == error.told_by else ():
                    report_to_job(run_dir, "node", complaint, rank, node=node)
            else:
                kind: EventKind = (
                    "config" if isinstance(error, UserError) else "stopped" if isinstance(error, TrainingStopped) else "crash"
                )
                report_to_job(
                    run_dir, kind, str(error) if kind != "crash" else f"{type(error).__name__}: {one_line(error)}", rank
                )
        raise


def read_events(run_dir: Path) -> list[Event]:
    """All whole lines; a killed process may have left a part of one."""
    file = run_dir / "events.jsonl"
    events = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            event = Event(**json.loads(line))
            datetime.fromisoformat(event.time)
        except (ValueError, TypeError):
            continue
        events.append(event)
    return events
