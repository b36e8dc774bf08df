"""The streams that people read."""

import io
import sys


def accept_any_text() -> None:
    """Have stdout and stderr take any text, whatever the locale: characters that it has not are shown as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
