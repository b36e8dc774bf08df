"""The tokenizer of a folder of Hugging Face's, as tokenizer.json describes it, with the pieces that UL2 and BERT need behind its
own. Nothing in the folder is run."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from pretrain.errors import UserError, one_line
from tokenizer.pieces import CLS, EOS, MASK, MODES, PAD, SENTINELS, SEP, UNKNOWN, Tokenizer, sentinel

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
ROLES = {PAD: "pad_token", EOS: "eos_token", UNKNOWN: "unk_token", CLS: "cls_token", SEP: "sep_token", MASK: "mask_token"}
"""What tokenizer_config.json calls the pieces that objectives ask for."""
SPACE, CONTINUES = "\u2581", "##"
"""What sentencepiece writes for a space, and WordPiece before what continues a word."""


@dataclass(frozen=True)
class Facts:
    """What the folder's files say."""

    pieces: int
    roles: dict[str, str]
    """Its own pieces by what they are here."""
    begin: tuple[int, ...]
    added: dict[str, int]
    """Pieces that it lacks, with the ids behind its own."""
    sentinels: int
    checksum: str


@dataclass(frozen=True)
class HuggingFacePieces(Tokenizer):
    """Pieces of the folder under their own ids; behind them, where asked for, those that it lacks."""

    directory: Path
    facts: Facts

    @classmethod
    def open(cls, directory: Path, vocab_size: int | None = None) -> "HuggingFacePieces":
        """
        Args:
            vocab_size: as the recipe has it. The number of the folder's own pieces leaves out those that it lacks.

        Raises:
            UserError: a file is missing or damaged, or says nothing of how its texts end.
        """
        library, config = _library(directory), _config(directory)
        names = library.get_vocab()
        own = max(names.values(), default=-1) + 1
        roles = {piece: name for piece, key in ROLES.items() if (name := _content(config.get(key))) in names}
        roles |= {piece: piece for piece in ROLES if piece in names and piece not in roles}
        if EOS not in roles:
            if SEP not in roles:
                raise UserError(f'{directory / CONFIG}: names no "eos_token" of {FILE}; add it, since texts end with it')
            roles[EOS] = roles[SEP]
        roles.setdefault(PAD, roles[EOS])  # it is never read or predicted
        sentinels = next(index for index in range(len(names) + 1) if sentinel(index) not in names)
        lacking = [piece for piece in (*MODES, CLS, SEP, MASK) if piece not in roles and piece not in names]
        lacking += [sentinel(index) for index in range(SENTINELS)] if not sentinels else []
        added = {} if vocab_size == own else {piece: own + index for index, piece in enumerate(lacking)}
        bos = names.get(_content(config.get("bos_token")) or "")
        begin = (bos,) if bos is not None and library.encode("").ids == [bos] else ()
        facts = json.dumps([roles, begin], sort_keys=True).encode()
        digest = hashlib.sha256((directory / FILE).read_bytes() + facts).hexdigest()
        return cls(directory, Facts(own, roles, begin, added, sentinels or SENTINELS * bool(added), digest))

    @cached_property
    def library(self) -> Library:
        """The library's tokenizer, for which all text is text, also where it spells a reserved piece."""
        library = _library(self.directory)
        library.encode_special_tokens = True
        return library

    @property
    def file(self) -> Path:
        return self.directory / FILE

    @property
    def vocab_size(self) -> int:
        return self.facts.pieces + len(self.facts.added)

    @property
    def own_pieces(self) -> int:
        return self.facts.pieces

    @property
    def sha256(self) -> str:
        """Checksum of tokenizer.json and of which of its pieces begin, end and fill."""
        return self.facts.checksum

    @property
    def sentinels(self) -> int:
        return self.facts.sentinels

    @property
    def begin(self) -> tuple[int, ...]:
        """What the folder's own template puts before a text, as Llama 3's does."""
        return self.facts.begin

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # ranks are the processes, and each has a core
        return [np.array(one.ids, np.int32) for one in self.library.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def piece_bytes(self) -> list[bytes]:
        described = json.loads(self.library.to_str())
        spell = _speller(described, self.directory)
        literal = {token: one.content for token, one in self.library.get_added_tokens_decoder().items()}
        found = []
        for token in range(self.vocab_size):
            if self.is_reserved(token):
                found.append(b"")
            else:
                found.append(literal[token].encode() if token in literal else spell(self.name(token)))
        return found

    def id(self, piece: str) -> int:
        found = self.facts.added.get(piece, self.library.token_to_id(self.facts.roles.get(piece, piece)))
        if found is None:
            lacking = HuggingFacePieces.open(self.directory).vocab_size
            raise UserError(
                f'{self.directory}: the tokenizer has no piece "{piece}"; set model.vocab_size to {lacking}, which adds those'
                " that objectives use behind its own"
            )
        return found

    def name(self, token: int) -> str:
        return self._names.get(token, "")

    @cached_property
    def _names(self) -> dict[int, str]:
        return {token: piece for piece, token in (*self.library.get_vocab().items(), *self.facts.added.items())}

    @cached_property
    def _reserved(self) -> frozenset[int]:
        special = {token for token, one in self.library.get_added_tokens_decoder().items() if one.special}
        names = self.library.get_vocab()
        return frozenset(special | set(self.facts.added.values()) | {names[name] for name in self.facts.roles.values()})

    def is_reserved(self, token: int) -> bool:
        return token in self._reserved

    def text_ids(self) -> tuple[int, int]:
        """The longest row of ids of text."""
        ends = [-1, *sorted(token for token in range(self.own_pieces) if self._is_no_text(token)), self.own_pieces]
        first, last = max(zip(ends[:-1], ends[1:]), key=lambda pair: pair[1] - pair[0])
        return first + 1, last

    def _is_no_text(self, token: int) -> bool:
        return token in self._reserved or len(self.piece_bytes[token].strip()) < 1 or self.name(token).startswith("[unused")

    def with_added(self) -> Library:
        """Return the library's tokenizer with the added pieces, as an export writes it: text that spells one becomes it.

        Raises:
            UserError: the library gives them other ids, as behind gaps.
        """
        library = _library(self.directory)
        library.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in self.facts.added])
        if any(library.token_to_id(piece) != token for piece, token in self.facts.added.items()):
            raise UserError(f"{self.file}: has gaps among its ids, so that pieces cannot be added behind them")
        return library


def is_hugging_face(described: object) -> bool:
    """Whether the content of a tokenizer.json is Hugging Face's."""
    return isinstance(described, dict) and isinstance(described.get("model"), dict) and "added_tokens" in described


def _library(directory: Path) -> Library:
    try:
        library = Library.from_str((directory / FILE).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{directory / FILE}: cannot be read by the library tokenizers: {one_line(error)}") from None
    library.no_padding()
    library.no_truncation()
    return library


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
        return config
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory / CONFIG}: cannot be read ({one_line(error)}); it names the pieces that end a text"
        ) from None


def _content(token: object) -> str | None:
    """A piece is named by itself, or in an object with more facts."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _speller(described: dict[str, Any], directory: Path) -> Callable[[str], bytes]:
    """Return the function from a piece of the model, as it is written, to the bytes that it stands for."""
    kinds = _kinds(described.get("decoder")) | _kinds(described.get("pre_tokenizer"))
    if "ByteLevel" in kinds:
        values = _byte_level()
        return lambda piece: bytes(values[character] for character in piece)
    if described["model"].get("type") == "WordPiece":
        return lambda piece: (piece.removeprefix(CONTINUES) if piece.startswith(CONTINUES) else f" {piece}").encode()
    if kinds & {"Metaspace", "ByteFallback"}:
        return _sentence_piece
    raise UserError(
        f"{directory / FILE}: its pieces are neither of bytes (ByteLevel) nor sentencepiece's (Metaspace, ByteFallback) nor"
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
