"""The walk that takes the place of autograd's engine in dry runs (tests/support/dry): its gradients are the engine's."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.dry.backward import Walk


class Doubled(torch.autograd.Function):
    """Two outputs, of which one is used, and an argument that is no tensor."""

    @staticmethod
    def forward(ctx, factor: float, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.factor = factor
        return x * factor, x.clone()

    @staticmethod
    def backward(ctx, first: Tensor, second: Tensor) -> tuple[None, Tensor]:
        return None, first * ctx.factor + second


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.scale = nn.Linear(4, 8), nn.Linear(8, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, reentrant: bool) -> Tensor:
        x = checkpoint(lambda x: self.second(self.first(x).tanh()), x, use_reentrant=reentrant) + x
        x = Doubled.apply(2.0, x * self.scale)[0]  # a broadcast, whose gradient is a sum
        first, second = x.split(2, dim=-1)
        return (first.to(torch.bfloat16).float() * second).sum() + self.first.bias.sum()


def gradients(run, reentrant: bool) -> list[Tensor]:
    model, x = Model(), torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    run(model(x, reentrant))
    return [x.grad, *(weight.grad for weight in model.parameters())]


@pytest.fixture
def walk(monkeypatch):
    monkeypatch.setattr(torch.autograd.Variable, "_execution_engine", torch.autograd.Variable._execution_engine)
    monkeypatch.setattr(torch.Tensor, "register_hook", torch.Tensor.register_hook)
    monkeypatch.setattr(torch._C, "_current_graph_task_id", torch._C._current_graph_task_id)
    return Walk()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_engines(walk, reentrant):
    wanted = gradients(torch.Tensor.backward, reentrant)
    walk.install()
    found = gradients(torch.Tensor.backward, reentrant)
    assert len(found) == len(wanted) == 6
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_hooks_gradients_of_inputs_and_callbacks(walk):
    walk.install()
    x, called = torch.ones(3, requires_grad=True), []
    middle = x * 2
    middle.register_hook(lambda gradient: gradient * 10)
    walk.queue_callback(lambda: called.append(True))
    (found,) = torch.autograd.grad((middle * 3).sum(), x)
    assert found.tolist() == [60.0] * 3 and x.grad is None and called == [True]
