"""What can be read as text, and what becomes of what cannot."""

import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import UserError
from tokenizer import load_tokenizer
from tokenizer.encode import encode
from tokenizer.text import blocks, documents, pieces, text_of

GOOD = b'{"text": "fine"}\n'


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    "name, content, reason, kept",
    [
        ("x.jsonl", GOOD + b'{"txt": "no"}\n' + GOOD, 'line 2: not JSON with a "text" field', 2),
        ("x.jsonl", GOOD + b'{"text": 3}\n' + GOOD, 'line 2: "text" is not a string but int', 2),
        ("x.jsonl", GOOD + b'{"text": \n' + GOOD, "line 2: not JSON", 2),
        ("x.jsonl", GOOD + b'{"text": "\xff"}\n' + GOOD, "line 2: not UTF-8", 2),
        ("x.jsonl", GOOD + rb'{"text": "\ud800"}' + b"\n" + GOOD, "line 2: not UTF-8", 2),
        ("x.jsonl", GOOD + b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n" + GOOD, "line 2: not JSON", 2),
        ("x.txt", b"fine\n\xff\xfe\nfine\n", "line 2: not UTF-8", 2),
        ("x.jsonl.gz", gzip.compress(GOOD * 40_000)[:-20], "damaged or truncated after line", None),
        ("x.jsonl.xz", lzma.compress(GOOD * 40_000)[:-20], "damaged or truncated after line", None),
        ("x.jsonl.zst", zstandard.compress(GOOD * 40_000)[:-3], "damaged or truncated after line", None),
        (
            "x.txt.zst",
            zstandard.compress(GOOD * 40_000) + zstandard.compress(os.urandom(400_000).hex().encode())[:-20_000],
            "middle of a frame",
            None,
        ),
        ("x.parquet", b"PAR1 but not really", "damaged or truncated after line 0", 0),
        ("x.txt", "one line\nand another\n".encode("utf-16"), "UTF-16 text, and UTF-8 is expected; iconv -f UTF-16", 0),
        ("x.txt", "one line\nand another\n".encode("utf-16-le"), "UTF-16 text, and UTF-8 is expected; iconv -f UTF-16", 0),
        ("x.txt", "one line\nand another\n".encode("utf-16-be"), "UTF-16 text, and UTF-8 is expected; iconv -f UTF-16", 0),
        (
            "x.txt.gz",
            gzip.compress("one line\nand another\n".encode("utf-16-le"), mtime=0),
            "UTF-16 text, and UTF-8 is expected",
            0,
        ),
        ("x.jsonl", '{"text": "fine"}\n'.encode("utf-16"), "UTF-16 text, and UTF-8 is expected", 0),
        ("x.jsonl.gz", b"", "it is empty, which no compressed file is", 0),
        ("x.jsonl.zst", b"", "it is empty, which no compressed file is", 0),
    ],
)
def test_what_cannot_be_read_is_told_or_counted(home, tmp_path, name, content, reason, kept):
    tokenizer = load_tokenizer(home / "tokenizer")
    file = write(tmp_path, name, content)
    with pytest.raises(UserError) as told:
        encode(file, tokenizer, tmp_path / "out")
    assert f"{file}: " in str(told.value) and reason in str(told.value) and "--on-error skip" in str(told.value)
    assert not (tmp_path / "out.bin").exists()
    if kept == 0:
        with pytest.raises(UserError, match="holds no text"):
            encode(file, tokenizer, tmp_path / "out", "skip")
        return
    manifest = encode(file, tokenizer, tmp_path / "out", "skip")
    (bad,) = manifest["bad_documents"]
    assert bad["file"] == file and reason in (f"line {bad['line']}: " if bad["line"] else "") + bad["reason"]
    assert manifest["documents"] == kept if kept is not None else 1000 < manifest["documents"] <= 40_000


def test_empty_documents_are_counted_and_left_out(home, tmp_path):
    file = write(tmp_path, "x.jsonl", GOOD + b'{"text": ""}\n\n{"text": " \\n"}\n' + GOOD)
    manifest = encode(file, load_tokenizer(home / "tokenizer"), tmp_path / "out")
    assert (manifest["documents"], manifest["empty_documents"], manifest["bad_documents"]) == (2, 3, [])


def test_one_row_of_parquet_that_is_not_utf8_is_one_bad_document(home, tmp_path):
    rows = pyarrow.array([b"good", b"bad \xff", *[b"more %d" % n for n in range(600)]], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "x.parquet")
    manifest = encode(str(tmp_path / "x.parquet"), load_tokenizer(home / "tokenizer"), tmp_path / "out", "skip")
    assert manifest["documents"] == 601 and [bad["line"] for bad in manifest["bad_documents"]] == [2]


def test_a_column_of_categories_and_a_large_window_can_be_read(home, tmp_path):
    texts = [f"text {n % 7}" for n in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts).dictionary_encode()}), tmp_path / "x.parquet")
    assert list(documents([tmp_path / "x.parquet"])) == texts
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=30))
    (tmp_path / "x.txt.zst").write_bytes(wide.compress(b"\xef\xbb\xbfwith a mark\nand without\n"))
    assert list(documents([tmp_path / "x.txt.zst"])) == ["with a mark", "and without"]


def test_a_file_name_of_any_bytes_can_be_listed(home, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    Path(name).write_bytes(GOOD + b"{}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tokenizer",
            "encode",
            "--input",
            name,
            "--tokenizer",
            home / "tokenizer",
            "--out",
            tmp_path / "out",
            "--on-error",
            "skip",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1 documents" in done.stdout, done.stderr


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda line: line.translate(None, b"\n\r\0\xff\xfe")), max_size=30),
    end=st.sampled_from([b"\n", b"\r\n"]),
    block=st.integers(1, 60),
    mark=st.booleans(),
    closed=st.booleans(),
)
def test_a_plain_file_is_cut_between_lines_and_nothing_is_lost(tmp_path_factory, lines, end, block, mark, closed):
    file = tmp_path_factory.mktemp("plain") / "x.txt"
    content = b"\xef\xbb\xbf" * mark + end.join(lines) + end * closed
    file.write_bytes(content)
    found = list(pieces(0, file, block))
    assert [b"".join(content[piece.begin : piece.end] for piece in found), [piece.number for piece in found]] == [
        content,
        list(range(len(found))),
    ]
    assert all(piece.size >= block for piece in found[:-1]) and all(content[piece.end - 1] == ord("\n") for piece in found[:-1])
    streamed = [document for part in blocks(0, file, block) for document in part.documents]
    assert [document for piece in found for document in piece.read(file)] == streamed
    at = 0
    for piece in found:
        assert piece.lines_before(file) == at
        at += len(piece.read(file))


@pytest.mark.parametrize("change", ["replaced", "longer", "shorter", "gone"])
def test_a_plain_file_that_changes_while_it_is_read_is_an_error(tmp_path, change):
    file = tmp_path / "x.txt"
    file.write_bytes(b"one line\n" * 1000)
    first, second, *_ = pieces(0, file, 1000)
    assert len(first.read(file)) == 112
    if change == "replaced":
        (tmp_path / "new").write_bytes(b"a line of more words\n" * 1000)
        os.replace(tmp_path / "new", file)
    elif change == "longer":
        with file.open("ab") as stream:
            stream.write(b"more\n")
    elif change == "shorter":
        os.truncate(file, 500)
    else:
        file.unlink()
    complaint = "x.txt: cannot be read on .*No such file" if change == "gone" else "x.txt: was changed while it was read"
    for read in (second.read, second.lines_before):
        with pytest.raises(UserError, match=complaint):
            read(file)


def test_a_compressed_file_of_empty_lines_is_many_blocks(tmp_path):
    file = Path(write(tmp_path, "x.txt.gz", gzip.compress(b"\n" * 5000)))
    assert len(list(blocks(0, file, 1000))) == 5


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.jsonl"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
def test_lines_end_as_on_any_system(tmp_path, name, end, last):
    lines = [b'{"text": "one"}', b'{"text": "two"}', b'{"text": "three"}'] if "json" in name else [b"one", b"two", b"three"]
    content = end.join(lines) + (end if last else b"")
    file = write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    assert list(documents([Path(file)])) == ["one", "two", "three"]
    read = [document for piece in pieces(0, Path(file)) for document in piece.read(Path(file))]
    assert [text_of(document, "json" in name) for document in read] == ["one", "two", "three"]


def test_a_carriage_return_within_lines_ends_none(tmp_path):
    assert list(documents([Path(write(tmp_path, "x.txt", b"one\rtwo\nthree\n"))])) == ["one\rtwo", "three"]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_a_first_line_of_any_length_may_hold_a_carriage_return(tmp_path, name):
    content = b"a book " * 300_000 + b"\rgoes on\nanother\n"
    file = write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    assert [len(text) for text in documents([Path(file)])] == [2_100_008, 7]
    old = content.replace(b"\n", b"\r")
    file = write(tmp_path, name, gzip.compress(old) if name.endswith(".gz") else old)
    assert [len(text) for text in documents([Path(file)])] == [2_100_000, 7, 7]


def test_a_glob_that_the_shell_has_made_names_of_is_taken(home, tmp_path):
    for name in ("b.txt", "a.txt"):
        write(tmp_path, name, b"text\n")
    tool = [sys.executable, "-m", "tokenizer", "encode", "--tokenizer", str(home / "tokenizer"), "--out", str(tmp_path / "out")]
    done = subprocess.run([*tool, "--input", str(tmp_path / "b.txt"), str(tmp_path / "a.txt")], capture_output=True, text=True)
    assert done.returncode == 0 and "2 documents" in done.stdout, done.stderr
