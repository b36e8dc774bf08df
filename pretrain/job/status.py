"""`status`: where runs stand, from what lies in their directories."""

import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Sequence

from rich.console import Console
from rich.table import Column, Table

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.recipe import Recipe
from pretrain.config.strict import parse, read_json, read_yaml
from pretrain.errors import UserError
from pretrain.job.events import read_events
from pretrain.job.log import newest_step
from pretrain.observe.metrics import read_rows, training_rows

RECENT = 20
"""Steps over which the pace is measured."""
QUIET_STEPS = 10
"""Steps without a word, at the recent pace, after which a run is called silent."""


def print_status(runs: Sequence[Path]) -> None:
    """A table, a line a run.

    Raises:
        UserError: a folder is no run directory.
    """
    table = Table(Column("run", overflow="fold"), "state", "step", "loss", "tokens/s", "ETA", "slowest rank", "restarts", "checkpoint", "job")
    for run in runs:
        table.add_row(*status_of(run).values())
    Console().print(table)


def status_of(run: Path) -> dict[str, str]:
    """The columns of a run."""
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: no run directory: it has no recipe.yaml")
    steps_wanted = parse(Recipe, read_yaml(run / "recipe.yaml"), str(run / "recipe.yaml")).steps
    parse(DeepSpeedConfig, read_json(run / "ds_config.json"), str(run / "ds_config.json"))
    rows = training_rows(read_rows(run / "metrics.jsonl")) if (run / "metrics.jsonl").exists() else []
    last, events = (rows[-1] if rows else None), read_events(run)
    pace = median(row["step_seconds"] for row in rows[-RECENT:]) if rows else 0.0
    left = (steps_wanted - last["step"]) * pace if last else None
    return {
        "run": str(run),
        "state": _state(rows, steps_wanted, pace, events),
        "step": f"{last['step'] if last else 0:,}/{steps_wanted:,}",
        "loss": f"{last['loss']:.4f}" if last else "",
        "tokens/s": f"{last['tokens_per_second']:,.0f}" if last else "",
        "ETA": f"{int(left // 3600)}:{int(left % 3600 // 60):02d}" if left else "",
        "slowest rank": _slowest(rows[-RECENT:]),
        "restarts": str(last["restart"] if last else 0),
        "checkpoint": f"step {newest_step(run):,}" if newest_step(run) else "none",
        "job": events[-1].job if events else "",
    }


def _slowest(rows: list[dict]) -> str:
    """The rank that was slowest most often, if there are several, and by how much: a pipeline's last one has the head to compute, too."""
    several = [row for row in rows if "slowest_rank" in row]
    if not several:
        return ""
    (rank, node), _ = Counter((row["slowest_rank"], row["slowest_node"]) for row in several).most_common(1)[0]
    ratio = median(row["slowest_over_median"] for row in several if row["slowest_rank"] == rank)
    return f"{rank} on {node}, {ratio:.2f}x"


def _state(rows: list[dict], wanted: int, pace: float, events: list) -> str:
    if rows and rows[-1]["step"] >= wanted:
        return "finished"
    since = time.time() - (datetime.fromisoformat(rows[-1]["time"]).timestamp() if rows else 0.0)
    end = events[-1] if events else None
    if end is not None and (not rows or datetime.fromisoformat(end.time) >= datetime.fromisoformat(rows[-1]["time"]).replace(microsecond=0)):
        return {"saved": f"stopped ({end.text})", "ended": "stopped (--stop-at)"}.get(end.kind, f"failed: {end.text}")
    if not rows:
        return "no step yet"
    return "running" if since < max(60.0, QUIET_STEPS * pace) else f"silent for {since / 60:.0f} min"
