"""Updates that were missed and are made up for are, bit for bit, the updates that steps would have made."""

import pytest
import torch

from pretrain.optim import adamw as module
from pretrain.optim.adamw import make_up, state_of, tensors_of

RATES = [1e-3 * (n % 5 + 1) for n in range(7)]


def trained(fused: bool, size: int = 1000) -> torch.optim.AdamW:
    """AdamW after two steps."""
    torch.manual_seed(3)
    master = torch.randn(size, requires_grad=True)
    optimizer = torch.optim.AdamW([master], lr=1e-2, weight_decay=0.1, fused=fused)
    for _ in range(2):
        master.grad = torch.randn(size)
        optimizer.step()
    return optimizer


def state(optimizer) -> list[torch.Tensor]:
    (master,) = optimizer.param_groups[0]["params"]
    return [t.detach().clone() for t in (*tensors_of(optimizer, master).values(), state_of(optimizer, master)["step"])]


def stepped(optimizer, rates) -> list[torch.Tensor]:
    """What steps with a gradient of 0 make of it."""
    (group,) = optimizer.param_groups
    for rate in rates:
        group["lr"], group["params"][0].grad = rate, torch.zeros_like(group["params"][0])
        optimizer.step()
    return state(optimizer)


def made_up(optimizer, rates, **other) -> list[torch.Tensor]:
    (group,) = optimizer.param_groups
    make_up(optimizer, {**group, **other}, group["params"][0], rates)
    return state(optimizer)


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("stretch", [2**15, 64])
def test_it_is_as_many_steps(monkeypatch, fused, stretch):
    monkeypatch.setitem(module.STRETCH, "cpu", stretch)
    assert same(made_up(trained(fused), RATES), stepped(trained(fused), RATES))


def test_in_parts_it_is_the_same():
    optimizer = trained(True)
    made_up(optimizer, RATES[:3])
    made_up(optimizer, [])
    assert same(made_up(optimizer, RATES[3:]), made_up(trained(True), RATES))


def test_a_master_that_was_never_updated_only_decays():
    master = torch.ones(64, requires_grad=True)
    optimizer = torch.optim.AdamW([master], weight_decay=0.1, fused=True)
    made_up(optimizer, [0.5, 0.5])
    assert torch.allclose(master, torch.full((64,), 0.95**2))


def test_other_rates_and_no_decay_are_noticed():
    right = stepped(trained(True), RATES)
    assert not same(made_up(trained(True), RATES[::-1]), right)
    assert not same(made_up(trained(True), [RATES[-1]] * len(RATES)), right)
    assert not same(made_up(trained(True), RATES, weight_decay=0.0), right)
