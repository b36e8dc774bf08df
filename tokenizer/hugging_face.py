"""The tokenizer of a folder of Hugging Face's, as tokenizer.json describes it, with the pieces that UL2 and BERT need behind its
own. Nothing in the folder is run."""

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from pretrain.errors import UserError, one_line, reason
from tokenizer.pieces import CLS, EOS, MASK, MODES, PAD, SENTINELS, SEP, UNKNOWN, Tokenizer, sentinel
from tokenizer.spelling import speller

FILE, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
NOBODYS = secrets.token_hex(16)
"""What no text can hold, as nobody knows it before."""
ROLES = {PAD: "pad_token", EOS: "eos_token", UNKNOWN: "unk_token", CLS: "cls_token", SEP: "sep_token", MASK: "mask_token"}
"""What tokenizer_config.json calls the pieces that objectives ask for."""


@dataclass(frozen=True)
class Facts:
    """What the folder's files say."""

    pieces: int
    roles: dict[str, str]
    """Its own pieces by what they are here."""
    begin: tuple[int, ...]
    added: dict[str, int]
    """Pieces that it lacks, with the ids behind its own."""
    lacking: int
    """How many these are, or would be."""
    sentinels: int
    checksum: str


@dataclass(frozen=True)
class HuggingFacePieces(Tokenizer):
    """Pieces of the folder under their own ids; behind them, where asked for, those that it lacks."""

    directory: Path
    facts: Facts
    library: Library = field(compare=False)
    """The library's tokenizer, as it came."""

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
        special = {one.content for one in library.get_added_tokens_decoder().values() if one.special}
        own = max(names.values(), default=-1) + 1
        roles = _roles(directory, config, names, special)
        lacking = [piece for piece in (*MODES, CLS, SEP, MASK) if piece not in roles and piece not in special]
        lacking += [sentinel(index) for index in range(SENTINELS) if sentinel(index) not in special]
        added = {} if vocab_size == own else {piece: own + index for index, piece in enumerate(lacking)}
        known = special | added.keys()
        sentinels = next(index for index in range(len(known) + 1) if sentinel(index) not in known)
        begin = _begin(library, names.get(_content(config.get("bos_token")) or ""))
        # Files that were encoded while pieces behind special ones had others' ids have another checksum.
        kept = ["ids behind special pieces"] if _stand_behind(library, special) else []
        facts = json.dumps([roles, begin, *kept], sort_keys=True).encode()
        digest = hashlib.sha256((directory / FILE).read_bytes() + facts).hexdigest()
        tokenizer = cls(directory, Facts(own, roles, begin, added, len(lacking), sentinels, digest), library)
        if added:
            tokenizer.with_added()  # in an export, after weeks of training, is late to find that it cannot be
        return tokenizer

    @cached_property
    def plain(self) -> Library:
        """The library's tokenizer without its special pieces, so that text which spells one is text. They keep their ids under
        names that no text has; where they are in the vocabulary, a unigram model would choose them even if told not to.

        Raises:
            UserError: a special piece is a part of others, which are text.
        """
        described = json.loads(self.library.to_str())
        special = {one["content"] for one in described["added_tokens"] if one["special"]} | set(self.facts.roles.values())
        described["post_processor"] = None
        model = described["model"]
        if model.get("unk_id") is not None:
            special.add(model["vocab"][model["unk_id"]][0])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {_unspelt(piece) if piece in special else piece: token for piece, token in model["vocab"].items()}
            if "merges" in model:
                model["merges"] = [pair for pair in model["merges"] if "".join(_pair(pair)) not in special]
                if parts := special & {part for pair in model["merges"] for part in _pair(pair)}:
                    raise UserError(f"{self.file}: special piece {json.dumps(min(parts))} is a part of others, which are text")
        else:
            model["vocab"] = [[_unspelt(piece) if piece in special else piece, score] for piece, score in model["vocab"]]
        if model.get("unk_token") in special:
            model["unk_token"] = _unspelt(model["unk_token"])
        # Not left out: those behind them, as <think> of some folders, would move up and take their ids.
        described["added_tokens"] = [
            {**one, "content": _unspelt(one["content"]), "normalized": False} if one["content"] in special else one
            for one in described["added_tokens"]
        ]
        plain = Library.from_str(json.dumps(described))
        plain.no_padding()
        plain.no_truncation()
        names = {_unspelt(piece) if piece in special else piece: token for piece, token in self.library.get_vocab().items()}
        assert plain.get_vocab() == names, f"{self.file}: pieces have other ids once special ones are no text"
        return plain

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
        return [np.array(one.ids, np.int32) for one in self.plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def piece_bytes(self) -> list[bytes]:
        described = json.loads(self.library.to_str())
        spell = speller(described, self.file)
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
        if found is None or not self.is_reserved(found):
            raise UserError(
                f'{self.directory}: the tokenizer has no piece "{piece}"; set model.vocab_size to'
                f" {self.facts.pieces + self.facts.lacking}, which adds those that objectives use behind its own"
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
            UserError: the library gives them other ids, as behind gaps, or where they are pieces of text.
        """
        library = _library(self.directory)
        library.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in self.facts.added])
        if any(library.token_to_id(piece) != token for piece, token in self.facts.added.items()):
            raise UserError(
                f"{self.file}: has gaps among its ids, or ordinary pieces that are called as UL2's and BERT's, so that these"
                f" cannot be added; set model.vocab_size to {self.own_pieces}, for data.objective causal alone"
            )
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
    """What names special pieces: tokenizer_config.json, and, in older folders, a map beside it."""
    found: dict[str, Any] = {}
    for name in (MAP, CONFIG):
        if name == MAP and not (directory / name).is_file():
            continue
        try:
            config = json.loads((directory / name).read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("not an object")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{directory / name}: cannot be read ({reason(error)}); it names the pieces that end a text"
            ) from None
        found |= {key: value for key, value in config.items() if value is not None}
    return found


def _roles(directory: Path, config: dict[str, Any], names: dict[str, int], special: set[str]) -> dict[str, str]:
    """The folder's own pieces by what they are here."""
    roles = {}
    for piece, key in ROLES.items():
        name = _content(config.get(key))
        if name in names:
            roles[piece] = name
        elif name is not None and piece == EOS:
            raise UserError(
                f'{directory / CONFIG}: "eos_token" {json.dumps(name)} is no piece of {FILE}; name one, as texts end so'
            )
        elif piece in special:
            roles[piece] = piece
    if EOS not in roles:
        if SEP not in roles:
            raise UserError(f'{directory / CONFIG}: names no "eos_token"; add it, since texts end with it')
        roles[EOS] = roles[SEP]
    roles.setdefault(PAD, roles[EOS])  # it is never read or predicted
    return roles


def _stand_behind(library: Library, special: set[str]) -> bool:
    """Whether added pieces that are no special ones come after such; not those of the vocabulary, whose ids stand there."""
    own = library.get_vocab(with_added_tokens=False)
    added = [(token, one) for token, one in sorted(library.get_added_tokens_decoder().items()) if one.content not in own]
    first = next((token for token, one in added if one.content in special), None)
    return first is not None and any(token > first and one.content not in special for token, one in added)


def _begin(library: Library, bos: int | None) -> tuple[int, ...]:
    """What the folder's template puts before a text, if that is its beginning of texts: BERT's [CLS] belongs to an objective."""
    whole, bare = (library.encode("a", add_special_tokens=added).ids for added in (True, False))
    return (bos,) if bos is not None and bare and whole[: 1 + len(bare)] == [bos, *bare] else ()


def _unspelt(piece: str) -> str:
    """A name that no text has, whoever wrote it: nothing depends on what it is, and it is another in each process."""
    return f"\ufdd0{piece}{NOBODYS}\ufdd1"


def _pair(merge: str | list[str]) -> list[str]:
    """What a merge puts together, which older files write as a text."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _content(token: object) -> str | None:
    """A piece is named by itself, or in an object with more facts."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
