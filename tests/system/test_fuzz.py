"""Damaged and mutilated input for minutes: one-line errors, no traceback, no hang, no file left that looks whole.

FUZZ_SECONDS sets the time of each; the cases are the same every time, as far as the time reaches.
"""

import gzip
import hashlib
import json
import lzma
import os
import random
import shutil
import signal
import string
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.find import verified
from pretrain.checkpoint.reader import Reader
from pretrain.config.read import DS_CONFIGS, read_run
from pretrain.data.loader import open_data
from pretrain.errors import UserError
from pretrain.plan.warnings import warnings
from tests.support.runs import train
from tokenizer.encode import encode
from tokenizer.load import load_tokenizer

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))
CASE_SECONDS = 30
"""Longest that one case may take; some are large."""
VALUES = [
    "",
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "nan",
    "[]",
    "{}",
    "9" * 60,
    "1e12",
    "auto",
    "'x'",
    "\u2192",
    "0.5",
    "[[1]]",
    "{a: 1}",
]


@contextmanager
def within(seconds: int):
    def late(number, frame):
        raise AssertionError(f"a case takes longer than {seconds} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def fuzz(seed: int, case: Callable[[random.Random], None]) -> None:
    """Cases one after the other until the time is up, each from a number of its own, which a failure names."""
    deadline, number, refused = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < deadline:
        try:
            with within(CASE_SECONDS):
                case(random.Random(f"{seed}-{number}"))
        except UserError as error:
            refused += 1
            assert str(error).strip() and "\n" not in str(error) and "None" not in str(error), f"case {number}: {error!r}"
        except BaseException as error:
            raise AssertionError(f"case {number} of seed {seed}: {type(error).__name__}: {error}") from error
        number += 1
    assert refused > number / 20, "most of the damage is none"


def spoilt(content: bytes, draw: random.Random) -> bytes:
    """The same with bytes changed, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        place, size = draw.randrange(len(data) + 1), draw.choice([1, 1, 4, 30])
        kind = draw.randrange(4)
        if kind == 0:
            data[place : place + size] = draw.randbytes(size)
        elif kind == 1:
            del data[place : place + size]
        elif kind == 2:
            data[place:place] = data[place : place + size]
        else:
            data[place:place] = draw.choice([b"\0", b"\xff\xfe", b"\r", b"\n", b'"', b"{", b"[", b": ", b"&a ", b"*a", b"!!"])
    return bytes(data)


def other_values(text: str, draw: random.Random) -> str:
    """The same lines with some values exchanged for others, or some keys misspelt."""
    lines = text.splitlines()
    for _ in range(draw.choice([1, 1, 3])):
        place = draw.randrange(len(lines))
        key, colon, value = lines[place].partition(":")
        comma = "," if value.rstrip().endswith(",") else ""
        if draw.random() < 0.7:
            lines[place] = f"{key}{colon} {draw.choice(VALUES)}{comma}"
        else:
            lines[place] = f"{key}{draw.choice(string.ascii_letters)}{colon}{value}"
    return "\n".join(lines)


def test_recipes_and_json(tmp_path):
    shipped = [(path, DS_CONFIGS / f"{path.stem}.json") for path in Path("pretrain/recipes").glob("*.yaml")]

    def case(draw: random.Random) -> None:
        files = draw.choice(sorted(shipped))
        for file, name in zip(files, ("x.yaml", "x.json")):
            text = file.read_text()
            if draw.random() < 0.6:
                text = other_values(text, draw) if draw.random() < 0.6 else spoilt(text.encode(), draw).decode(errors="replace")
            (tmp_path / name).write_text(text)
        run = read_run(str(tmp_path / "x.yaml"), [("--steps", "100")] if draw.random() < 0.5 else [])
        if run.recipe.model.num_layers <= 64 and run.steps < 10**6:
            list(warnings(run))

    fuzz(1, case)


def test_text(home, tmp_path):
    tokenizer = load_tokenizer(home / "tokenizer")
    text = (home / "valid.jsonl").read_bytes()[:20_000]

    def case(draw: random.Random) -> None:

        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        name = draw.choice(["x.jsonl", "x.txt", "x.jsonl.gz", "x.txt.xz", "x.jsonl.zst", "x.parquet"])
        content = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)(text)
        content = draw.choice([spoilt(content, draw), draw.randbytes(draw.choice([0, 1, 10, 5000]))])
        (folder / name).write_bytes(content)
        try:
            encode(str(folder / name), tokenizer, folder / "out", draw.choice(["stop", "skip"]))
        except UserError:
            assert not list(folder.glob("out.*[nx]")), "a file that looks whole is left"
            raise

    fuzz(2, case)


def test_token_files(project, tmp_path):
    names = [f"{part}{end}" for part in ("train", "valid") for end in (".bin", ".idx", ".json")]

    def case(draw: random.Random) -> None:
        home = tmp_path / "copy"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(project.home, home)
        victim = home / draw.choice(names)
        content = victim.read_bytes()
        if victim.suffix == ".idx" and draw.random() < 0.5:  # the same length, so that the header is not what finds it
            data = bytearray(content)
            place = draw.randrange(len(data) - 8)
            data[place : place + draw.choice([1, 4, 8])] = draw.randbytes(1)
            content = bytes(data[: len(content)]).ljust(len(content), b"\0")
        else:
            content = spoilt(content, draw)
        victim.write_bytes(content)
        data = open_data(project.run(*(f"data.{key}={home / key}" for key in ("tokenizer", "train", "valid"))))
        try:
            data.batch(1), data.held_out()
        finally:
            data.close()

    fuzz(3, case)


def test_manifests_and_fragments(project, tmp_path):
    assert train(project, tmp_path / "run", "--stop-at", "2").returncode == 0
    whole = RunDirectory(tmp_path / "run").checkpoint(2)

    def case(draw: random.Random) -> None:
        folder = tmp_path / "copy" / whole.name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        victim = folder / draw.choice(["manifest.json", "rank_00000.safetensors"])
        victim.write_bytes(spoilt(victim.read_bytes(), draw))
        if victim.suffix == ".json" and draw.random() < 0.5:  # a manifest whose own checksum is right
            facts = json.loads((whole / "manifest.json").read_text())
            key = draw.choice(sorted(facts["parameters"]))
            fragment = facts["files"]["rank_00000.safetensors"]["fragments"][key]
            fragment[draw.randrange(5)] += draw.choice([-1, 1, 10**6])
            body = {name: value for name, value in facts.items() if name != "sha256"}
            facts["sha256"] = hashlib.sha256(json.dumps(body, separators=(",", ":")).encode()).hexdigest()
            victim.write_text(json.dumps(facts))
        manifest = verified(folder)
        with Reader(folder, manifest) as reader:
            for name in manifest.parameters:
                reader.whole(name)

    fuzz(4, case)
