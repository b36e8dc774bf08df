"""Stochastic depth at one length for the whole run: RaPTr's control. Sources: arXiv 1603.09382; LayerDrop, arXiv 1909.11556."""

from typing import Literal

from pretrain.subnetwork.methods.raptr import DrawnKeys, Raptr
from pretrain.subnetwork.schedule import make_stages


class ConstantKeys(DrawnKeys):
    """Keys of `constant`."""

    example_lengths = "9"
    summary = "random paths of one length"
    method: Literal["constant"]

    def build(self, layers: int, steps: int, seed: int) -> Raptr:
        if len(self.path_lengths) != 1:
            raise ValueError('method "constant" has one path length for the whole run, as in "path_lengths": "9"')
        stages = make_stages(steps, layers, self.path_lengths, None, self.full_model_first_fraction)
        return self.drawn("constant", layers, stages, seed)
