"""What text the pieces of a tokenizer of Hugging Face's stand for, as its tokenizer.json says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.errors import UserError

SPACE, CONTINUES = "\u2581", "##"
"""What sentencepiece writes for a space, and WordPiece before what continues a word."""


def speller(described: dict[str, Any], file: Path) -> Callable[[str], bytes]:
    """Return the function from a piece of the model, as it is written, to the bytes that it stands for.

    Args:
        described: the content of the file.

    Raises:
        UserError: the file says nothing of that.
    """
    kinds = _kinds(described.get("decoder")) | _kinds(described.get("pre_tokenizer"))
    if "ByteLevel" in kinds:
        values = _byte_level()
        return lambda piece: bytes(values[character] for character in piece)
    if described["model"].get("type") == "WordPiece":
        return lambda piece: (piece.removeprefix(CONTINUES) if piece.startswith(CONTINUES) else f" {piece}").encode()
    if kinds & {"Metaspace", "ByteFallback"}:
        return _sentence_piece
    raise UserError(
        f"{file}: its pieces are neither of bytes (ByteLevel) nor sentencepiece's (Metaspace, ByteFallback) nor"
        " WordPiece's, so what text they stand for is not known here"
    )


def _kinds(part: object) -> set[str]:
    """Types of a decoder or pre-tokenizer and of those that it consists of."""
    if not isinstance(part, dict):
        return set()
    inner = [one for key in ("decoders", "pretokenizers") for one in part.get(key) or ()]
    return {str(part.get("type"))}.union(*map(_kinds, inner))


def _sentence_piece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def _byte_level() -> dict[str, int]:
    """GPT-2's alphabet: bytes that are printable characters of Latin-1 stand for themselves, the others for those from U+0100 on
    (https://github.com/openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
