"""`status`: how far runs have come, from what is in their directories."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Column, Table

from pretrain.config.recipe import Recipe
from pretrain.config.strict import parse, read_yaml
from pretrain.errors import UserError, one_line
from pretrain.job.events import Event, read_events
from pretrain.job.log import newest_step
from pretrain.observe.metrics import read_rows, training_rows

RECENT = 20
"""Steps over which the pace is measured."""
QUIET_STEPS = 10
"""Steps without a word, at the recent pace, after which a run is called silent."""


COLUMNS = ("run", "state", "step", "loss", "tokens/s", "ETA", "slowest rank", "restarts", "checkpoint", "job")


def print_status(runs: Sequence[Path]) -> None:
    """A table, a line a run; what is wrong with one is in its line."""
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS))
    for run in (inner for folder in runs for inner in runs_in(folder)):
        try:
            columns = status_of(run)
        except UserError as error:
            columns = {"run": str(run), "state": str(error).removeprefix(f"{run}: ")}
        table.add_row(*(columns.get(name, "") for name in COLUMNS))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def runs_in(folder: Path) -> list[Path]:
    """Return a run directory itself, or those in a folder of runs; the folder if it is neither, so that its line says so."""
    marks = ("recipe.yaml", "job.log")
    if any((folder / mark).exists() for mark in marks):
        return [folder]
    return sorted({file.parent for mark in marks for file in folder.glob(f"*/{mark}")}) or [folder]


def status_of(run: Path) -> dict[str, str]:
    """The columns of a run.

    Raises:
        UserError: the folder is no run directory, or a file in it is damaged.
    """
    events = read_events(run)
    job = events[-1].job if events else ""
    if not (run / "recipe.yaml").is_file():
        if not (run / "job.log").is_file():
            if not run.exists():
                raise UserError(f"{run}: {'a link that leads nowhere' if run.is_symlink() else 'no such folder'}")
            raise UserError(f"{run}: neither a run directory (it has no recipe.yaml) nor a folder of some")
        lines = (run / "job.log").read_text(errors="replace").splitlines()
        return {"run": str(run), "state": lines[-1].partition("  ")[2] if lines else "not started", "job": job}
    steps_wanted = parse(Recipe, read_yaml(run / "recipe.yaml"), str(run / "recipe.yaml")).steps
    rows = training_rows(read_rows(run / "metrics.jsonl")) if (run / "metrics.jsonl").exists() else []
    last = rows[-1] if rows else None
    try:
        pace = median(row["step_seconds"] for row in rows[-RECENT:]) if rows else 0.0
        is_whole = (newest_step(run) or 0) >= steps_wanted or (run / "report").is_dir()
        state = _state(rows, steps_wanted if is_whole else None, pace, events)
        left = (steps_wanted - last["step"]) * pace if last and state == "running" else None
        return {
            "run": str(run),
            "state": state,
            "step": f"{last['step'] if last else 0:,}/{steps_wanted:,}",
            "loss": f"{last['loss']:.4f}" if last else "",
            "tokens/s": f"{last['tokens_per_second']:,.0f}" if last else "",
            "ETA": f"{int(left // 3600)}:{int(left % 3600 // 60):02d}" if left else "",
            "slowest rank": _slowest(rows[-RECENT:]),
            "restarts": str(_restarts(rows, events)),
            "checkpoint": f"step {newest_step(run):,}" if newest_step(run) else "none",
            "job": job,
        }
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{run}/metrics.jsonl: a row is not of this program ({one_line(error)})") from None


def _restarts(rows: list[dict], events: Sequence[Event]) -> int:
    """Return the restarts by the rows, or, where starts came to no step, by the batch script's count."""
    return max([row["restart"] for row in rows[-1:]] + [event.restart for event in events[-1:]], default=0)


def _slowest(rows: list[dict]) -> str:
    """The rank that was slowest most often, if there are several, and by how much: a pipeline's last one has the head to compute,
    too."""
    several = [row for row in rows if "slowest_rank" in row]
    if not several:
        return ""
    (rank, node), _ = Counter((row["slowest_rank"], row["slowest_node"]) for row in several).most_common(1)[0]
    ratio = median(row["slowest_over_median"] for row in several if row["slowest_rank"] == rank)
    return f"{rank} on {node}, {ratio:.2f}x"


def _state(rows: list[dict], wanted: int | None, pace: float, events: Sequence[Event]) -> str:
    """wanted: steps of the run; None as long as what the last of them left is not saved."""
    if rows and wanted is not None and rows[-1]["step"] >= wanted:
        return "finished"
    newest = _seconds(rows[-1]["time"]) if rows else 0.0
    end = events[-1] if events else None
    if end is not None and _seconds(end.time) >= int(newest):  # events know whole seconds
        if end.kind == "started":
            return _waiting("no step yet", time.time() - _seconds(end.time))
        return {"saved": f"stopped ({end.text})", "ended": "stopped (--stop-at)", "requeued": f"queued again: {end.text}"}.get(
            end.kind, f"ended: {end.text}"
        )
    if not rows:
        return "no step yet"
    since = time.time() - newest
    return "running" if since < max(60.0, QUIET_STEPS * pace) else f"silent for {since / 60:.0f} min"


def _waiting(what: str, seconds: float) -> str:
    return what if seconds < 60 else f"{what}, for {seconds / 60:.0f} min"


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
