"""The two ways in which the program ends other than well."""

import os
from collections.abc import Mapping, Sequence


class UserError(ValueError):
    """Says what is wrong, where (file and key), and what to write instead.

    The command line prints the message alone, without a traceback, and exits with status 2. A job script can
    rely on that status of a rank (torchrun itself answers 1 to any): such an error comes back on every restart, so the job must
    not be requeued.
    """


class TrainingStopped(RuntimeError):
    """The run cannot continue, for a reason that fits in one line; what was saved before is good. Exit status 1."""

    everywhere = True
    """Whether all ranks came to this conclusion together, so that one of them reports it."""

    @classmethod
    def on_this_rank(cls, reason: str) -> "TrainingStopped":
        """Make one for something that the other ranks do not know of."""
        stopped = cls(reason)
        stopped.everywhere = False
        return stopped


class NodesUnfit(TrainingStopped):
    """Some nodes are not fit for the run, and others are; the job is queued again without them."""

    def __init__(self, complaints: Mapping[str, str], nodes: Sequence[str]) -> None:
        """complaints: of nodes, by their names. nodes: of all ranks."""
        super().__init__(f"not fit: {'; '.join(f'{node}: {why}' for node, why in sorted(complaints.items()))}")
        self.complaints = dict(complaints)
        self.told_by = next((rank for rank, node in enumerate(nodes) if node not in complaints), 0)
        """The first rank on a fit node: one that is not may be unable to report anything."""


def lost_a_peer(error: BaseException) -> bool:
    """Did a collective fail because another rank is gone? That one, or the launcher, reports why."""
    is_of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return is_of_torch or isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """Return why something failed, in one line: of an OSError its words without number and file, where it has such."""
    if not isinstance(error, OSError):
        return one_line(error)
    return error.strerror or (os.strerror(error.errno) if error.errno else one_line(error))


def with_file(error: OSError) -> str:
    """Return the file that an OSError names, and why it failed; the reason alone where it names none."""
    return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
