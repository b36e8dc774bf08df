"""RUN/job.log, the story of a run across restarts, and the two words that the batch script asks for: start and end.

What can be written is written; a full disk must not decide whether a job continues.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pretrain.errors import reason
from pretrain.files import write_whole
from pretrain.job.events import read_events, report_to_job, this_start
from pretrain.job.policy import Decision, decide, without_progress

STATE = ".job.json"
BAD_NODES = "bad_nodes"
"""Names with commas between, as SLURM takes them."""
QUEUE_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: what `job end` exits with for "queue it again"."""
EXIT_CODES = {0: 0, 1: 76, 2: 77, 143: 78}
"""Exit codes of the batch script, and those with which `job end` asks for them: apart from 1 and 2, which Python also ends with
when it fails."""


@dataclass
class State:
    """What is remembered between the starts of one job."""

    job: str = ""
    saved: list[int] = field(default_factory=list)
    """Newest checkpoint's step after each start that failed, in a row."""
    bad_nodes: list[str] = field(default_factory=list)
    begun: int | None = None
    """The start that has begun and has not ended."""

    @classmethod
    def of(cls, run_dir: Path, job: str) -> "State":
        """Read the notes of a job; a new job starts without any, as does one whose notes are damaged."""
        try:
            state = cls(**json.loads((run_dir / STATE).read_text()))
        except (OSError, ValueError, TypeError):
            return cls(job)
        return state if state.job == job else cls(job)

    def write(self, run_dir: Path) -> bool:
        try:
            write_whole(run_dir / STATE, json.dumps(asdict(self)))
            if self.bad_nodes:
                write_whole(run_dir / BAD_NODES, ",".join(self.bad_nodes) + "\n")
            else:
                (run_dir / BAD_NODES).unlink(missing_ok=True)
        except OSError as error:
            print(f"{run_dir}: cannot be written: {reason(error)}", file=sys.stderr)
            return False
        return True


def write_line(run_dir: Path, text: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    print(text, flush=True)
    try:
        with (run_dir / "job.log").open("a") as file:
            file.write(f"{now}  {text}\n")
    except OSError as error:
        print(f"{run_dir}/job.log: cannot be written: {reason(error)}", file=sys.stderr)


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, by names of folders; 0 if there is none."""
    names = (re.fullmatch(r"step_(\d{8,})", folder.name) for folder in (run_dir / "checkpoints").glob("step_*"))
    return max((int(name[1]) for name in names if name), default=0)


def started(run_dir: Path, environment: dict[str, str], most: int) -> Decision | None:
    """Note that a start begins; a decision if it must not, because too many have ended without progress, the last of them without
    a word."""
    job, restart = this_start(environment)
    state, step = State.of(run_dir, job), newest_step(run_dir)
    if state.begun is not None and state.begun < restart:
        state.saved.append(step)
        write_line(
            run_dir,
            f"job {job}, start {state.begun}: nothing is known of its end: the first node lost, the script killed, or queued"
            " again by hand",
        )
    state.begun = restart
    state.write(run_dir)
    in_vain = without_progress(state.saved) if state.saved else 0
    if in_vain >= most:
        decision = Decision(False, f"not started: {in_vain} starts in a row saved nothing newer than step {step}", exit_code=1)
        _tell(run_dir, job, restart, decision)
        return decision
    nodes, tasks = environment.get("SLURM_JOB_NODELIST", "?"), environment.get("SLURM_NTASKS", "?")
    text = f"{tasks} tasks on {nodes}, {f'from step {step}' if step else 'from the beginning'}"
    report_to_job(run_dir, "started", text)
    write_line(run_dir, f"job {job}, start {restart}: {text}")
    return None


def ended(run_dir: Path, environment: dict[str, str], code: int, signals: tuple[str, ...], most: int) -> Decision:
    """Decide, remember, and log it.

    Args:
        code: of the launcher.
        signals: that the batch script got.
    """
    job, restart = this_start(environment)
    events = [event for event in read_events(run_dir) if (event.job, event.restart) == (job, restart)]
    state = State.of(run_dir, job)
    saved = [*state.saved, newest_step(run_dir)]
    decision = decide(events, code, signals, saved, most)
    failed = decision.requeue and not any(event.kind == "saved" for event in events)
    state = State(job, saved if failed else [], sorted({*state.bad_nodes, *decision.exclude}))
    if not state.write(run_dir) and failed and restart + 1 >= most:  # nobody else counts
        decision = Decision(False, f"{decision.reason}; but start {restart} could write no notes; giving up", exit_code=1)
    _tell(run_dir, job, restart, decision)
    return decision


def _tell(run_dir: Path, job: str, restart: int, decision: Decision) -> None:
    report_to_job(run_dir, "requeued" if decision.requeue else "over", decision.reason)
    write_line(run_dir, f"job {job}, start {restart}: {decision.reason}")
