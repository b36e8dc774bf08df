"""safetensors files, written as a stream and read in parts (https://huggingface.co/docs/safetensors: eight bytes with the
header's length, the header in JSON, the numbers). The library writes from overlap in memory and reads through a map, where a bad
disk is a crash; here a checksum is made on the way, and an error is an error."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Thread

import numpy as np

from pretrain.checkpoint.fragments import Overlap

CHUNK = 2**24
"""Bytes that are written, or read, at a time."""
GAP = 2**16
"""Bytes that are read and thrown away rather than skipped."""
NUMBER = np.dtype("<f4")
"""Masters and moments are fp32, always."""
MOST_HEADER_BYTES = 10**8
"""Longest header that is read, as in the library."""


def write_tensors(path: Path, lengths: Mapping[str, int], numbers: np.ndarray) -> tuple[int, str]:
    """Write vectors of fp32 that lie one behind the other in `numbers`; returns size and sha256 of the file, which is on disk
    then."""
    header, begin = {}, 0
    for name, length in lengths.items():
        end = begin + length * NUMBER.itemsize
        header[name] = {"dtype": "F32", "shape": [length], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = memoryview(numbers.view(np.uint8).data)
    assert len(content) == begin
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little") + text, *_chunks(content)]
    digest = hashlib.sha256()

    def make_digest() -> None:
        for part in parts:
            digest.update(part)

    beside = Thread(target=make_digest, daemon=True)  # takes half as long as the disk
    with path.open("xb", buffering=0) as file:
        beside.start()
        for part in parts:
            _write_all(file, part)
        os.fsync(file.fileno())
    beside.join()
    return 8 + len(text) + begin, digest.hexdigest()


def _chunks(content: memoryview) -> Iterator[memoryview]:
    for begin in range(0, len(content), CHUNK):
        yield content[begin : begin + CHUNK]


def _write_all(file: FileIO, part: bytes | memoryview) -> None:
    """The system may take less than it is given."""
    part = memoryview(part)
    while len(part):
        part = part[file.write(part) :]


@dataclass(frozen=True)
class TensorFile:
    """A file of vectors, opened for reading."""

    path: Path
    descriptor: int
    places: dict[str, tuple[int, int]]
    """First byte and number of elements of each vector."""

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """
        Raises:
            ValueError: not a safetensors file of fp32 vectors.
        """
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return cls(path, descriptor, _places(descriptor))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            os.close(descriptor)
            raise ValueError(f"{path}: not a safetensors file of fp32 vectors ({error})") from None

    def close(self) -> None:
        os.close(self.descriptor)

    def copy(self, name: str, overlap: Overlap, target: np.ndarray) -> None:
        """Read what `overlap` says from vector `name` into `target`, and little else."""
        first, length = self.places[name]
        size = NUMBER.itemsize
        ends = overlap.source + overlap.length
        assert not len(ends) or ends[-1] <= length
        for span in _spans(overlap):
            begin, end = int(overlap.source[span.start]), int(ends[span.stop - 1])
            numbers = np.frombuffer(self._read(first + begin * size, (end - begin) * size), dtype=NUMBER)
            for i in range(span.start, span.stop):
                source, place, count = int(overlap.source[i]) - begin, int(overlap.target[i]), int(overlap.length[i])
                target[place : place + count] = numbers[source : source + count]

    def _read(self, offset: int, size: int) -> bytearray:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while len(view):
            count = os.preadv(self.descriptor, [view[:CHUNK]], offset)
            if count == 0:
                raise ValueError(f"{self.path}: ends before its time")
            offset, view = offset + count, view[count:]
        return buffer


def _spans(overlap: Overlap) -> Iterator[slice]:
    """Neighbours that are read in one go."""
    begin = 0
    for i in range(1, len(overlap.source) + 1):
        if i < len(overlap.source):
            gap = overlap.source[i] - overlap.source[i - 1] - overlap.length[i - 1]
            near = (
                gap * NUMBER.itemsize <= GAP
                and (overlap.source[i] + overlap.length[i] - overlap.source[begin]) * NUMBER.itemsize <= CHUNK
            )
            if near:
                continue
        yield slice(begin, i)
        begin = i


def _places(descriptor: int) -> dict[str, tuple[int, int]]:
    size = os.fstat(descriptor).st_size
    header_bytes = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 0 < header_bytes <= min(size - 8, MOST_HEADER_BYTES):
        raise ValueError("its header has no sensible length")
    header = json.loads(os.pread(descriptor, header_bytes, 8))
    places = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        (begin, end), (length,) = facts["data_offsets"], facts["shape"]
        if (
            facts["dtype"] != "F32"
            or not all(isinstance(n, int) for n in (begin, end, length))
            or not 0 <= begin <= end <= size - 8 - header_bytes
            or end - begin != length * NUMBER.itemsize
        ):
            raise ValueError(f"{name} is not where the header says")
        places[name] = (8 + header_bytes + begin, length)
    return places
