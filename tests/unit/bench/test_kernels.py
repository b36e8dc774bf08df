import pytest
import torch
import torch.nn.functional as F

from bench.kernels import eager

TOKENS, WIDTH = 16, 8
WEIGHT, ONE = torch.zeros(WIDTH, WIDTH), torch.ones(())


@pytest.mark.parametrize(
    "call, products, others, passes",
    [
        pytest.param(lambda x: F.linear(x, WEIGHT), 1, 0, 0, id="a matrix product between two views"),
        pytest.param(lambda x: x + 1, 0, 1, 2, id="one read, one written"),
        pytest.param(lambda x: x * ONE.expand_as(x), 0, 1, 2, id="what is spread is there once"),
        pytest.param(lambda x: x.transpose(0, 1)[None].detach(), 0, 0, 0, id="views"),
    ],
)
def test_kernels_and_the_bytes_that_they_move(call, products, others, passes):
    x = torch.zeros(TOKENS, 1, WIDTH)
    made = []
    found = eager(lambda: made.append(call(x)), TOKENS)
    assert (found.products, found.others) == (products, others)
    assert found.bytes == pytest.approx(passes * WIDTH * 4, abs=1)
