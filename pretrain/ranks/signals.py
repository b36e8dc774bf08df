"""How a process is asked to stop: signals from a person, from SLURM, or from the kernel when its parent dies."""

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""USR1 comes before a time limit and asks to resume later; whoever sends another one does not."""


class StopRequests:
    """Stop signals that have reached this process; the other ranks may not know yet."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []

    @property
    def soon(self) -> bool:
        """Whether a time limit is near."""
        return signal.SIGUSR1 in self.received

    @property
    def now(self) -> bool:
        """Whether somebody wants the run to end."""
        return any(number != signal.SIGUSR1 for number in self.received)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal: the loop ends after its step. A second Ctrl-C does not wait for that."""
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received.append(signal.Signals(number))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the stop signals over, and give them back in the end."""
        former = {number: signal.signal(number, self.handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, however that happens."""
    set_parent_death_signal = 1  # linux/prctl.h, PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))
