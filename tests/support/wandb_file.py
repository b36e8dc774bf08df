"""Files that Weights & Biases writes offline, read with its own messages: the framing is LevelDB's log
(https://github.com/google/leveldb, doc/log_format.md), after a header of seven bytes."""

import json
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 2**15
RECORD = 7
"""Bytes before the content of a record: a checksum of four, a length of two, a type of one."""


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Yield everything that a file holds, in order."""
    content, place, parts = file.read_bytes(), HEADER, []
    assert content[:4] == b":W&B"
    while place + RECORD <= len(content):
        left = BLOCK - place % BLOCK
        if left < RECORD:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + RECORD : place + RECORD + length])
        place += RECORD + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def rows(file: Path) -> list[dict[str, float]]:
    """The metrics that were logged, by name."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]
