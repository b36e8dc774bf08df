"""Blocks that attention visits: PyTorch's own finding, made from pairs of positions, is the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from pretrain.data.loader import open_data
from pretrain.model.attention import allowed, block_mask
from pretrain.model.blocks import SIZE, block_tables
from tests.support.project import BERT

TABLES = [f"{name}_{what}" for name in ("kv", "full_kv", "q", "full_q") for what in ("num_blocks", "indices")]


def pack(lengths: list[int], prefixes: list[float], total: int) -> tuple[np.ndarray, np.ndarray]:
    """One sample: examples of these lengths, the given share of each a prefix, then padding."""
    segments, prefix, at = np.full(total, -1, np.int32), np.zeros(total, bool), 0
    for number, (length, share) in enumerate(zip(lengths, prefixes)):
        segments[at : at + length] = number
        prefix[at : min(total, at + round(share * length))] = True
        at = min(total, at + length)
    return segments, prefix


def require_equal(segments: np.ndarray, prefix: np.ndarray) -> None:
    count, length = segments.shape
    of = [torch.from_numpy(segments), torch.from_numpy(prefix)]
    expected = create_block_mask(allowed(*of), count, None, length, length, device="cpu")
    found = block_mask(*of, {name: torch.from_numpy(array) for name, array in block_tables(segments, prefix).items()})
    assert found.seq_lengths == expected.seq_lengths and found.BLOCK_SIZE == expected.BLOCK_SIZE == (SIZE, SIZE)
    for name in TABLES:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


@given(
    st.integers(16, 700),
    st.lists(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([0.0, 0.3, 0.9, 1.0])), max_size=9), min_size=1, max_size=3),
)
def test_tables_are_those_of_create_block_mask(total, samples):
    packs = [pack([length for length, _ in sample], [share for _, share in sample], total) for sample in samples]
    require_equal(np.stack([segments for segments, _ in packs]), np.stack([prefix for _, prefix in packs]))


@pytest.mark.parametrize("objective", ["ul2", "causal", "mlm"])
def test_tables_of_real_samples_too(project, objective):
    settings = [f"{key}={value}" for key, value in BERT.items()] if objective == "mlm" else []
    data = open_data(project.run("data.sequence_length=512", f"data.objective={objective}", *settings))
    batch = data.train.batch(0, 4)
    data.close()
    require_equal(batch.segments, batch.prefix)
