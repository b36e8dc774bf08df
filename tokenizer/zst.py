"""Reading .zst files to their end: the library's own reader takes one that was cut off for a whole one."""

import io
from pathlib import Path

import zstandard

LARGEST_WINDOW = 2**31
"""Bytes; what `zstd --long=31` asks for. Memory is taken only by files that were written so."""
READ_BYTES = 2**18


class ZstdFile(io.RawIOBase):
    """The content of a file of one or several frames.

    Raises, in reading:
        EOFError: the file ends within a frame.
        zstandard.ZstdError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._read = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the only kind that it is given
        while not self._ready:
            data = self._read or self._file.read(READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed file ends in the middle of a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
            self._ready, self._read = self._frame.decompress(data), b""
            if self._frame.eof:
                self._read, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
