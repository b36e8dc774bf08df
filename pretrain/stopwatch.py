"""How long this rank computes, apart from the time in which it waits for others: what tells a slow rank from those that it holds
up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time of pieces of work, on the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._started: float | torch.cuda.Event | None = None
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done meanwhile, such as waiting for other ranks, if a piece of work is being timed."""
        was_running = self._started is not None
        if was_running:
            self._end()
        try:
            yield
        finally:
            if was_running:
                self._begin()

    def _begin(self) -> None:
        assert self._started is None, "pieces of work come one after the other"
        self._started = self._now()

    def _end(self) -> None:
        assert self._started is not None
        begin, self._started, end = self._started, None, self._now()
        if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            self._events.append((begin, end))
        elif isinstance(begin, float) and isinstance(end, float):
            self._seconds += end - begin

    def _now(self) -> float | torch.cuda.Event:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()  # the host is ahead of the device, which notes when it gets here
        return event

    def read_and_reset(self) -> float:
        """Seconds since this was last asked, of what the device is through with; nobody waits for the rest, which counts then."""
        while self._events and self._events[0][1].query():
            begin, end = self._events.pop(0)
            self._seconds += begin.elapsed_time(end) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds
