"""Documents from files: JSON lines with a "text" field."""

import glob
import json
from pathlib import Path
from typing import Iterator

from pretrain.errors import UserError


def find_inputs(pattern: str) -> list[Path]:
    """Files of a glob, sorted.

    Raises:
        UserError: no file, or one of a kind that cannot be read.
    """
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not files:
        raise UserError(f"--input {pattern}: no such file")
    wrong = [file for file in files if file.suffix != ".jsonl"]
    if wrong:
        raise UserError(f'{wrong[0]}: expected JSON lines (.jsonl) with a "text" field')
    return files


def documents(files: list[Path]) -> Iterator[str]:
    """Texts of all documents in order; empty ones are passed over.

    Raises:
        UserError: a line that is not JSON with a text, with file and line number.
    """
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    text = json.loads(line)["text"]
                    if not isinstance(text, str):
                        raise TypeError("the text is not a string")
                    text.encode()  # half a surrogate pair is JSON, and not text
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f'{file}: line {number}: not JSON with a "text" field: {error}') from None
                if text.strip():
                    yield text
