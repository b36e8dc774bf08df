"""Files that are whole or not there."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pretrain.errors import with_file

CHUNK = 2**22
"""Bytes that are read at a time."""


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """A file with all of the content, on disk, or the one that was there before. Several processes may write it at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        to_disk(part)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def remove(path: Path) -> str | None:
    """Remove a file, a link, or a folder with all that can go of it; return what is left and why, None if nothing is.

    What a link leads to stays. A file may be busy (a network file system keeps it under another name), somebody else's, or not to
    be written: that is for a person to look at, and no reason to stop.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                shutil.rmtree(path)  # says why
    except OSError as error:
        return f"{path}: cannot be removed ({with_file(error)}); remove it by hand"
    return None


def to_disk(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path, read: Callable[[int], object] = lambda size: None) -> str:
    """Return the checksum of a file's content, in hexadecimal.

    Args:
        read: is told of the bytes that have been read since the last time.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        room = memoryview(bytearray(CHUNK))
        while size := file.readinto(room):
            digest.update(room[:size])
            read(size)
    return digest.hexdigest()
