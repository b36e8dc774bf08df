"""Token files: Megatron-Core's .bin/.idx, read as one stream of documents."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from pretrain.errors import UserError
from tokenizer.parts import INDEX_HEADER, MAGIC, VERSION

WHOLE_NUMBERS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}
"""Codes of types of tokens in Megatron-Core's index (indexed_dataset.py, DType) that are whole numbers, and their bytes."""
STRETCH, STRETCHES = 2**12, 2**7
"""Entries of an index that are looked at in a row, and how often, where it has more."""


@dataclass(frozen=True)
class TokenStream:
    """All documents of a token file, one after the other."""

    prefix: Path
    tokens: np.ndarray
    """[tokens], memory-mapped."""
    ends: Sequence[int]
    """[documents]: where each document ends in `tokens`."""

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, share: float) -> tuple["TokenStream", "TokenStream"]:
        """All but the last documents, and the last documents, which hold at least `share` of the tokens.

        Where they would hold more than twice as much, a long document is cut in two.
        """
        wanted = int(len(self) * (1 - share))
        document = bisect_right(self.ends, wanted)  # of which, or of whose predecessors' end, the cut is
        at = int(self.ends[document - 1]) if document else 0
        if len(self) - at > 2 * share * len(self):
            at = wanted
        train_documents = document + (document == 0 or at > int(self.ends[document - 1]))
        return (
            TokenStream(self.prefix, self.tokens[:at], DocumentRange(self.ends, 0, train_documents, 0, at)),
            TokenStream(self.prefix, self.tokens[at:], DocumentRange(self.ends, document, len(self.ends), at, len(self))),
        )


@dataclass(frozen=True)
class IndexedEnds(Sequence[int]):
    """Ends of documents, looked up in Megatron-Core's index when they are asked for: opening a billion of them takes no time or
    memory."""

    dataset: IndexedDataset
    """Kept, because it unmaps the index when it goes."""
    total: int
    """Tokens."""

    def __len__(self) -> int:
        return len(self.dataset.index.document_indices) - 1

    def __getitem__(self, document: int) -> int:  # type: ignore[override]  # nobody asks for slices
        if not 0 <= document < len(self):
            raise IndexError(document)
        index = self.dataset.index
        following = int(index.document_indices[document + 1])
        if following == len(index.sequence_pointers):
            return self.total
        return int(index.sequence_pointers[following]) // index.dtype_size


@dataclass(frozen=True)
class DocumentRange(Sequence[int]):
    """Some documents in a row, counted from the first of them."""

    ends: Sequence[int]
    first: int
    last: int
    at: int
    """Where the first document begins in the whole stream."""
    stop: int
    """Where the last document ends there, at most."""

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, document: int) -> int:  # type: ignore[override]  # nobody asks for slices
        if not 0 <= document < len(self):
            raise IndexError(document)
        return min(int(self.ends[self.first + document]), self.stop) - self.at


def open_tokens(prefix: Path, vocab_size: int, tokenizer_sha256: str) -> TokenStream:
    """Open PREFIX.bin and PREFIX.idx.

    Raises:
        UserError: a file is missing, truncated or empty, or was written with another tokenizer.
    """
    data, index = (prefix.with_name(prefix.name + end) for end in (".bin", ".idx"))
    for file in (data, index):
        if not file.is_file():
            raise UserError(
                f"{file}: no such file; make it with python -m tokenizer encode --input GLOB --tokenizer DIR --out {prefix}"
            )
    _check_manifest(prefix, vocab_size, tokenizer_sha256)
    _check_index(index)
    if data.stat().st_size == 0:
        raise UserError(f"{data}: holds no tokens; encode text that is not empty")
    dataset = IndexedDataset(str(prefix), mmap=True)
    found = dataset.index
    expected = (
        int(found.sequence_pointers[-1]) + int(found.sequence_lengths[-1]) * found.dtype_size
        if len(found.sequence_lengths)
        else 0
    )
    if data.stat().st_size != expected:
        raise UserError(f"{data}: has {data.stat().st_size} bytes where {index.name} promises {expected}; encode again")
    return TokenStream(
        prefix, np.memmap(data, dtype=np.dtype(found.dtype), mode="r"), IndexedEnds(dataset, expected // found.dtype_size)
    )


@dataclass(frozen=True)
class Entries:
    """A part of an index file of which stretches are read as they are asked for. Mapped into memory, each page would be waited
    for by itself."""

    file: Path
    dtype: type[np.int32] | type[np.int64]
    begin: int
    """Bytes before it."""
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, stretch: slice) -> np.ndarray:
        first, last, _ = stretch.indices(self.count)
        offset = self.begin + first * np.dtype(self.dtype).itemsize
        return np.fromfile(self.file, self.dtype, max(0, last - first), offset=offset)


Numbers = np.ndarray | Entries


def contradiction(lengths: Numbers, pointers: Numbers, documents: Numbers, size: int) -> str | None:
    """Say how the parts of an index contradict each other; None if they do not. Of a large one, stretches are looked at.

    Args:
        lengths: [sequences] tokens of each.
        pointers: [sequences] first byte of each.
        documents: [documents + 1] first sequence of each, and the end.
        size: bytes of a token.
    """
    if any(pointers[:1] != 0):
        return f"its first sequence begins at byte {pointers[:1][0]}"
    for first, last in _stretches(len(lengths)):
        some = lengths[first:last].astype(np.int64)
        if some.min() < 0:
            return f"sequence {first + int(some.argmin())} has {some.min()} tokens"
        ends, following = pointers[first:last] + some * size, pointers[first + 1 : last + 1]
        if len(wrong := np.flatnonzero(ends[: len(following)] != following)):
            return f"sequence {first + int(wrong[0])} does not end where the next one begins"
    if len(documents) == 0 or documents[:1][0] != 0 or documents[-1:][0] != len(lengths):
        return f"its documents do not hold its {len(lengths)} sequences"
    for first, last in _stretches(len(documents)):
        if (np.diff(documents[first : last + 1]) < 0).any():
            return "its documents are not in order"
    return None


def _stretches(count: int) -> list[tuple[int, int]]:
    """Return stretches of 0 to count - 1: one of all, or some that are spread evenly."""
    if count <= STRETCH * STRETCHES:
        return [(0, count)] if count else []
    begins = [(count - STRETCH) * number // (STRETCHES - 1) for number in range(STRETCHES)]
    return [(begin, begin + STRETCH) for begin in begins]


def _check_index(index: Path) -> None:
    """Check what Megatron-Core does not, or fails at with somebody else's words: size, type of the tokens, parts that agree."""
    with index.open("rb") as file:
        header = file.read(INDEX_HEADER.size)
    if len(header) == INDEX_HEADER.size:
        magic, version, code, sequences, documents = INDEX_HEADER.unpack(header)
        expected = INDEX_HEADER.size + 12 * sequences + 8 * documents
        if (magic, version) == (MAGIC, VERSION) and index.stat().st_size == expected:
            if code in WHOLE_NUMBERS:
                begin = INDEX_HEADER.size
                problem = contradiction(
                    Entries(index, np.int32, begin, sequences),
                    Entries(index, np.int64, begin + 4 * sequences, sequences),
                    Entries(index, np.int64, begin + 12 * sequences, documents),
                    WHOLE_NUMBERS[code],
                )
                if problem is None:
                    return
                raise UserError(f"{index}: damaged: {problem}; encode again")
            kind = "floating-point numbers" if code in (6, 7) else f"numbers of a type that Megatron-Core does not know ({code})"
            raise UserError(f"{index}: its tokens are {kind}; encode again")
    raise UserError(f"{index}: damaged, truncated or not an index of Megatron-Core's; encode again")


def _check_manifest(prefix: Path, vocab_size: int, tokenizer_sha256: str) -> None:
    """Check the manifest beside token files: those of other tools have none, those of this project must name the recipe's
    tokenizer."""
    file = prefix.with_name(prefix.name + ".json")
    if not file.is_file():
        return
    try:
        manifest = json.loads(file.read_text())
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); encode again") from None
    if manifest.get("tokenizer_sha256") != tokenizer_sha256:
        raise UserError(
            f"{file}: written with another tokenizer than data.tokenizer; encode again, or set data.tokenizer to the one that was"
            " used"
        )
