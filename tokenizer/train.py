"""Train a sentencepiece model with UL2's reserved pieces."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import sentencepiece

from pretrain.errors import UserError
from tokenizer.pieces import EOS, MANIFEST, MODEL, MODES, PAD, SENTINELS, UNKNOWN, sentinel, sha256
from tokenizer.text import documents, find_inputs


BYTES = 256
"""Pieces for single bytes, so that no text is unknown."""


def train(pattern: str, vocab_size: int, out: Path, model_type: str = "unigram", sentinels: int = SENTINELS) -> None:
    """Write a tokenizer folder; it appears whole or not at all.

    Reserved pieces are control symbols: text that spells `<extra_id_0>` is text, it never becomes a sentinel.

    Raises:
        UserError: no input, a folder that exists, or a vocabulary that the text cannot fill.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists; remove it or choose another folder")
    files = find_inputs(pattern)
    if next(documents(files), None) is None:
        raise UserError(f"--input {pattern}: holds no text")
    reserved = [*MODES, *(sentinel(i) for i in range(sentinels))]
    least = len(reserved) + len((PAD, EOS, UNKNOWN)) + BYTES + 1
    if vocab_size < least:
        raise UserError(f"--vocab-size {vocab_size}: reserved pieces and bytes alone take {least - 1}; use more")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        settings = dict(
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
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(files),
                model_prefix=str(work / Path(MODEL).stem),
                control_symbols=",".join(reserved),
                minloglevel=2,
                **settings,
            )
        except RuntimeError as error:
            raise UserError(f"--vocab-size {vocab_size}: sentencepiece: {error}") from None
        (work / "tokenizer.vocab").unlink()
        manifest = {
            "vocab_size": vocab_size,
            "sentinels": sentinels,
            "model_sha256": sha256(work / MODEL),
            "inputs": {file.name: sha256(file) for file in files},
            "settings": {key: value for key, value in settings.items() if key != "num_threads"},
            "sentencepiece": sentencepiece.__version__,
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        os.chmod(work, 0o755)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _lines(files: list[Path]):
    """Sentencepiece learns from lines: the documents' own."""
    for text in documents(files):
        for line in text.splitlines():
            if line.strip():
                yield line
