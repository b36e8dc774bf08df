"""A run's own held-out text, source by source: how many bits a byte of it takes, read from left to right."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from pretrain.data.tokens import TokenStream
from pretrain.evaluate.measure import Asking, Posed
from pretrain.evaluate.requests import Request
from tokenizer.pieces import Tokenizer

WINDOWS = 500
"""Windows that are read unless a limit says otherwise."""
DOCUMENTS = 100_000
"""Most documents of a source that are looked at."""


@dataclass(frozen=True)
class HeldOut:
    """Windows of the documents of a source: the first of each, then the second of each, and so on."""

    stream: TokenStream

    def posed(self, asking: Asking, tokenizer: Tokenizer, length: int) -> tuple[list[Posed], int]:
        """Return windows; the first token of each is read, the others are scored. None is too long."""
        sizes = np.array([len(piece) for piece in tokenizer.piece_bytes])
        start = () if asking.mode is None else (tokenizer.id(asking.mode),)
        found: list[Posed] = []
        for document, begin, end in islice(self._windows(length + 1 - len(start)), asking.limit or WINDOWS):
            tokens = tuple(map(int, self.stream.tokens[begin:end]))
            size = int(sizes[list(tokens[1:])].sum())
            if size:
                request = Request((*start, tokens[0]), tokens[1:])
                found.append(Posed(len(found) + 1, str(document), (request,), 0, (size,), size))
        return found, 0

    def _windows(self, longest: int) -> Iterator[tuple[int, int, int]]:
        """Document, begin and end of each window of two tokens at least."""
        ends = self.stream.ends
        documents = [(number, int(ends[number - 1]) if number else 0) for number in range(min(len(ends), DOCUMENTS))]
        for window in count():
            left = []
            for number, begin in documents:
                first, end = begin + window * longest, int(ends[number])
                if end - first >= 2:
                    left.append((number, begin))
                    yield number, first, min(first + longest, end)
            if not left:
                return
            documents = left
