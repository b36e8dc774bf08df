"""Progressive Layer Dropping: more layers are dropped as training goes on, later layers more often. Source: arXiv 2010.13369.

theta(t) = (1 - thetabar) exp(-gamma t) + thetabar, with t = 0 in the first step; layer l of 1 to L is active with probability
1 - (l / L) (1 - theta(t)). Active layers are scaled by 1 over their own probability. DeepSpeed's version, since removed, scaled
by the next layer's, and counted nothing under activation checkpointing.
"""

import math
from dataclasses import dataclass

from pretrain.subnetwork.methods.base import Settings
from pretrain.subnetwork.methods.independent import Independent, made

KEYS = ("theta", "gamma", "paths_per_step", "residual_scale", "path_seed")
RESIDUAL_SCALE = "1/keep"


@dataclass(frozen=True)
class Pld(Independent):
    theta: float
    gamma: float

    def pace(self, first: int, last: int) -> float:
        """Theta; its mean over steps is a geometric series."""
        count = last - first + 1
        if self.gamma == 0:
            decay = 1.0
        else:
            decay = math.exp(-self.gamma * (first - 1)) * math.expm1(-self.gamma * count) / math.expm1(-self.gamma) / count
        return (1 - self.theta) * decay + self.theta

    def probability(self, layer: int, pace: float) -> float:
        return 1 - (layer + 1) / self.layers * (1 - pace)


def build(settings: Settings) -> Independent:
    """
    Raises:
        ValueError: theta or gamma out of range.
    """
    if not 0 <= settings.theta <= 1:
        raise ValueError(f"theta {settings.theta:g} must lie between 0 and 1; 0.5 is usual")
    if settings.gamma < 0:
        raise ValueError(f"gamma {settings.gamma:g} must not be negative; 0.001 is usual")
    return made(Pld, settings, "pld", settings.theta, settings.gamma)
