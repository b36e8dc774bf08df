"""Files of text: which can be read, and their lines or rows, whatever compresses them and however lines end."""

import glob
import gzip
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from pretrain.errors import UserError

COMPRESSED = (".gz", ".xz", ".zst")
SEEN_PER_COMPRESSED = 3.5
"""Bytes of text from a byte of a compressed file; a guess, for the time that is left."""
KINDS = (".jsonl", ".txt")
BOM = b"\xef\xbb\xbf"
"""Bytes without a meaning in UTF-8; some editors begin a file with it."""
READABLE = ".jsonl or .txt (each also .gz, .xz, .zst) or .parquet"
SAMPLE_BYTES, READ_BYTES = 2**20, 2**16
"""Bytes of a file from which it is told how its lines end, and that are read at a time."""


class BadDocument(ValueError):
    """Says why a line is not a document."""


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


def lines_of(file: Path) -> Iterator[bytes]:
    """Lines of a file, without their ends; those before a place where it is damaged, and then the error."""
    with _open(file) as opened:
        stream, begin, damage = cast(io.BufferedReader, opened), b"", None
        try:
            while len(begin) < SAMPLE_BYTES and (more := stream.read1(READ_BYTES)):
                begin += more
        except Exception as error:
            damage = error
        end = line_end(begin, file)
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


def line_end(begin: bytes, file: Path) -> bytes:
    """Return what lines end with in a file that begins so: a line feed, or, if there is none in it, a carriage return, as old
    Macs wrote.

    Raises:
        BadDocument: it is UTF-16, every second byte of which is NUL in many languages.
    """
    even, odd = begin[0::2].count(0), begin[1::2].count(0)
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")) or max(even, odd) > len(begin) / 8:
        kind = "UTF-16" if begin.startswith((b"\xff\xfe", b"\xfe\xff")) else "UTF-16BE" if even > odd else "UTF-16LE"
        raise BadDocument(f"UTF-16 text, and UTF-8 is expected; iconv -f {kind} -t UTF-8 IN > OUT converts it")
    if b"\n" in begin:
        return b"\n"
    returns = b"\r" in begin
    if len(begin) >= SAMPLE_BYTES:  # its first line may just be long
        with _open(file) as opened, suppress(Exception):  # if it is damaged, what comes before counts
            stream = cast(io.BufferedReader, opened)
            while more := stream.read1(READ_BYTES):
                if b"\n" in more:
                    return b"\n"
                returns = returns or b"\r" in more
    return b"\r" if returns else b"\n"


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


def records_of(file: Path) -> Iterator[dict[str, object]]:
    """All fields of every line of a JSON lines file, or of every row of a Parquet file.

    Raises:
        BadDocument: damaged, or a line that is not a JSON object, with its number.
        UserError: neither kind of file.
    """
    if kind(file) not in (".jsonl", ".parquet"):
        raise UserError(f"{file}: expected .jsonl (also .gz, .xz, .zst) or .parquet")
    number = 0
    try:
        if kind(file) == ".parquet":
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
                yield from batch.to_pylist()
            return
        for number, line in enumerate(lines_of(file), start=1):
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadDocument(f"line {number}: not JSON: {error}") from None
            if not isinstance(record, dict):
                raise BadDocument(f"line {number}: not a JSON object but {type(record).__name__}")
            yield record
    except (BadDocument, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # every compression has exceptions of its own for what is damaged
        raise BadDocument(f"damaged or truncated after line {number} ({error or type(error).__name__})") from None


def rows_of(file: Path) -> Iterator[bytes | None]:
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


def is_unicode(text: str) -> bool:
    """Return whether a text can be written down: JSON and terminals can hold halves of characters, which nothing encodes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def expected_bytes(files: Sequence[Path]) -> float:
    """Bytes of text in files, as far as their sizes tell: for the time that is left."""
    packed = (*COMPRESSED, ".parquet")
    return sum(file.stat().st_size * (SEEN_PER_COMPRESSED if file.suffix in packed else 1) for file in files)
