"""The folder of a trained tokenizer: a sentencepiece model, and a manifest that says how it was made."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from pretrain.errors import UserError, one_line
from pretrain.files import sha256

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"
"""BERT's: before a text, behind it, and in place of what is to be predicted (arXiv 1810.04805, section 3)."""
MODES = ("[NLU]", "[NLG]", "[S2S]")
"""UL2's mode tokens (arXiv 2205.05131, section 3.1)."""
SENTINELS = 100
"""Sentinels by default, as in T5. The largest number needed is derived from a recipe and checked."""

PART_CHARACTERS = 100_000
"""Characters of a document that sentencepiece gets at a time: its memory grows with them, by some 50 bytes each."""

MODEL, MANIFEST = "tokenizer.model", "tokenizer.json"


def sentinel(index: int) -> str:
    return f"<extra_id_{index}>"


@dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer, opened for use."""

    directory: Path
    manifest: dict

    @cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        try:
            return sentencepiece.SentencePieceProcessor(model_file=str(self.directory / MODEL))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{self.directory / MODEL}: not a model of sentencepiece ({one_line(error)}); train it again"
            ) from None

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def sha256(self) -> str:
        """Checksum of the model file: what token files record, so that they are never read with another tokenizer."""
        return self.manifest["model_sha256"]

    @property
    def sentinels(self) -> int:
        return self.manifest["sentinels"]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, [tokens] int32; a long text goes through sentencepiece in parts, so that memory is bounded."""
        cut = [parts_of(text) for text in texts]
        ids = iter(self.processor.encode([part for parts in cut for part in parts], return_type="numpy", num_threads=1))
        return [next(ids) if len(parts) == 1 else np.concatenate([next(ids) for _ in parts]) for parts in cut]

    @cached_property
    def piece_bytes(self) -> list[bytes]:
        """Bytes of text that each piece stands for, [vocabulary]; none for those that text cannot spell."""
        p, found = self.processor, []
        for token in range(self.vocab_size):
            piece = p.id_to_piece(token)
            if p.is_byte(token):
                found.append(bytes([int(piece[3:5], 16)]))
            else:
                found.append(b"" if self.is_reserved(token) else piece.replace("\u2581", " ").encode())
        return found

    def text(self, ids: Iterable[int]) -> str:
        """Return the text of ids, with the space that the first may begin with; bytes that are no text become U+FFFD."""
        return b"".join(self.piece_bytes[token] for token in ids).decode(errors="replace")

    def id(self, piece: str) -> int:
        """Id of a reserved piece.

        Raises:
            UserError: the tokenizer has no such piece.
        """
        found = self.processor.piece_to_id(piece)
        if self.processor.id_to_piece(found) != piece:
            raise UserError(f'{self.directory}: the tokenizer has no piece "{piece}"; train one with python -m tokenizer train')
        return found

    def is_reserved(self, token: int) -> bool:
        """Does it stand for something that text cannot spell?"""
        return self.processor.is_control(token) or self.processor.is_unknown(token)

    def text_ids(self) -> tuple[int, int]:
        """First and last + 1 of the ids that stand for text; reserved pieces and single bytes come before them."""
        p = self.processor
        first = next(i for i in range(self.vocab_size) if not (self.is_reserved(i) or p.is_unused(i) or p.is_byte(i)))
        return first, self.vocab_size

    def word_starts(self) -> np.ndarray:
        """[vocabulary] bool: pieces that begin a word, which sentencepiece marks with a lower block, and the end of a line."""
        pieces = [self.processor.id_to_piece(i) for i in range(self.vocab_size)]
        return np.array([piece.startswith("\u2581") or piece == "<0x0A>" for piece in pieces])

    def sentinel_ids(self) -> list[int]:
        return [self.id(sentinel(i)) for i in range(self.sentinels)]


def parts_of(text: str, characters: int = PART_CHARACTERS) -> list[str]:
    """A text cut at spaces, which sentencepiece puts back: before every text that it gets.

    No piece has a space but at its beginning, so the best pieces of the parts are best for the whole. Text without spaces stays
    whole.
    """
    parts, begin = [], 0
    while (end := text.find(" ", begin + characters, len(text) - 1)) > 0:
        parts.append(text[begin:end])
        begin = end + 1
    return [*parts, text[begin:]]


def load_tokenizer(directory: Path) -> Tokenizer:
    """Open the folder that `python -m tokenizer train` wrote.

    Raises:
        UserError: the folder or a part of it is missing, or the model is not the one in the manifest.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        if not isinstance(manifest, dict) or not {"vocab_size", "sentinels", "model_sha256"} <= manifest.keys():
            raise ValueError(f"{MANIFEST} is not a tokenizer's")
        digest = sha256(directory / MODEL)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory}: no tokenizer here ({error}); make one with python -m tokenizer train --input GLOB "
            f"--vocab-size N --out {directory}"
        ) from None
    if digest != manifest["model_sha256"]:
        raise UserError(f"{directory / MODEL}: not the model that {MANIFEST} describes; train it again")
    tokenizer = Tokenizer(directory, manifest)
    if tokenizer.processor.vocab_size() != tokenizer.vocab_size:
        raise UserError(
            f"{directory / MANIFEST}: says {tokenizer.vocab_size} pieces, and {MODEL} has {tokenizer.processor.vocab_size()};"
            " train it again"
        )
    return tokenizer
