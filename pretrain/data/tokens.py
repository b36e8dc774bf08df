"""Token files: Megatron-Core's .bin/.idx, read as one stream of documents."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from pretrain.errors import UserError
from tokenizer.parts import INDEX_HEADER, MAGIC, VERSION


@dataclass(frozen=True)
class TokenStream:
    """All documents of a token file, one after the other."""

    prefix: Path
    tokens: np.ndarray
    """[tokens], memory-mapped."""
    ends: np.ndarray
    """[documents], int64: where each document ends in `tokens`."""

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, share: float) -> tuple["TokenStream", "TokenStream"]:
        """All but the last documents, and the last documents, which hold at least `share` of the tokens."""
        document = int(np.searchsorted(self.ends, len(self) * (1 - share), side="right")) - 1
        at = int(self.ends[document]) if document >= 0 else 0
        return (
            TokenStream(self.prefix, self.tokens[:at], self.ends[: document + 1]),
            TokenStream(self.prefix, self.tokens[at:], self.ends[document + 1 :] - at),
        )


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
    lengths = np.asarray(dataset.index.sequence_lengths, dtype=np.int64)
    documents = np.asarray(dataset.index.document_indices)
    dtype = np.dtype(dataset.index.dtype)
    expected = int(lengths.sum()) * dtype.itemsize
    if data.stat().st_size != expected:
        raise UserError(f"{data}: has {data.stat().st_size} bytes where {index.name} promises {expected}; encode again")
    ends = np.concatenate([[0], np.cumsum(lengths)])[documents[1:]]
    return TokenStream(prefix, np.memmap(data, dtype=dtype, mode="r"), ends)


def _check_index(index: Path) -> None:
    """Megatron-Core reads an index of the wrong size without a word, or fails with somebody else's."""
    with index.open("rb") as file:
        header = file.read(INDEX_HEADER.size)
    if len(header) == INDEX_HEADER.size:
        magic, version, _, sequences, documents = INDEX_HEADER.unpack(header)
        expected = INDEX_HEADER.size + 12 * sequences + 8 * documents
        if (magic, version) == (MAGIC, VERSION) and index.stat().st_size == expected:
            return
    raise UserError(f"{index}: damaged, truncated or not an index of Megatron-Core's; encode again")


def _check_manifest(prefix: Path, vocab_size: int, tokenizer_sha256: str) -> None:
    """Token files of other tools carry no manifest; ours must name the recipe's tokenizer."""
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
            f"{file}: written with another tokenizer ({manifest.get('vocab_size')} pieces) than data.tokenizer "
            f"({vocab_size} pieces); encode again, or set data.tokenizer to the one that was used"
        )
