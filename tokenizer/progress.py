"""What `encode` shows while it works, and when it is done."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tokenizer.files import expected_bytes
from tokenizer.parts import Tally
from tokenizer.text import Block, Stretch

EVERY_SECONDS = {True: 0.2, False: 15.0}
"""Seconds between lines, on a terminal and in a log."""
MOST_SHOWN = 10


class Progress:
    """Documents, MB a second and the time that is left."""

    def __init__(self, files: Sequence[Path], quiet: bool) -> None:
        self.quiet, self.files = quiet, files
        self.terminal = sys.stderr.isatty()
        self.total = expected_bytes(files)
        self.tally, self.before = Tally(), 0
        self.started = self.shown = time.perf_counter()

    def skip(self, block: Block | Stretch) -> None:
        """A block that an earlier run has finished."""
        self.before += block.size
        self._show()

    def add(self, tally: Tally) -> None:
        self.tally.add(tally)
        self._show()

    def _show(self) -> None:
        now = time.perf_counter()
        if not self.quiet and now - self.shown >= EVERY_SECONDS[self.terminal]:
            self.shown = now
            self._line(now - self.started)

    def _line(self, seconds: float) -> None:
        speed = self.tally.text_bytes / max(seconds, 1e-9)
        done = self.tally.text_bytes + self.before
        left = f"about {max(self.total - done, 0) / speed / 60:.0f} min left" if speed else "skipping finished blocks"
        share = min(done / max(self.total, 1), 0.99)
        text = (
            f"{100 * share:3.0f} %  {self.tally.documents:,} documents  {speed / 1e6:.1f} MB/s  {left}  {len(self.tally.bad)} bad"
        )
        print(("\r" if self.terminal else "") + text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def finish(self) -> None:
        self.seconds = time.perf_counter() - self.started
        if self.terminal and not self.quiet:
            print(file=sys.stderr)

    def summary(self, manifest: dict, prefix: Path, copying: float) -> None:
        """The end of the story, with the first documents that could not be read."""
        if self.quiet:
            return
        speed = self.tally.text_bytes / 1e6 / max(self.seconds, 1e-9)
        print(
            f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens in {prefix}.bin: {self.seconds:.0f} s of"
            f" encoding at {speed:.1f} MB/s, {copying:.0f} s of putting together"
            + (f"; {self.before / 1e6:.0f} MB were finished before" if self.before else "")
        )
        bad = manifest["bad_documents"]
        print(
            f"{manifest['empty_documents']} empty and {len(bad)} bad documents left out"
            + (f"; all are in {prefix}.json:" if bad else "")
        )
        for entry in bad[:MOST_SHOWN]:
            print(f"  {entry['file']}: " + (f"line {entry['line']}: " if entry["line"] else "") + entry["reason"])
