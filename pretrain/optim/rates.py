"""The learning rate as a pure function of the step: DeepSpeed's schedules, number for number, and one more.

Source: deepspeed/runtime/lr_schedules.py, version 0.19.8; a test compares every value. DeepSpeed starts at its value -1, at which
the rate is 0 for two steps, and keeps a counter that a checkpoint must save; here step n takes value n.

WarmupStableDecay is ours, as MiniCPM's authors describe it (arXiv 2404.06395, section 4): the rate stays at its top, so that a
run can be made longer, until a short decay; shapes of the decay are compared in arXiv 2405.18392, section 4.
"""

import math

from pretrain.config.deepspeed import Scheduler, SchedulerParams

COS_MIN_RATIO = 0.0001
"""DeepSpeed's default of `cos_min_ratio`."""


def learning_rate(scheduler: Scheduler | None, lr: float, steps: int, step: int) -> float:
    """Return the learning rate of a step.

    Args:
        lr: highest rate, the optimizer's.
        steps: of the whole run.
        step: counted from 1.
    """
    if scheduler is None:
        return lr
    params = scheduler.params
    warm_up = max(2, params.warmup_num_steps)
    if scheduler.type == "WarmupCosineLR":
        return lr * _cosine_ratio(params, warm_up, steps, step)
    if scheduler.type == "WarmupStableDecay":
        return lr * _stable_ratio(params, warm_up, steps, step)
    lowest = params.warmup_min_lr or 0.0
    if step < warm_up:
        factor = _warm_up(params, warm_up, step)
    elif scheduler.type == "WarmupLR":
        factor = 1.0
    else:
        factor = max(0.0, float(steps - step) / float(max(1.0, steps - warm_up)))
    return lowest + (lr - lowest) * factor


def _warm_up(params: SchedulerParams, warm_up: int, step: int) -> float:
    """Return the share of the way to the highest rate."""
    if params.warmup_type == "log":
        return 1.0 / math.log(warm_up) * math.log(step + 1)
    return step / warm_up


def _stable_ratio(params: SchedulerParams, warm_up: int, steps: int, step: int) -> float:
    """The first step of the decay still has the highest rate, and the last one is a step short of the lowest."""
    assert params.decay_num_steps is not None, "checked where it is read"
    if step < warm_up:
        return _rising_ratio(params, warm_up, step)
    progress = max(0, step - 1 - (steps - params.decay_num_steps)) / params.decay_num_steps
    left = {
        "linear": 1.0 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "1-sqrt": 1.0 - math.sqrt(progress),
    }[params.decay_type or "linear"]
    lowest = params.decay_min_ratio or 0.0
    return lowest + (1.0 - lowest) * left


def _rising_ratio(params: SchedulerParams, warm_up: int, step: int) -> float:
    lowest = params.warmup_min_ratio or 0.0
    return lowest + _warm_up(params, warm_up, step) * (1.0 - lowest)


def _cosine_ratio(params: SchedulerParams, warm_up: int, steps: int, step: int) -> float:
    if step < warm_up:
        return _rising_ratio(params, warm_up, step)
    lowest = COS_MIN_RATIO if params.cos_min_ratio is None else params.cos_min_ratio
    progress = min(1.0, (step - warm_up + 1) / max(1, steps - warm_up))
    return max(0.0, lowest + (1.0 - lowest) * ((1 + math.cos(math.pi * progress)) / 2))
