"""Documents of files, in blocks that any process can work on alone."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pretrain.errors import UserError, reason
from pretrain.place import this_node
from tokenizer.files import BOM, COMPRESSED, SAMPLE_BYTES, BadDocument, kind, line_end, lines_of, rows_of

BLOCK_BYTES = 2 * 2**20
"""Bytes of a block: a fraction of a second's work."""
OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Block:
    """Some documents of a file in a row, as they stand there."""

    file: int
    """Number of the file among the inputs."""
    number: int
    """Number of the block within the file."""
    first: int
    """Line (of Parquet: row) of the first document, counted from 1."""
    is_json: bool
    documents: tuple[bytes | None, ...]
    """None for a row without a text."""

    @property
    def name(self) -> str:
        return name_of(self)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(document or b"") for document in self.documents)

    def read(self, file: Path) -> Sequence[bytes | None]:
        """The documents."""
        return self.documents

    def lines_before(self, file: Path) -> int:
        return self.first - 1


@dataclass(frozen=True)
class Stretch:
    """A place of some documents in a plain file, in whole lines: whoever works on them reads them."""

    file: int
    number: int
    """Number among the stretches of the file."""
    is_json: bool
    begin: int
    """Bytes from the beginning of the file."""
    end: int
    state: tuple[int, int]
    """Size of the file in bytes when it was cut, and when it was last written to."""

    @property
    def name(self) -> str:
        return name_of(self)

    @property
    def size(self) -> int:
        return self.end - self.begin

    def read(self, file: Path) -> Sequence[bytes | None]:
        """The documents.

        Raises:
            UserError: the file cannot be read here, or is not as it was when it was cut.
        """
        with self._opened(file) as stream:
            stream.seek(self.begin)
            content = stream.read(self.size)
        if self.begin == 0:
            content = content.removeprefix(BOM)
        return [line.rstrip(b"\r\n") for line in content.removesuffix(b"\n").split(b"\n")]

    def lines_before(self, file: Path) -> int:
        """Counted only where somebody asks: for a document that cannot be read."""
        lines, left = 0, self.begin
        with self._opened(file) as stream:
            while left and (content := stream.read(min(left, 2**24))):
                lines, left = lines + content.count(b"\n"), left - len(content)
        return lines

    @contextmanager
    def _opened(self, file: Path) -> Iterator[BinaryIO]:
        """Any rank reads it, on any node, while other programs may write to it: places in it mean nothing then."""
        try:
            with file.open("rb") as stream:
                yield stream
                if state_of(os.fstat(stream.fileno())) == self.state:
                    return
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read on {this_node(os.environ)} ({reason(error)}); every rank reads files that are not"
                " compressed"
            ) from None
        raise UserError(f"{file}: was changed while it was read; encode it when it is complete")


def state_of(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


def name_of(block: "Block | Stretch") -> str:
    """Sorts as blocks follow one another."""
    return f"{block.file:06d}-{block.number:08d}"


def pieces(index: int, file: Path, block_bytes: int = BLOCK_BYTES) -> Iterator["Block | Stretch"]:
    """A file in parts to work on, in order, always the same. Of a plain file only the ends of lines are looked for; another can
    only be read as a stream.

    Raises:
        BadDocument: as `blocks`.
    """
    if not file.is_file() or file.stat().st_size == 0 or file.suffix in COMPRESSED or kind(file) == ".parquet":
        yield from blocks(index, file, block_bytes)
        return
    with file.open("rb") as stream:
        if line_end(stream.read(SAMPLE_BYTES), file) != b"\n":
            yield from blocks(index, file, block_bytes)
            return
    with file.open("rb") as stream:
        begin, number, state = 0, 0, state_of(os.fstat(stream.fileno()))
        size, _ = state
        while begin < size:
            stream.seek(begin + block_bytes - 1)
            stream.readline()
            end = min(stream.tell(), size)
            yield Stretch(index, number, kind(file) == ".jsonl", begin, end, state)
            begin, number = end, number + 1


def blocks(index: int, file: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The blocks of a file, in order, always the same; each ends with the document that reaches `block_bytes`.

    Raises:
        BadDocument: the file itself is damaged; what came before it has been given out.
    """
    is_json, first, number = kind(file) == ".jsonl", 1, 0
    held: list[bytes | None] = []
    size = 0
    try:
        for document in rows_of(file) if kind(file) == ".parquet" else lines_of(file):
            if first == 1 and not held and document is not None:
                document = document.removeprefix(BOM)
            held.append(document)
            size += len(document or b"") + 1  # or a file of empty lines would be one block
            if size >= block_bytes:
                yield Block(index, number, first, is_json, tuple(held))
                first, number, held, size = first + len(held), number + 1, [], 0
    except (UserError, BadDocument, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # every compression has exceptions of its own for what is damaged
        if held:
            yield Block(index, number, first, is_json, tuple(held))
        raise BadDocument(f"damaged or truncated after line {first + len(held) - 1} ({error or type(error).__name__})") from None
    if held:
        yield Block(index, number, first, is_json, tuple(held))


def text_of(document: bytes | None, is_json: bool) -> str:
    """The text of a document, which may be empty.

    Raises:
        BadDocument: it has none.
    """
    if document is None:
        raise BadDocument('no "text" in this row')
    if not document.strip():
        return ""
    try:
        if not is_json:
            return document.decode()
        value = json.loads(document)
        if not isinstance(value, dict) or "text" not in value:
            raise BadDocument('not JSON with a "text" field')
        text = value["text"]
        if not isinstance(text, str):
            raise BadDocument(f'"text" is not a string but {type(text).__name__}')
        text.encode()  # half a surrogate pair is JSON, and not text
        return text
    except BadDocument:
        raise
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise BadDocument(f"not UTF-8: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise BadDocument(f"not JSON: {error}") from None


def documents(files: Iterable[Path], passed_over: list[str] | None = None) -> Iterator[str]:
    """Texts of all documents in order; empty ones are left out.

    Args:
        passed_over: gets what cannot be read and why, with file and line number, instead of an error.

    Raises:
        UserError: a line that is not a document, with file and line number.
    """

    def tell(place: str, error: BadDocument) -> None:
        if passed_over is None:
            raise UserError(f"{place}: {error}; --on-error skip uses what can be read") from None
        passed_over.append(f"{place}: {error}")

    for index, file in enumerate(files):
        try:
            for block in blocks(index, file):
                for place, document in enumerate(block.documents, start=block.first):
                    try:
                        text = text_of(document, block.is_json)
                    except BadDocument as error:
                        tell(f"{file}: line {place}", error)
                        continue
                    if text.strip():
                        yield text
        except BadDocument as error:
            tell(str(file), error)
