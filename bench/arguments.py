"""What options of measurements may be."""

import argparse


def positive(word: str) -> int:
    """Read a whole number above 0, as a type of argparse."""
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number above 0")
    return int(word)
