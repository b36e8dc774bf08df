"""The learning rate is DeepSpeed's, number for number, as a function of the step alone."""

import logging

import pytest
import torch
from deepspeed.runtime import lr_schedules

from pretrain.config.deepspeed import Scheduler
from pretrain.optim.rates import learning_rate

STEPS, LR = 50, 3e-3
SCHEDULES = [
    ("WarmupLR", {"warmup_num_steps": 7}),
    ("WarmupLR", {"warmup_num_steps": 7, "warmup_type": "linear", "warmup_min_lr": 1e-4}),
    ("WarmupDecayLR", {"warmup_num_steps": 7}),
    ("WarmupDecayLR", {"warmup_num_steps": 1, "warmup_type": "linear"}),
    ("WarmupCosineLR", {"warmup_num_steps": 7, "warmup_type": "linear", "cos_min_ratio": 0.1}),
    ("WarmupCosineLR", {"warmup_num_steps": 7, "warmup_min_ratio": 0.2}),
    ("WarmupCosineLR", {"warmup_num_steps": 60}),
]


def theirs(kind: str, params: dict) -> list[float]:
    """DeepSpeed's own schedule around an optimizer, stepped as training would."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    arguments = dict(params)
    if kind != "WarmupLR":
        arguments["total_num_steps"] = STEPS
    if kind != "WarmupCosineLR":
        arguments["warmup_max_lr"] = LR
    schedule = getattr(lr_schedules, kind)(optimizer, **arguments)
    found = []
    for step in range(1, STEPS + 1):
        schedule.step(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("kind, params", SCHEDULES)
def test_every_rate_is_deepspeeds(kind, params):
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    scheduler = Scheduler.model_validate({"type": kind, "params": params})
    ours = [learning_rate(scheduler, LR, STEPS, step) for step in range(1, STEPS + 1)]
    assert ours == theirs(kind, params)
    assert min(ours) > 0 or kind == "WarmupDecayLR", "no step has a rate of 0, but the last one of a linear decay"


@pytest.mark.parametrize("shape", [None, "linear", "cosine", "1-sqrt"])
def test_a_stable_rate_decays_over_the_last_steps_alone(shape):
    params = {"warmup_num_steps": 7, "warmup_type": "linear", "decay_num_steps": 10, "decay_min_ratio": 0.1}
    params |= {} if shape is None else {"decay_type": shape}
    scheduler = Scheduler.model_validate({"type": "WarmupStableDecay", "params": params})
    rates = [learning_rate(scheduler, LR, STEPS, step) for step in range(1, STEPS + 1)]
    assert rates[:6] == [pytest.approx(LR * step / 7) for step in range(1, 7)] and set(rates[6:41]) == {LR}
    assert all(later < earlier for earlier, later in zip(rates[40:], rates[41:])) and rates[-1] > 0.1 * LR
    half = {None: 0.5, "linear": 0.5, "cosine": 0.5, "1-sqrt": 1 - 0.5**0.5}[shape]
    assert rates[45] == pytest.approx(LR * (0.1 + 0.9 * half)), "five of ten steps are over"
    longer = [learning_rate(scheduler, LR, 2 * STEPS, step) for step in range(1, 41)]
    assert longer == rates[:40], "until the decay it does not matter how long the run is"


def test_without_a_schedule_the_rate_is_constant():
    assert {learning_rate(None, LR, STEPS, step) for step in range(1, STEPS + 1)} == {LR}
