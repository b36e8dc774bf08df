"""RUN/job.log, the story of a run across restarts, and the two words that the batch script asks for: start and end."""

import json
import re
from datetime import datetime, timezone
from pathlib import Path

from pretrain.files import write_whole
from pretrain.job.events import read_events, this_start
from pretrain.job.policy import Decision, decide

STATE = ".job.json"
BAD_NODES = "bad_nodes"
"""Names with commas between, as SLURM takes them."""
QUEUE_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: what `job end` tells the batch script."""


def write_line(run_dir: Path, text: str) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    with (run_dir / "job.log").open("a") as file:
        file.write(f"{now}  {text}\n")
    print(text, flush=True)


def newest_step(run_dir: Path) -> int:
    """Of the checkpoints by name; 0 if there is none."""
    names = (re.fullmatch(r"step_(\d{8,})", folder.name) for folder in (run_dir / "checkpoints").glob("step_*"))
    return max((int(name[1]) for name in names if name), default=0)


def started(run_dir: Path, environment: dict[str, str]) -> None:
    job, restart = this_start(environment)
    nodes, tasks = environment.get("SLURM_JOB_NODELIST", "?"), environment.get("SLURM_NTASKS", "?")
    step = newest_step(run_dir)
    write_line(run_dir, f"job {job}, start {restart}: {tasks} tasks on {nodes}, {f'from step {step}' if step else 'from the beginning'}")


def ended(run_dir: Path, environment: dict[str, str], code: int, terminated: bool, most: int) -> Decision:
    """Decide, remember, and tell the story."""
    job, restart = this_start(environment)
    events = [event for event in read_events(run_dir) if (event.job, event.restart) == (job, restart)]
    file = run_dir / STATE
    state = json.loads(file.read_text()) if file.exists() else {"saved": [], "bad_nodes": []}
    saved = [*state["saved"], newest_step(run_dir)]
    decision = decide(events, code, terminated, saved, most)
    failed = decision.requeue and not any(event.kind == "saved" for event in events)
    state = {"saved": saved if failed else [], "bad_nodes": sorted({*state["bad_nodes"], *decision.exclude})}
    write_whole(file, json.dumps(state))
    if state["bad_nodes"]:
        write_whole(run_dir / BAD_NODES, ",".join(state["bad_nodes"]) + "\n")
    write_line(run_dir, f"job {job}, start {restart}: {decision.reason}")
    return Decision(decision.requeue, decision.reason, tuple(state["bad_nodes"]), decision.exit_code)
