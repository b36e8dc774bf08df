"""Documents from files: lines of JSON or text, compressed or not, and Parquet; in blocks that any process can work on alone."""

import glob
import gzip
import io
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Literal, cast

from pretrain.errors import UserError, reason
from pretrain.place import this_node

BLOCK_BYTES = 2 * 2**20
"""Bytes of a block: a fraction of a second's work."""
COMPRESSED = (".gz", ".xz", ".zst")
KINDS = (".jsonl", ".txt")
SAMPLE_BYTES, READ_BYTES = 2**20, 2**16
"""Bytes of a file from which it is told how its lines end, and that are read at a time."""
BOM = b"\xef\xbb\xbf"
"""Bytes without a meaning in UTF-8; some editors begin a file with it."""
OnError = Literal["stop", "skip"]
READABLE = ".jsonl or .txt (each also .gz, .xz, .zst) or .parquet"


class BadDocument(ValueError):
    """Says why a line is not a document."""


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


def find_inputs(patterns: str | Sequence[str]) -> list[Path]:
    """Files of a glob, or of several, as a shell makes of one that was not quoted; sorted.

    Raises:
        UserError: no file, or one of a kind that cannot be read.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found: list[str] = []
    for pattern in patterns:
        matching = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        if not matching:
            raise UserError(f"--input {pattern}: no such file")
        found += matching
    files = [Path(name) for name in sorted(set(found)) if not Path(name).is_dir()]
    broken = [file for file in files if not file.exists()]
    if broken:
        raise UserError(f"{broken[0]}: a broken link; fix or remove it")
    if not files:
        raise UserError(f"--input {' '.join(patterns)}: no such file")
    wrong = [file for file in files if kind(file) is None]
    if wrong:
        raise UserError(f"{wrong[0]}: cannot be read; expected {READABLE}")
    return files


def kind(file: Path) -> str | None:
    """`.jsonl`, `.txt` or `.parquet`, whatever compresses it; None for others."""
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    if file.suffix == ".parquet":
        return ".parquet"
    return name.suffix if name.suffix in KINDS else None


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
        if _line_end(stream.read(SAMPLE_BYTES)) != b"\n":
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
        for document in _rows(file) if kind(file) == ".parquet" else _lines(file):
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


def _lines(file: Path) -> Iterator[bytes]:
    """Lines of a file, without their ends; those before a place where it is damaged, and then the error."""
    with _open(file) as opened:
        stream, begin, damage = cast(io.BufferedReader, opened), b"", None
        try:
            while len(begin) < SAMPLE_BYTES and (more := stream.read1(READ_BYTES)):
                begin += more
        except Exception as error:
            damage = error
        end = _line_end(begin)
        *lines, rest = begin.split(end)
        yield from (line.rstrip(b"\r\n") for line in lines)
        if damage is not None:
            raise damage
        following = stream if end == b"\n" else _ended_by(end, stream)
        if rest := rest + next(following, b""):
            yield rest.rstrip(b"\r\n")
        for line in following:
            yield line.rstrip(b"\r\n")


def _ended_by(end: bytes, stream: io.BufferedReader) -> Iterator[bytes]:
    """Lines of a stream, from where it stands, that end with something else than a line feed."""
    held: list[bytes] = []
    while more := stream.read1(READ_BYTES):
        first, *others = more.split(end)
        held.append(first)
        for other in others:
            yield b"".join(held) + end
            held = [other]
    if last := b"".join(held):
        yield last


def _line_end(begin: bytes) -> bytes:
    """Return what lines end with in a file that begins so: a line feed, or a carriage return alone, as old Macs wrote.

    Raises:
        BadDocument: it is UTF-16, every second byte of which is NUL in many languages.
    """
    even, odd = begin[0::2].count(0), begin[1::2].count(0)
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")) or max(even, odd) > len(begin) / 8:
        raise BadDocument("UTF-16 text, and UTF-8 is expected; iconv -f UTF-16 -t UTF-8 IN > OUT converts it")
    return b"\r" if b"\r" in begin and b"\n" not in begin else b"\n"


def _open(file: Path) -> IO[bytes]:
    if file.suffix in COMPRESSED and file.stat().st_size == 0:
        raise EOFError("it is empty, which no compressed file is")
    if file.suffix == ".gz":
        return cast(IO[bytes], gzip.open(file, "rb"))
    if file.suffix == ".xz":
        return cast(IO[bytes], lzma.open(file, "rb"))
    if file.suffix == ".zst":
        from tokenizer.zst import ZstdFile

        return io.BufferedReader(ZstdFile(file), 2**20)
    return file.open("rb", buffering=2**20)


def _rows(file: Path) -> Iterator[bytes | None]:
    """The column "text" of a Parquet file, a group of rows at a time."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    if "text" not in table.schema_arrow.names:
        raise UserError(f'{file}: has no column "text" but {", ".join(table.schema_arrow.names)}')
    kind = table.schema_arrow.field("text").type
    plain = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(plain) or pyarrow.types.is_large_string(plain)):
        raise UserError(f'{file}: its column "text" holds {kind}, not strings')
    raw = pyarrow.large_binary() if pyarrow.types.is_large_string(plain) else pyarrow.binary()
    for batch in table.iter_batches(batch_size=256, columns=["text"]):
        column = batch.column(0)
        column = column.dictionary_decode() if pyarrow.types.is_dictionary(kind) else column
        for value in column.view(raw):  # as bytes, so that one row that is not UTF-8 is one bad document
            yield value.as_py()
