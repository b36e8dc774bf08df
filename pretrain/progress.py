"""How far something long has come: a bar with rate and time left on a terminal, a line now and then in a log. Nothing is shown
unless a command has asked for it, so that what is used as a library stays silent."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

EVERY_SECONDS = 15.0
"""Seconds between lines in a log."""
BYTES = "B"
"""Unit of what is shown in megabytes."""


class _Shown:
    """Whether this process shows anything."""

    on = False
    title = ""


def show(on: bool) -> None:
    """Have `bar` show something from now on, or nothing."""
    _Shown.on = on


@contextmanager
def titled(title: str) -> Iterator[None]:
    """Have bars within the block say what they are of."""
    _Shown.title = f"{title}: "
    try:
        yield
    finally:
        _Shown.title = ""


class Bar:
    """What has been done of something. This one shows nothing."""

    def add(self, amount: float = 1) -> None:
        """So much more is done."""


class _Lines(Bar):
    """A line now and then."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0.0
        self.started = self.told = time.monotonic()

    def add(self, amount: float = 1) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.told < EVERY_SECONDS:
            return
        self.told = now
        speed = self.done / (now - self.started)
        left = max(self.total - self.done, 0) / speed if speed else 0.0
        share = 100 * min(self.done / max(self.total, 1), 1)
        text = f"{self.what}: {share:.0f} %, {rate(speed, self.unit)}, about {left / 60:.0f} min left"
        print(text, file=sys.stderr, flush=True)


class _OnTerminal(Bar):
    def __init__(self, what: str, total: float, unit: str) -> None:
        self.unit, self.started, self.done = unit, time.monotonic(), 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
        self.progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task(what, total=total, rate="")

    def add(self, amount: float = 1) -> None:
        self.done += amount
        speed = self.done / max(time.monotonic() - self.started, 1e-9)
        self.progress.update(self.task, advance=amount, rate=rate(speed, self.unit))


@contextmanager
def bar(what: str, total: float, unit: str) -> Iterator[Bar]:
    """Show how far something is while the block runs.

    Args:
        total: what `add` comes to in all, as far as it is known.
        unit: what is counted, as BYTES or "tasks".
    """
    what = f"{_Shown.title}{what}"
    if not _Shown.on:
        yield Bar()
    elif not sys.stderr.isatty():
        yield _Lines(what, total, unit)
    else:
        shown = _OnTerminal(what, total, unit)
        with shown.progress:
            yield shown


def rate(speed: float, unit: str) -> str:
    """Return how fast something goes, in words."""
    if unit == BYTES:
        return f"{speed / 1e6:.1f} MB/s"
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2f} {unit}/s"
