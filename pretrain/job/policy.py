"""What to do when a start of a job has ended: pure functions, so that every case has a test."""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.job.events import Event

SERIOUS = ("config", "node", "stopped", "hung", "crash")
"""Kinds of failures, those first that explain others: a rank that is lost makes its peers stop too."""


@dataclass(frozen=True)
class Decision:
    """Start again or not, and why, in words for RUN/job.log."""

    requeue: bool
    reason: str
    exclude: tuple[str, ...] = ()
    """Nodes not to be used any more."""
    exit_code: int = 0
    """Exit code of the batch script, where the job is not queued again."""


def decide(events: Sequence[Event], code: int, signals: Sequence[str], saved: Sequence[int], most: int) -> Decision:
    """Look at how a start has ended.

    Args:
        events: of this start.
        code: of the launcher.
        signals: that the batch script itself got: USR1 before the time limit, TERM to end.
        saved: newest checkpoint's step after each failed start so far, this one last; 0 where there is none.
        most: starts in a row that may fail without a newer checkpoint.
    """
    kinds, terminated = {event.kind: event for event in events}, "TERM" in signals
    if "finished" in kinds:
        return Decision(False, f"finished at step {kinds['finished'].step}")
    if asked := kinds.get("saved"):
        if asked.text == "SIGUSR1" and not terminated:
            return Decision(True, f"saved at step {asked.step} before the time limit; queued again")
        return Decision(
            False, f"asked to end ({asked.text}), saved at step {asked.step}; the same command resumes", exit_code=143
        )
    if "ended" in kinds:
        return Decision(False, f"ended at step {kinds['ended'].step}, as --stop-at says")
    if terminated:
        return Decision(False, f"asked to end before it could save; resumes from step {saved[-1]}", exit_code=143)
    if code == 0 and not any(kind in kinds for kind in SERIOUS) and not signals:
        return Decision(False, "all tasks have ended well, and could not say at which step")
    failure = next((event for kind in SERIOUS for event in events if event.kind == kind), None)
    what = f"the launcher ended with {code} and no process said why: killed, or a node lost"
    if "USR1" in signals:
        what = "asked to save (SIGUSR1) before the first step was done; is --time longer than the seconds of --signal?"
    if failure:
        what = (
            f"{failure.node}: {failure.text}"
            if failure.kind == "node"
            else f"rank {failure.rank} on {failure.node}: {failure.text}"
        )
    if failure and failure.kind == "config":
        return Decision(False, f"{failure.text}; not queued again, since it would come back", exit_code=2)
    in_vain = without_progress(saved)
    if in_vain >= most:
        return Decision(
            False,
            f"{what}; {in_vain} starts in a row saved nothing newer than step {saved[-1]}; giving up",
            exit_code=1,
        )
    exclude = tuple(sorted({event.node for event in events if event.kind == "node"}))
    rest = f", without {', '.join(exclude)}" if exclude else ""
    return Decision(
        True, f"{what}; queued again from step {saved[-1]}{rest} (failure {in_vain} of {most} without progress)", exclude
    )


def without_progress(saved: Sequence[int]) -> int:
    """Failed starts at the end of the list that all left the same newest checkpoint."""
    count = 0
    for step in reversed(saved):
        if step != saved[-1]:
            break
        count += 1
    return count
