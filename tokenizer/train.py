"""Train a sentencepiece model with UL2's reserved pieces."""

import hashlib
import heapq
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from pretrain.errors import UserError
from pretrain.files import sha256
from pretrain.progress import BYTES, bar
from tokenizer.files import expected_bytes, find_inputs
from tokenizer.pieces import CLS, EOS, MASK, MODES, PAD, SENTINELS, SEP, UNKNOWN, sentinel
from tokenizer.sentence_pieces import MANIFEST, MODEL
from tokenizer.text import OnError, documents

LONGEST_LINE = 16_000
"""Characters; sentencepiece skips lines of more than max_sentence_length bytes, of which a character has four at most."""
BYTE_PIECES = 256
"""Pieces for single bytes, so that no text is unknown."""


def train(
    inputs: str | Sequence[str],
    vocab_size: int,
    out: Path,
    model_type: str = "unigram",
    sentinels: int = SENTINELS,
    sample_bytes: int | None = None,
    on_error: OnError = "stop",
    quiet: bool = True,
) -> dict:
    """Write a tokenizer folder, which appears whole or not at all; returns its manifest.

    Reserved pieces are control symbols: text that spells `<extra_id_0>` is text, it never becomes a sentinel.

    Args:
        sample_bytes: learn from a random part of the documents; from all if None. sentencepiece takes some 20 times as much
            memory.
        quiet: without lines that say how far it is.
        on_error: whether a document that cannot be read ends the training or is listed in the manifest and left out.

    Raises:
        UserError: no input, a folder that exists, a document that cannot be read, or a vocabulary that the text cannot fill.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists; remove it or choose another folder")
    files = find_inputs(inputs)
    bad: list[str] | None = [] if on_error == "skip" else None
    if next(documents(files, None if bad is None else []), None) is None:
        raise UserError(f"--input {inputs if isinstance(inputs, str) else ' '.join(inputs)}: holds no text")
    if sample_bytes is not None and sample_bytes < 1:
        raise UserError(f"--sample-mb {sample_bytes / 1e6:g}: must be above 0")
    reserved = [*MODES, CLS, SEP, MASK, *(sentinel(i) for i in range(sentinels))]
    least = len(reserved) + len((PAD, EOS, UNKNOWN)) + BYTE_PIECES + 1
    if vocab_size < least:
        raise UserError(f"--vocab-size {vocab_size}: reserved pieces and bytes alone take {least - 1}; use more")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        settings: dict[str, Any] = dict(
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=EOS,
            unk_piece=UNKNOWN,
            max_sentence_length=65536,
            num_threads=len(os.sched_getaffinity(0)),
        )
        problems: list[UserError] = []
        texts = documents(files, bad) if quiet else _counted(documents(files, bad), files, vocab_size)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_keeping(problems, _lines(texts if sample_bytes is None else sample(texts, sample_bytes))),
                model_prefix=str(work / Path(MODEL).stem),
                control_symbols=",".join(reserved),
                minloglevel=2,
                **settings,
            )
        except Exception as error:
            if problems:
                raise problems[0] from None
            if not isinstance(error, RuntimeError):
                raise
            said = str(error).rpartition("] ")[2] or str(error)  # after the place in its sources
            raise UserError(f"--vocab-size {vocab_size}: sentencepiece: {said}") from None
        (work / "tokenizer.vocab").unlink()
        manifest = {
            "vocab_size": vocab_size,
            "sentinels": sentinels,
            "model_sha256": sha256(work / MODEL),
            "inputs": {str(file): sha256(file) for file in files},
            "sample_bytes": sample_bytes,
            "bad_documents": bad or [],
            "settings": {key: value for key, value in settings.items() if key != "num_threads"},
            "sentencepiece": sentencepiece.__version__,
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        os.chmod(work, 0o755)
        os.replace(work, out)
        return manifest
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _counted(texts: Iterable[str], files: Sequence[Path], vocab_size: int) -> Iterator[str]:
    """The same texts; shows how much has been read, and says when the learning begins, which is silent for minutes."""
    count, size = 0, 0
    with bar("reading", expected_bytes(files), BYTES) as shown:
        for text in texts:
            count, size = count + 1, size + len(text)
            shown.add(len(text))
            yield text
    print(
        f"{count:,} documents read, {size / 1e6:,.1f} million characters; sentencepiece learns {vocab_size} pieces from them,"
        " which may take minutes",
        file=sys.stderr,
        flush=True,
    )


def sample(texts: Iterable[str], most_bytes: int) -> list[str]:
    """A part of the documents, all equally likely to be in it, of at most so many bytes: those of the smallest hashes.

    One pass, and the same part every time; a single document is kept even if it is longer.
    """
    kept: list[tuple[int, int, str]] = []  # a heap with the largest hash on top
    size = 0
    for number, text in enumerate(texts):
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=number.to_bytes(8, "little")).digest()
        heapq.heappush(kept, (-int.from_bytes(digest, "little"), number, text))
        size += len(text.encode())
        while size > most_bytes and len(kept) > 1:
            size -= len(heapq.heappop(kept)[2].encode())
    return [text for _, _, text in sorted(kept, key=lambda entry: entry[1])]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Sentencepiece learns from lines: the documents' own."""
    for text in texts:
        for line in text.splitlines():
            for first in range(0, len(line), LONGEST_LINE):
                if part := line[first : first + LONGEST_LINE].strip():
                    yield part


def _keeping(problems: list[UserError], lines: Iterator[str]) -> Iterator[str]:
    """The same lines; an error among them is kept, because sentencepiece wraps it in one of its own."""
    try:
        yield from lines
    except UserError as error:
        problems.append(error)
        raise
