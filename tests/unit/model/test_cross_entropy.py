"""Losses in pieces against PyTorch's own in float64, and against what Megatron-Core's would keep."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from pretrain.cost import loss as pieces
from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.model import cross_entropy
from pretrain.model.cross_entropy import linear_cross_entropy
from tests.support.live_bytes import LiveBytes


def data(positions: int, width: int, rows: int, seed: int = 0, dtype: torch.dtype = torch.float32, **where):
    torch.manual_seed(seed)
    hidden = torch.randn(positions, width, dtype=dtype, **where).requires_grad_()
    weight = (torch.randn(rows, width, dtype=dtype, **where) * 0.3).requires_grad_()
    bias = torch.randn(rows, dtype=dtype, **where).requires_grad_()
    factors = torch.rand(positions, **where) * (torch.rand(positions, **where) < 0.6)
    return hidden, weight, bias, torch.randint(0, rows, (positions,), **where), factors


def at_once(dtype, hidden, weight, bias, labels, factors, softcap=None, z_loss=0.0):
    """PyTorch's: weighted sum, losses, gradients."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    logits = F.linear(*inputs)
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss = ((losses + z_loss * logits.logsumexp(-1) ** 2) * factors.to(dtype)).sum()
    loss.backward()
    return loss.detach(), losses.detach(), [x.grad for x in inputs]


def sums_of_sizes(hidden, weight, bias, labels, factors):
    """The sums that gradients are, each term without its sign: what rounding is measured by, since terms may cancel."""
    hidden, weight, bias, factors = (x.detach().double() for x in (hidden, weight, bias, factors))
    terms = (F.linear(hidden, weight, bias).softmax(-1) + F.one_hot(labels, len(bias))) * factors[:, None]
    return terms @ weight.abs(), terms.T @ hidden.abs(), terms.sum(0)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@settings(max_examples=25)
@given(positions=st.integers(1, 40), rows=st.integers(2, 60), piece=st.integers(1, 900), seed=st.integers(0, 99))
def test_losses_and_gradients_are_those_of_the_whole_at_once(ranks, positions, rows, piece, seed):
    given_ = data(positions, 8, rows, seed)
    given_[-1][0] = 0.7  # so that something counts
    expected, every, gradients = at_once(torch.float64, *given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_ON_CPU", piece)
        loss, losses, is_best, best = linear_cross_entropy(*given_, dist.group.WORLD)
        with torch.no_grad():
            *_, best_of_evaluation = linear_cross_entropy(*given_, dist.group.WORLD)
    hidden, weight, bias, labels, _ = given_
    logits = F.linear(hidden, weight, bias)
    assert torch.equal(best_of_evaluation, logits.argmax(-1)) and torch.equal(is_best, logits.argmax(-1) == labels)
    assert (best == -1).all(), "in training nobody asks for them"
    (loss * 3).backward()
    size = 1 + every  # a loss is the difference of two logarithms
    assert (losses - every).norm() / size.norm() < 1e-6 and not losses.requires_grad
    assert (loss.detach() - expected).abs() / (given_[-1] * size).sum() < 1e-6
    for found, wanted, terms in zip(given_, gradients, sums_of_sizes(*given_)):
        assert float((found.grad.double() - 3 * wanted).norm() / (3 * terms).norm()) < 1e-6


@settings(max_examples=25)
@given(
    piece=st.integers(1, 900),
    seed=st.integers(0, 99),
    softcap=st.sampled_from([None, 0.7, 5.0]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.3]),
)
def test_soft_caps_and_z_losses_are_those_of_the_whole_at_once(ranks, piece, seed, softcap, z_loss):
    given_ = data(23, 8, 31, seed)
    given_[-1][0] = 0.7
    expected, every, gradients = at_once(torch.float64, *given_, softcap, z_loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_ON_CPU", piece)
        loss, losses, *_ = linear_cross_entropy(*given_, dist.group.WORLD, softcap=softcap, z_loss=z_loss)
    assert torch.allclose(losses.double(), every, atol=1e-5), "what is reported is the cross entropy alone"
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    for found, wanted in zip(given_, gradients):
        assert far(found.grad, wanted) < 1e-5


def test_a_bf16_gradient_is_rounded_once_however_many_pieces(ranks, monkeypatch):
    given_ = data(256, 32, 64, dtype=torch.bfloat16)
    *_, gradients = at_once(torch.float64, *given_)
    off = {}
    for piece in (64 * 256, 64 * 4):
        monkeypatch.setattr(pieces, "PIECE_ON_CPU", piece)
        linear_cross_entropy(*given_, dist.group.WORLD)[0].backward()
        off[piece] = far(given_[1].grad, gradients[1])
        given_[1].grad = None
    assert max(off.values()) < 4e-3 and off[64 * 4] < 1.3 * off[64 * 256], "bf16 has 8 bits: 2e-3 of a number by itself"


def test_what_does_not_count_may_be_anything_and_nothing_is_kept_without_gradients(ranks):
    hidden, weight, bias, labels, factors = data(12, 8, 20)
    with torch.no_grad():
        factors[3] = 0
        hidden[3] = torch.inf
        loss, losses, *_ = linear_cross_entropy(hidden, weight, bias, labels, factors, dist.group.WORLD)
    assert torch.isfinite(loss) and not torch.isfinite(losses[3]) and not loss.requires_grad


def megatrons(hidden, weight, labels, factors):
    """As it was done before: all logits, those of padding filled, Megatron-Core's cross entropy over them."""
    logits = F.linear(hidden, weight)
    logits[..., 32000:] = -torch.inf
    return (vocab_parallel_cross_entropy(logits, labels) * factors).sum()


def test_temporary_memory_is_a_quarter_of_what_megatrons_takes_at_most(ranks, project):
    """16 x 1024 positions, 32,128 rows of a vocabulary, bf16, on tensors without data."""
    peak = {}
    hidden, weight, _, labels, factors = data(16 * 1024, 768, 32128, dtype=torch.bfloat16, device="meta")
    for name, compute in {
        "megatron": lambda: megatrons(hidden, weight, labels, factors),
        "here": lambda: linear_cross_entropy(hidden, weight[:32000], None, labels, factors, dist.group.WORLD)[0],
    }.items():
        hidden.grad = weight.grad = None
        with LiveBytes() as live:
            compute().backward()
        peak[name] = live.peak
    assert peak["here"] < 0.25 * peak["megatron"], peak


def test_all_tensor_ranks_cut_tokens_into_the_same_pieces(project, ranks, monkeypatch):
    """The last one has fewer rows, where they pad the vocabulary; collectives of other pieces would not match."""
    run, asked = project.run(), []
    monkeypatch.setattr(cross_entropy, "positions_in_piece", lambda columns, on_gpu: asked.append(columns) or 64)
    data, engine = open_data(run), build_engine(run, ranks)
    engine.step(1, data.batch(1), run.method.paths(1))
    data.close()
    assert run.recipe.model.vocab_size < run.recipe.model.padded_vocab_size and set(asked) == {run.recipe.model.padded_vocab_size}
