"""Many processes, killed ones, blocks of another input: always the same token files, or none."""

import gzip
import hashlib
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from pretrain.errors import UserError
from tests.unit.tokenizer.test_text import GOOD, write
from tokenizer import load_tokenizer
from tokenizer.encode import _plan, encode
from tokenizer.files import find_inputs
from tokenizer.parts import Parts
from tokenizer.sentence_pieces import parts_of
from tokenizer.text import Stretch, blocks, documents, pieces
from tokenizer.train import sample

MPIEXEC = Path(sys.executable).with_name("mpiexec")


@pytest.fixture(scope="module")
def texts(home) -> list[str]:
    """Some 9 MB, one document much longer than a block."""
    own = [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]
    many = [f"{number} {own[number % len(own)]}" for number in range(1600)]
    return [*many[:300], "".join(many[:450]), *many[300:]]


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory) -> Path:
    """The texts over files of very different sizes and of every kind."""
    folder = tmp_path_factory.mktemp("corpus")
    cuts = [0, 20, 40, 1100, 1150, 1300, 1450, len(texts)]
    parts = [texts[a:b] for a, b in zip(cuts, cuts[1:])]
    rows = ["".join(json.dumps({"id": 1, "text": text}) + "\n" for text in part).encode() for part in parts]
    (folder / "a.jsonl").write_bytes(rows[0])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows[1]))
    (folder / "c.jsonl.xz").write_bytes(lzma.compress(rows[2], preset=0))
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(rows[3]))
    pyarrow.parquet.write_table(
        pyarrow.table({"n": range(len(parts[4])), "text": parts[4]}), folder / "e.parquet", row_group_size=37
    )
    (folder / "f.txt").write_text("".join(" ".join(text.split()) + "\n" for text in parts[5]))
    (folder / "g.txt.gz").write_bytes(gzip.compress("".join(" ".join(text.split()) + "\n" for text in parts[6]).encode()))
    return folder


def command(corpus: Path, home: Path, out: Path, ranks: int = 1, *words: str) -> list[str]:
    launcher = [str(MPIEXEC), "-n", str(ranks)] if ranks > 1 else []
    encode = ["-m", "tokenizer", "encode", "--input", f"{corpus}/*", "--tokenizer", str(home / "tokenizer"), "--out", str(out)]
    return [*launcher, sys.executable, *encode, *words]


def digests(prefix: Path) -> dict[str, str]:
    return {
        end: hashlib.sha256(prefix.with_name(prefix.name + end).read_bytes()).hexdigest() for end in (".bin", ".idx", ".json")
    }


@pytest.fixture(scope="module")
def alone(corpus, home, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("alone") / "x"
    done = subprocess.run(command(corpus, home, out), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1,601 documents" in done.stdout and "0 empty and 0 bad documents" in done.stdout
    assert sorted(p.name for p in out.parent.iterdir()) == ["x.bin", "x.idx", "x.json"]
    return digests(out)


def test_every_kind_of_file_gives_its_documents(corpus, texts):
    assert list(documents(find_inputs(f"{corpus}/*"))) == [*texts[:1300], *(" ".join(text.split()) for text in texts[1300:])]


def test_the_files_are_megatrons_own(corpus, home, alone, tmp_path):
    processor = load_tokenizer(home / "tokenizer").processor
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint16)
    for text in documents(find_inputs(f"{corpus}/*")):
        ids = sum((processor.encode(part) for part in parts_of(text)), [])
        builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(str(tmp_path / "m.idx"))
    for end in (".bin", ".idx"):
        assert hashlib.sha256((tmp_path / f"m{end}").read_bytes()).hexdigest() == alone[end]


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_writes_the_same_bytes(corpus, home, alone, tmp_path, ranks):
    done = subprocess.run(command(corpus, home, tmp_path / "x", ranks), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1,601 documents") == 1, "one rank speaks"
    assert digests(tmp_path / "x") == alone
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.idx", "x.json"]


def encoders(process: subprocess.Popen) -> list[psutil.Process]:
    return [
        p for p in psutil.Process(process.pid).children(recursive=True) if "tokenizer" in p.cmdline() and "python" in p.name()
    ]


@pytest.mark.dist
@pytest.mark.parametrize("round", range(3))
def test_a_killed_rank_leaves_nothing_whole_and_the_same_command_goes_on(corpus, home, alone, tmp_path, round):
    out, chance = tmp_path / "x", random.Random(f"{round} {os.getpid()}")
    process = subprocess.Popen(command(corpus, home, out, 4), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parts, enough = tmp_path / "x.parts", chance.randrange(1, 5)
    while not parts.exists() or len(list(parts.glob("*.len"))) < enough:
        assert process.poll() is None
        time.sleep(0.002)
    chance.choice(encoders(process)).kill()
    process.communicate(timeout=60)
    assert process.returncode != 0, "the others go down with it"
    assert not any(out.with_name("x" + end).exists() for end in (".bin", ".idx", ".json"))
    before = {file.name: file.stat().st_mtime_ns for file in parts.glob("*.bin")}
    done = subprocess.run(command(corpus, home, out, chance.choice([1, 2])), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert before and "MB were finished before" in done.stdout
    assert digests(out) == alone


KILLED_AT = """
import os, signal, sys
from unittest.mock import patch
from tokenizer.__main__ import main

def die(*args):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return original(*args)

where, left = sys.argv.pop(1), int(sys.argv.pop(1))
module, name = where.rsplit(".", 1)
owner = getattr(__import__("tokenizer." + module.split(".")[0], fromlist=["x"]), module.split(".")[1])
original = getattr(owner, name)
with patch.object(owner, name, die):
    main()
"""


@pytest.mark.parametrize(
    "where, calls",
    [("parts.Parts.copy", 0), ("parts.Parts.write_index", 0), *(("encode.os.replace", n) for n in (-1, 0, 1, 2, 3))],
)
def test_a_kill_while_blocks_are_put_together(corpus, home, alone, tmp_path, where, calls):
    """At every point of the assembly: before each file gets its name, and before the blocks go."""
    out = tmp_path / "x"
    words, last = command(corpus, home, out)[3:], -1
    if where == "encode.os.replace":  # `os` is one module for all: each of the blocks has been renamed too
        before = 1 + 3 * sum(len(list(pieces(0, file))) for file in find_inputs(f"{corpus}/*"))
        calls, last = calls + before, before + 3
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT, where, str(calls), *words], capture_output=True, text=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if calls == last:
        assert digests(out) == alone and (tmp_path / "x.parts").exists()
        done = subprocess.run(command(corpus, home, out), capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and "x.idx exists" in done.stderr
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.idx", "x.json"] and digests(out) == alone
        return
    assert not out.with_name("x.idx").exists(), "nothing looks finished"
    done = subprocess.run(command(corpus, home, out), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "MB were finished before" in done.stdout and digests(out) == alone
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.idx", "x.json"]


def test_nothing_of_somebody_elses_is_removed_or_overwritten(home, tmp_path):
    tokenizer, file = load_tokenizer(home / "tokenizer"), write(tmp_path, "x.jsonl", GOOD)
    (tmp_path / "a.parts").mkdir()
    write(tmp_path / "a.parts", "mine.jsonl", GOOD)
    with pytest.raises(UserError, match="a.parts: is for blocks of documents, and holds mine.jsonl"):
        encode(file, tokenizer, tmp_path / "a")
    assert (tmp_path / "a.parts" / "mine.jsonl").exists()
    write(tmp_path, "b.json", b"mine")
    with pytest.raises(UserError, match="b.json exists, and was not left by a run that was killed"):
        encode(file, tokenizer, tmp_path / "b")
    assert (tmp_path / "b.json").read_bytes() == b"mine"
    (tmp_path / ".c.parts.removed").mkdir()
    encode(file, tokenizer, tmp_path / "c")
    assert not (tmp_path / ".c.parts.removed").exists(), "left by a kill"


def test_finished_blocks_of_a_changed_file_are_not_used(home, tmp_path):
    tokenizer, pattern = load_tokenizer(home / "tokenizer"), f"{tmp_path}/*.jsonl"
    write(tmp_path, "x.jsonl", GOOD)
    write(tmp_path, "y.jsonl", GOOD + b"{}\n")
    with pytest.raises(UserError, match="y.jsonl: line 2"):
        encode(pattern, tokenizer, tmp_path / "out")
    kept = (tmp_path / "out.parts" / "000000-00000000.bin").stat().st_mtime_ns
    write(tmp_path, "y.jsonl", GOOD * 3)
    write(tmp_path, "z.jsonl", b"{}\n")
    with pytest.raises(UserError, match="out.parts: left by a run on other inputs"):
        encode(pattern, tokenizer, tmp_path / "out")
    (tmp_path / "z.jsonl").unlink()
    assert (tmp_path / "out.parts" / "000000-00000000.bin").stat().st_mtime_ns == kept
    assert encode(pattern, tokenizer, tmp_path / "out")["documents"] == 4
    with pytest.raises(UserError, match="out.idx exists"):
        encode(pattern, tokenizer, tmp_path / "out")
    write(tmp_path, "y.jsonl", GOOD * 2 + b"{}\n")
    with pytest.raises(UserError, match="y.jsonl: line 3"):
        encode(pattern, tokenizer, tmp_path / "out2")
    write(tmp_path, "x.jsonl", GOOD * 5)
    assert encode(pattern, tokenizer, tmp_path / "out2", "skip")["documents"] == 7


@pytest.mark.parametrize("damage", ["no plan", "damaged plan", "empty block", "block with bad documents"])
def test_blocks_that_cannot_be_trusted_are_made_again(home, tmp_path, damage, monkeypatch):
    tokenizer = load_tokenizer(home / "tokenizer")
    file = write(tmp_path, "x.jsonl", GOOD * 50 + (b"{}\n" if damage == "block with bad documents" else b""))
    parts = tmp_path / "out.parts"
    with monkeypatch.context() as patched:  # ends before the token files are put together
        patched.setattr(Parts, "copy", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            encode(file, tokenizer, tmp_path / "out", "skip")
    (block,) = parts.glob("*.bin")
    if damage == "no plan":
        (parts / "plan.json").unlink()
        file = write(tmp_path, "x.jsonl", GOOD)
    elif damage == "damaged plan":
        (parts / "plan.json").write_text("")
    elif damage == "empty block":
        block.write_bytes(b"")
    if damage == "block with bad documents":
        with pytest.raises(UserError, match="line 51"):
            encode(file, tokenizer, tmp_path / "out", "stop")
        return
    manifest = encode(file, tokenizer, tmp_path / "out")
    assert manifest["documents"] == (1 if damage == "no plan" else 50)
    assert (tmp_path / "out.bin").stat().st_size == manifest["tokens"] * 2


def test_blocks_of_a_large_input_are_larger_and_a_restart_keeps_their_size(home, tmp_path):
    tokenizer = load_tokenizer(home / "tokenizer")
    file = Path(write(tmp_path, "x.txt", b""))
    for size, block in ((10**6, 2 * 2**20), (10**11, 5 * 10**6), (10**13, 32 * 2**20)):
        os.truncate(file, size)
        assert _plan([file], tokenizer)["block_bytes"] == block
    parts = Parts.of(tmp_path / "out", 600)
    assert parts.claim(_plan([file], tokenizer))["block_bytes"] == 32 * 2**20
    os.truncate(file, 10**6)
    assert parts.claim(_plan([file], tokenizer))["block_bytes"] == 32 * 2**20


def test_blocks_are_the_same_every_time_and_hold_every_line(corpus):
    for index, file in enumerate(find_inputs(f"{corpus}/*")):
        found = list(blocks(index, file))
        assert [b.number for b in found] == list(range(len(found)))
        assert [b.first for b in found] == [1 + sum(len(b.documents) for b in found[:n]) for n in range(len(found))]
        assert found == list(blocks(index, file))
    assert any(len(list(blocks(0, file))) > 2 for file in find_inputs(f"{corpus}/*.xz"))


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_plain_file_of_many_blocks_and_its_bad_lines(texts, home, tmp_path, ranks):
    rows = [json.dumps({"text": text}) for text in texts[:1100]]
    bad = {3, 500, 1099}
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.jsonl").write_text("".join(("{}" if number in bad else row) + "\n" for number, row in enumerate(rows)))
    assert len([piece for piece in pieces(0, folder / "x.jsonl") if isinstance(piece, Stretch)]) >= 3
    done = subprocess.run(
        command(folder, home, tmp_path / "out", ranks, "--on-error", "skip"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert [entry["line"] for entry in manifest["bad_documents"]] == [4, 501, 1100] and manifest["documents"] == 1097
    alone = encode(str(folder / "x.jsonl"), load_tokenizer(home / "tokenizer"), tmp_path / "alone", "skip")
    assert alone == manifest
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "alone.bin").read_bytes()
    told = subprocess.run(command(folder, home, tmp_path / "again", ranks), capture_output=True, text=True, timeout=300)
    assert told.returncode == 2 and told.stderr.count("error: ") == 1 and "x.jsonl: line " in told.stderr
    assert int(told.stderr.partition("x.jsonl: line ")[2].partition(":")[0]) in {4, 501, 1100}


def test_blocks_of_another_version_are_told_apart_from_those_of_other_inputs(home, tmp_path):
    tokenizer = load_tokenizer(home / "tokenizer")
    file = Path(write(tmp_path, "x.txt", b"a line\n"))
    plan = _plan([file], tokenizer)
    parts = Parts.of(tmp_path / "out", 600)
    parts.claim(plan | {"files": [["z.txt", 7, 1]]})
    parts.claim(plan | {"cut": 1})  # nothing was made of the others
    (parts.folder / "000000-00000000.len").write_bytes(b"")
    with pytest.raises(UserError, match="left by another version of this program"):
        parts.claim(plan)
    with pytest.raises(UserError, match="left by a run on other inputs"):
        parts.claim(plan | {"cut": 1, "files": [["y.txt", 7, 1]]})


@pytest.mark.dist
def test_a_bad_line_under_mpi_is_told_once(home, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", "x.jsonl", GOOD * 300_000 + b"{}\n" + GOOD)
    done = subprocess.run(command(tmp_path / "in", home, tmp_path / "x", 3), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "line 300001" in done.stderr, done.stderr


def test_a_sample_is_of_the_stated_size_the_same_every_time_and_from_everywhere(texts):
    some = sample(texts, 1_000_000)
    assert some == sample(texts, 1_000_000)
    assert 800_000 < sum(len(text.encode()) for text in some) <= 1_000_000
    places = [texts.index(text) for text in some]
    assert places == sorted(places) and min(places) < 300 and max(places) > 1300
    assert sample(["x" * 50], 10) == ["x" * 50]
