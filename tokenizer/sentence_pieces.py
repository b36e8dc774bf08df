"""The folder of a tokenizer that was trained here: a sentencepiece model, and a manifest that says how it was made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from pretrain.errors import UserError, one_line
from pretrain.files import sha256
from tokenizer.pieces import Tokenizer

PART_CHARACTERS = 100_000
"""Characters of a document that sentencepiece gets at a time: its memory grows with them, by some 50 bytes each."""
MODEL, MANIFEST = "tokenizer.model", "tokenizer.json"
KEYS = {"vocab_size", "sentinels", "model_sha256"}
"""Keys of the manifest that are read."""


@dataclass(frozen=True)
class SentencePieces(Tokenizer):
    """A tokenizer that was trained here."""

    directory: Path
    manifest: dict

    @classmethod
    def open(cls, directory: Path, manifest: dict) -> "SentencePieces":
        """
        Raises:
            UserError: the model is not the one in the manifest.
            OSError: there is none.
        """
        if sha256(directory / MODEL) != manifest["model_sha256"]:
            raise UserError(f"{directory / MODEL}: not the model that {MANIFEST} describes; train it again")
        tokenizer = cls(directory, manifest)
        if tokenizer.processor.vocab_size() != tokenizer.vocab_size:
            raise UserError(
                f"{directory / MANIFEST}: says {tokenizer.vocab_size} pieces, and {MODEL} has"
                f" {tokenizer.processor.vocab_size()}; train it again"
            )
        return tokenizer

    @cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        try:
            return sentencepiece.SentencePieceProcessor(model_file=str(self.file))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{self.file}: not a model of sentencepiece ({one_line(error)}); train it again") from None

    @property
    def file(self) -> Path:
        return self.directory / MODEL

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def own_pieces(self) -> int:
        return self.vocab_size

    @property
    def sha256(self) -> str:
        """Checksum of the model file."""
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
        p, found = self.processor, []
        for token in range(self.vocab_size):
            piece = p.id_to_piece(token)
            if p.is_byte(token):
                found.append(bytes([int(piece[3:5], 16)]))
            else:
                found.append(b"" if self.is_reserved(token) else piece.replace("\u2581", " ").encode())
        return found

    def id(self, piece: str) -> int:
        found = self.processor.piece_to_id(piece)
        if self.name(found) != piece:
            raise UserError(f'{self.directory}: the tokenizer has no piece "{piece}"; train one with python -m tokenizer train')
        return found

    def name(self, token: int) -> str:
        return self.processor.id_to_piece(token)

    def is_reserved(self, token: int) -> bool:
        return self.processor.is_control(token) or self.processor.is_unknown(token)

    def text_ids(self) -> tuple[int, int]:
        """First and last + 1 of the ids that stand for text; reserved pieces and single bytes come before them."""
        p = self.processor
        first = next(i for i in range(self.vocab_size) if not (self.is_reserved(i) or p.is_unused(i) or p.is_byte(i)))
        return first, self.vocab_size


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
