"""Layers dropped more often the later they stand, and less often as training goes on. Source: "Don't Drop Dropout", arXiv
2609.05275.

Layer l of 0 to L - 1 is dropped in step t of 0 to T - 1 with probability q_max l / (L - 1) (1 - t / (T - 1)). Active layers are
scaled by 1 over their probability in training, and not in evaluation: its authors' main finding. Paths of ours cover
micro-batches, theirs single sequences.
"""

from dataclasses import dataclass

from pretrain.subnetwork.methods.base import Settings
from pretrain.subnetwork.methods.independent import Independent, made

KEYS = ("q_max", "paths_per_step", "residual_scale", "path_seed")
RESIDUAL_SCALE = "1/keep"


@dataclass(frozen=True)
class IldDts(Independent):
    steps: int
    q_max: float

    def pace(self, first: int, last: int) -> float:
        """What is left of the dropping, 1 in the first step and 0 in the last."""
        return 1 - ((first - 1) + (last - 1)) / 2 / (self.steps - 1)

    def probability(self, layer: int, pace: float) -> float:
        return 1 - self.q_max * layer / (self.layers - 1) * pace


def build(settings: Settings) -> Independent:
    """
    Raises:
        ValueError: q_max out of range, or too few layers or steps for a slope.
    """
    if not 0 <= settings.q_max <= 1:
        raise ValueError(f"q_max {settings.q_max:g} must lie between 0 and 1")
    if settings.layers < 2 or settings.steps < 2:
        raise ValueError(f'method "ild_dts" needs 2 layers and 2 steps at least, not {settings.layers} and {settings.steps}')
    return made(IldDts, settings, "ild_dts", settings.steps, settings.q_max)
