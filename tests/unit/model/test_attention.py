"""Who sees whom: the mask, both kernels, and leaks."""

import numpy as np
import pytest
import torch

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.model.attention import CoreAttention, block_mask, dense_mask
from pretrain.model.blocks import block_tables
from pretrain.model.layer import LayerInputs
from pretrain.subnetwork import LayerPath
from tests.support.project import BERT


def a_pack() -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples of 128: three examples and padding; one example that is all prefix and a long one."""
    segments = torch.tensor([[0] * 40 + [1] * 50 + [2] * 30 + [-1] * 8, [0] * 16 + [1] * 112])
    prefix = torch.zeros(2, 128, dtype=torch.bool)
    prefix[0, :10] = prefix[0, 40:70] = prefix[1, :16] = prefix[1, 16:20] = True
    return segments, prefix


def test_mask_is_what_the_words_say():
    segments, prefix = a_pack()
    mask = dense_mask(segments, prefix, torch.float32)[:, 0] == 0
    for b, q, k in np.random.default_rng(0).integers((0, 0, 0), (2, 128, 128), (4000, 3)):
        expected = segments[b, q] == segments[b, k] and (k <= q or prefix[b, k])
        assert bool(mask[b, q, k]) == bool(expected)
    assert mask.any(-1).all(), "every position must see itself, or its softmax is not a number"


def test_flex_equals_sdpa():
    """Eager on the CPU; the compiled kernel is compared on a GPU."""
    segments, prefix = a_pack()
    torch.manual_seed(0)
    q, k, v = (torch.randn(128, 2, 4, 16) for _ in range(3))
    core = CoreAttention.__new__(CoreAttention)
    torch.nn.Module.__init__(core)
    dense = core.forward(q, k, v, dense_mask(segments, prefix, torch.float32))
    tables = {name: torch.from_numpy(array) for name, array in block_tables(segments.numpy(), prefix.numpy()).items()}
    flex = core.forward(q, k, v, block_mask(segments, prefix, tables))
    assert torch.allclose(dense, flex, atol=1e-5)


@pytest.fixture(scope="module", params=["ul2", "causal", "mlm"])
def decoder(request, project, ranks):
    """A batch and the model's logits for its tokens or others."""
    run = project.run(
        f"data.objective={request.param}", *(f"{key}={value}" for key, value in BERT.items() if request.param == "mlm")
    )
    data = open_data(run)
    batch = data.train.batch(3, 2)
    data.close()
    engine = build_engine(run, ranks)
    (chunk,) = engine.model.chunks
    chunk.eval()

    @torch.no_grad()
    def logits(tokens: np.ndarray) -> torch.Tensor:
        mask = dense_mask(torch.from_numpy(batch.segments), torch.from_numpy(batch.prefix), torch.float32)
        inputs = LayerInputs(mask, LayerPath.full(8))
        return chunk(torch.from_numpy(tokens), torch.from_numpy(batch.positions), inputs)

    return batch, logits


def test_changing_a_token_moves_only_what_may_see_it(decoder):
    """Across examples: nothing. From target to prefix: nothing. From prefix: everything of its example."""
    batch, logits = decoder
    before = logits(batch.tokens)
    row = 0
    for place in range(0, batch.tokens.shape[1], 5):
        if batch.segments[row, place] < 0:
            continue
        tokens = batch.tokens.copy()
        tokens[row, place] = (tokens[row, place] + 1) % 600
        moved = (logits(tokens) != before).any(-1)
        same = torch.from_numpy(batch.segments[row] == batch.segments[row, place])
        later = torch.arange(len(same)) >= place
        may_see = same & (later | bool(batch.prefix[row, place]))
        assert not moved[1].any(), "another sample moved"
        assert not (moved[row] & ~may_see).any(), "a position moved that may not see the token"
        assert moved[row][may_see].all()


def test_padding_the_vocabulary_more_changes_no_loss(project, ranks):
    losses = []
    for rows in (640, 1280):
        run = project.run(f"model.padded_vocab_size={rows}", "model.tied_embeddings=false")
        data, engine = open_data(run), build_engine(run, ranks)
        weights = dict(engine.model.named_parameters())
        for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            numbers = torch.Generator().manual_seed(1)
            weights[name].data[:600] = 0.02 * torch.randn(600, 32, generator=numbers)
            weights[name].data[600:] = 5.0  # padding that would win, if it counted
        losses.append(engine.evaluate(data.held_out()).loss)
        data.close()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
