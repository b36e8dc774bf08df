"""What is in token files, as checksums: the same name may hold other text tomorrow."""

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pretrain.errors import UserError, reason

TOKENIZER = "tokenizer"
"""Name of the tokenizer among checksums."""
BLOCK, BLOCKS = 2**16, 64
"""Bytes of a block, and how many of a large token file are read."""
WHOLE_INDEX, INDEX_BLOCKS = 2**28, 2**10
"""Bytes up to which an index is read whole, and how many blocks are read of a larger one (of some ten million documents)."""


def checksum(prefix: Path) -> str:
    """Return a checksum of PREFIX.idx, which has the length of every document, and of blocks spread evenly over PREFIX.bin: of a
    terabyte some 70 MB are read.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    index, data = (prefix.with_name(prefix.name + end) for end in (".idx", ".bin"))
    try:
        return _checksum(index, data, index.stat().st_mtime_ns, data.stat().st_mtime_ns, data.stat().st_size)
    except OSError as error:
        raise UserError(
            f"{error.filename or prefix}: cannot be read: {reason(error)}; token files are made by python -m tokenizer encode"
        ) from None


@cache
def _checksum(index: Path, data: Path, index_changed: int, data_changed: int, size: int) -> str:
    digest = hashlib.sha256()
    length = index.stat().st_size
    if length <= WHOLE_INDEX:
        digest.update(index.read_bytes())
    else:
        digest.update(str(length).encode())
        for block in _blocks(index, length, INDEX_BLOCKS):
            digest.update(block)
    for block in _blocks(data, size, BLOCKS):
        digest.update(block)
    digest.update(str(size).encode())
    return digest.hexdigest()


def _blocks(path: Path, size: int, count: int) -> Iterator[bytes]:
    """Yield blocks spread evenly over a file, from its first byte to its last."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # what lies between is not wanted
        for block in range(count):
            file.seek(max(0, size - BLOCK) * block // (count - 1))
            yield file.read(BLOCK)
