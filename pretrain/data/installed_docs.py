"""Text that is on every machine: what the quick start learns from.

The standard library's documentation topics and the docstrings of the standard library and installed packages, read
with `ast`, so that nothing is downloaded or imported. Only for a first look: the text depends on what is installed.
"""

import ast
import hashlib
import inspect
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from filelock import FileLock

from pretrain.errors import UserError, reason
from tokenizer.encode import encode
from tokenizer.load import load_tokenizer
from tokenizer.train import train

ENOUGH_BYTES = 8_000_000
SHORTEST = 200
"""Characters; shorter docstrings teach little."""
VALID_SHARE = 50
"""One document in so many is held out."""


@dataclass(frozen=True)
class MachineData:
    """Paths of what was made."""

    tokenizer: Path
    train: Path
    valid: Path


def cache_directory() -> Path:
    """Where made data is kept; the variable PRETRAIN_CACHE moves it."""
    return Path(os.environ.get("PRETRAIN_CACHE") or Path.home() / ".cache" / "pretrain")


def machine_data(vocab_size: int) -> MachineData:
    """Tokenizer and token files of this machine's documentation, made on first use.

    Any number of processes may ask at once: one makes it, the others wait.
    """
    home = cache_directory() / f"machine-{vocab_size}-2"
    data = MachineData(home / "tokenizer", home / "train", home / "valid")
    done = home / "complete"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{home}: cannot be made ({reason(error)}); set PRETRAIN_CACHE to a folder that can") from None
    with FileLock(home / "lock"):
        if not done.exists():
            print(f"Reading this machine's documentation into {home} ...", flush=True)
            for name, text in _split(_collect()).items():
                (home / f"{name}.jsonl").write_text(text, encoding="utf-8")
            if not data.tokenizer.exists():
                train(str(home / "train.jsonl"), vocab_size, data.tokenizer)
            tokenizer = load_tokenizer(data.tokenizer)
            for name in ("train", "valid"):  # of a first try that was killed
                (home / f"{name}.idx").unlink(missing_ok=True)
            counts = {n: encode(str(home / f"{n}.jsonl"), tokenizer, home / n)["tokens"] for n in ("train", "valid")}
            print(f"{counts['train'] / 1e6:.1f} million tokens to learn from, {counts['valid'] / 1e6:.2f} held out")
            done.touch()
    return data


def _split(texts: Iterator[str]) -> dict[str, str]:
    """JSON lines for training and validation; which is which follows from the text's hash."""
    lines: dict[str, list[str]] = {"train": [], "valid": []}
    for text in texts:
        held_out = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % VALID_SHARE == 0
        lines["valid" if held_out else "train"].append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return {name: "".join(parts) for name, parts in lines.items()}


def _collect() -> Iterator[str]:
    """Distinct documents in a fixed order, until there are enough bytes."""
    from pydoc_data.topics import topics

    size, seen = 0, set()
    paths = sysconfig.get_paths()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        modules = [p for root in ("stdlib", "purelib") for p in _modules(Path(paths[root]))]
        for group in chain([topics.values()], pool.map(_docstrings, modules, chunksize=16)):  # no more than are needed
            for text in group:
                digest = hashlib.sha256(text.encode("utf-8", "ignore")).digest()
                if len(text) < SHORTEST or digest in seen:
                    continue
                seen.add(digest)
                size += len(text)
                yield text
                if size > ENOUGH_BYTES:
                    pool.shutdown(cancel_futures=True)
                    return


def _modules(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if not {"test", "tests", "site-packages"} & set(p.relative_to(root).parts))


def _docstrings(module: Path) -> list[str]:
    """Docstrings of a module, its classes and functions, in order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            tree = ast.parse(module.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError, OSError):
        return []  # a template, a test of the parser: not text
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [inspect.cleandoc(text).encode("utf-8", "ignore").decode() for text in texts if text]
