import pytest
import torch

from pretrain.generate.sampling import Sampling, choose

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0]])


def drawn(sampling: Sampling, count: int = 4000) -> list[int]:
    return choose(LOGITS.expand(count, -1), sampling, list(range(count)), 0).tolist()


def test_without_temperature_the_likeliest_token_is_taken():
    assert choose(LOGITS, Sampling(), [0], 0).tolist() == [1]
    assert choose(torch.zeros(1, 4), Sampling(), [0], 0).tolist() == [0], "the first of equals"
    assert set(drawn(Sampling(1e-300), 50)) == {1}, "nor with nearly none"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature):
    found = torch.bincount(torch.tensor(drawn(Sampling(temperature))), minlength=4) / 4000
    expected = (LOGITS[0] / temperature).softmax(-1)
    assert (found - expected).abs().max() < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize("top_p, kept", [(0.01, {1}), (0.7, {1, 2}), (0.95, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_only_the_likeliest_are_drawn(top_p, kept):
    assert set(drawn(Sampling(1.0, top_p))) == kept


def test_draws_are_a_texts_own():
    sampling, logits = Sampling(1.0, seed=3), torch.zeros(5, 100)
    together = choose(logits, sampling, [4, 7, 9, 2, 0], 6).tolist()
    assert [choose(logits[:1], sampling, [number], 6).item() for number in (4, 7, 9, 2, 0)] == together
    assert choose(logits, sampling, [4, 7, 9, 2, 0], 7).tolist() != together
    assert choose(logits, Sampling(1.0, seed=4), [4, 7, 9, 2, 0], 6).tolist() != together
