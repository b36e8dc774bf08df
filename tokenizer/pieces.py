"""What every tokenizer here can do, and the reserved pieces that objectives use."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"
"""BERT's: before a text, behind it, and in place of what is to be predicted (arXiv 1810.04805, section 3)."""
MODES = ("[NLU]", "[NLG]", "[S2S]")
"""UL2's mode tokens (arXiv 2205.05131, section 3.1)."""
SENTINELS = 100
"""Sentinels by default, as in T5. The largest number needed is derived from a recipe and checked."""


def sentinel(index: int) -> str:
    return f"<extra_id_{index}>"


class Tokenizer(ABC):
    """A tokenizer's folder, opened for use."""

    directory: Path

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Pieces, those that objectives add included."""

    @property
    @abstractmethod
    def own_pieces(self) -> int:
        """Pieces of its file; the others are added behind them."""

    @property
    @abstractmethod
    def file(self) -> Path:
        """The file that decides into which pieces a text falls."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Checksum of what decides ids: what token files record, so that they are never read with another tokenizer."""

    @property
    @abstractmethod
    def sentinels(self) -> int:
        """How many sentinels it has."""

    @property
    def begin(self) -> tuple[int, ...]:
        """Ids that a document begins with; most have none."""
        return ()

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, [tokens] int32. Text that spells a reserved piece is text."""

    @property
    @abstractmethod
    def piece_bytes(self) -> list[bytes]:
        """Bytes of text that each piece stands for, [vocabulary]; none for those that text cannot spell."""

    @abstractmethod
    def id(self, piece: str) -> int:
        """Id of a reserved piece.

        Raises:
            UserError: the tokenizer has no such piece.
        """

    @abstractmethod
    def name(self, token: int) -> str:
        """Return how the tokenizer itself writes a piece."""

    @abstractmethod
    def is_reserved(self, token: int) -> bool:
        """Does it stand for something that text cannot spell?"""

    @abstractmethod
    def text_ids(self) -> tuple[int, int]:
        """First and last + 1 of ids in a row that stand for text, without reserved pieces and single bytes."""

    def documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of whole documents, with what each begins with."""
        found = self.encode(texts)
        return [np.concatenate([np.array(self.begin, np.int32), ids]) for ids in found] if self.begin else found

    def text(self, ids: Iterable[int]) -> str:
        """Return the text of ids, with the space that the first may begin with; bytes that are no text become U+FFFD."""
        return b"".join(self.piece_bytes[token] for token in ids).decode(errors="replace")

    def word_starts(self) -> np.ndarray:
        """[vocabulary] bool: pieces that begin a word, with the space before it, and the end of a line."""
        return np.array([piece.startswith(b" ") or piece == b"\n" for piece in self.piece_bytes])

    def sentinel_ids(self) -> list[int]:
        return [self.id(sentinel(i)) for i in range(self.sentinels)]
