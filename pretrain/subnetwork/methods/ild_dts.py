"""Layers dropped more often the later they are, and less often as training proceeds. Source: "Don't Drop Dropout", arXiv
2609.05275.

Layer l of 0 to L - 1 is dropped in step t of 0 to T - 1 with probability q_max l / (L - 1) (1 - t / (T - 1)). Active layers are
scaled by 1 over their probability in training, and not in evaluation: its authors' main finding. Paths of this project cover
micro-batches, theirs single sequences.
"""

from dataclasses import dataclass
from typing import Literal

from pretrain.schema import Number
from pretrain.subnetwork.methods.base import MethodKeys, PathSeed, PathsPerStep, ResidualScale
from pretrain.subnetwork.methods.independent import Independent, over_one_stage

Q_MAX = 0.6
"""How often the last layer is dropped in the first step, where a block does not say."""


@dataclass(frozen=True)
class IldDts(Independent):
    """Dropping that rises with depth and fades over the run."""

    steps: int
    q_max: float

    def pace(self, first: int, last: int) -> float:
        """Return what is left of the dropping, 1 in the first step and 0 in the last."""
        return 1 - ((first - 1) + (last - 1)) / 2 / (self.steps - 1)

    def probability(self, layer: int, pace: float) -> float:
        return 1 - self.q_max * layer / (self.layers - 1) * pace


class IldDtsKeys(MethodKeys):
    """Keys of `ild_dts`."""

    summary = "dropping that fades"
    method: Literal["ild_dts"]
    q_max: Number | None = None
    """How often the last layer is dropped in the first step (ild_dts); 0.6 if left out."""
    paths_per_step: PathsPerStep = 1
    residual_scale: ResidualScale = "1/keep"
    path_seed: PathSeed = None

    def build(self, layers: int, steps: int, seed: int) -> IldDts:
        q_max = Q_MAX if self.q_max is None else self.q_max
        if not 0 <= q_max <= 1:
            raise ValueError(f"q_max {q_max:g} must lie between 0 and 1")
        if layers < 2 or steps < 2:
            raise ValueError(f'method "ild_dts" needs 2 layers and 2 steps at least, not {layers} and {steps}')
        seed = seed if self.path_seed is None else self.path_seed
        scale, paths = self.residual_scale, self.paths_per_step
        return over_one_stage(IldDts, "ild_dts", layers, steps, scale, paths, seed, steps, q_max)
