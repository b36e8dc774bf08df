"""A stream of numbered tokens, so that a test can see where each token of a batch came from."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.tokens import TokenStream

FIRST_TEXT = 1000
"""Ids below stand for reserved pieces."""


def stream_of(*lengths: int) -> TokenStream:
    """Documents of these lengths, whose tokens count on from FIRST_TEXT."""
    tokens = np.arange(FIRST_TEXT, FIRST_TEXT + sum(lengths)).astype(np.int32)
    return TokenStream(Path("numbered"), tokens, np.cumsum(lengths))


@pytest.fixture(scope="session")
def long_stream() -> TokenStream:
    """One document of a million tokens."""
    return stream_of(1_000_000)
