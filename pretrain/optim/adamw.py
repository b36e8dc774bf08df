"""PyTorch's AdamW around flat masters: its state, and the updates that a layer has missed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pretrain.optim.names import MASTER, MOMENTS

STRETCH = {"cpu": 2**15, "cuda": 2**21}
"""Elements that all missed updates pass over before the next ones: they stay in the cache. Multiples of 64, because the CPU's
fused kernel rounds what does not fill a vector otherwise."""


def state_of(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Any]:
    """Return what AdamW keeps beside a master, its count of updates included."""
    state: dict[str, Any] = optimizer.state[master]
    if "step" not in state:
        where = master.device if optimizer.defaults["fused"] else "cpu"
        state["step"] = torch.zeros((), dtype=torch.float32, device=where)
    return state


def tensors_of(optimizer: torch.optim.Optimizer, master: Tensor) -> Mapping[str, Tensor]:
    """Return a master with AdamW's moments of it, zeros before the first update."""
    state = state_of(optimizer, master)
    for kind in MOMENTS:
        if kind not in state:
            state[kind] = torch.zeros_like(master, requires_grad=False)
    return {MASTER: master, **{kind: state[kind] for kind in MOMENTS}}


@torch.no_grad()
def make_up(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], master: Tensor, rates: Sequence[float]) -> None:
    """Update a master as often as there are rates, with a gradient of 0; bit for bit what steps of `optimizer` would do.

    Args:
        group: the one among the optimizer's `param_groups` that the master belongs to.
    """
    if not rates:
        return
    tensors, count = tensors_of(optimizer, master), state_of(optimizer, master)["step"]
    length = STRETCH[master.device.type]
    zeros = torch.zeros(min(length, master.numel()), dtype=master.dtype, device=master.device)
    for begin in range(0, master.numel(), length):
        weight, first, second = (tensors[kind].detach()[begin : begin + length] for kind in (MASTER, *MOMENTS))
        step = count.clone()
        for lr in rates:
            adamw(
                [weight],
                [zeros[: len(weight)]],
                [first],
                [second],
                [],
                [step],
                foreach=group["foreach"],
                capturable=group["capturable"],
                differentiable=group["differentiable"],
                fused=group["fused"],
                amsgrad=group["amsgrad"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=lr,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )
    count += len(rates)
