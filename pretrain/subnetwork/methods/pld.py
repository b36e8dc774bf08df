"""Progressive Layer Dropping: more layers are dropped as training proceeds, later layers more often. Source: arXiv 2010.13369.

theta(t) = (1 - thetabar) exp(-gamma t) + thetabar, with t = 0 in the first step; layer l of 1 to L is active with probability
1 - (l / L) (1 - theta(t)). Active layers are scaled by 1 over their own probability. DeepSpeed's version, since removed, scaled
by the next layer's, and counted nothing under activation checkpointing.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pretrain.schema import Number
from pretrain.subnetwork.methods.base import MethodKeys, PathSeed, PathsPerStep, ResidualScale
from pretrain.subnetwork.methods.independent import Independent, over_one_stage

THETA, GAMMA = 0.5, 0.001
"""The paper's, where a block names none."""


@dataclass(frozen=True)
class Pld(Independent):
    """Layers fade from all of them to a mean share of (1 + theta) / 2."""

    theta: float
    gamma: float

    def pace(self, first: int, last: int) -> float:
        """Return theta; its mean over steps is a geometric series."""
        count = last - first + 1
        if self.gamma == 0:
            decay = 1.0
        else:
            decay = math.exp(-self.gamma * (first - 1)) * math.expm1(-self.gamma * count) / math.expm1(-self.gamma) / count
        return (1 - self.theta) * decay + self.theta

    def probability(self, layer: int, pace: float) -> float:
        return 1 - (layer + 1) / self.layers * (1 - pace)


class PldKeys(MethodKeys):
    """Keys of `pld`."""

    summary = "progressive layer dropping"
    method: Literal["pld"]
    theta: Number | None = None
    """The mean share of active layers tends to (1 + theta) / 2 (pld); 0.5 if left out."""
    gamma: Number | None = None
    """How fast the share falls, per step (pld); 0.001 if left out."""
    paths_per_step: PathsPerStep = 1
    residual_scale: ResidualScale = "1/keep"
    path_seed: PathSeed = None

    def build(self, layers: int, steps: int, seed: int) -> Pld:
        theta, gamma = THETA if self.theta is None else self.theta, GAMMA if self.gamma is None else self.gamma
        if not 0 <= theta <= 1:
            raise ValueError(f"theta {theta:g} must lie between 0 and 1; 0.5 is usual")
        if gamma < 0:
            raise ValueError(f"gamma {gamma:g} must not be negative; 0.001 is usual")
        seed = seed if self.path_seed is None else self.path_seed
        return over_one_stage(Pld, "pld", layers, steps, self.residual_scale, self.paths_per_step, seed, theta, gamma)
