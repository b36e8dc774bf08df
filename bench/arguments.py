"""What options of measurements may be, and how a page of results names them."""

import argparse
import sys


def positive(word: str) -> int:
    """Read a whole number above 0, as a type of argparse."""
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number above 0")
    return int(word)


def command(module: str) -> str:
    """Return how this measurement was started, but for where its results went."""
    words, told = iter(sys.argv[1:]), [f"-m bench.{module}"]
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            told.append(word)
    return " ".join(told)
