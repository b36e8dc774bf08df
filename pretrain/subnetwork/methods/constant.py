"""Stochastic depth at one length for the whole run: RaPTr's control. Sources: arXiv 1603.09382; LayerDrop, arXiv 1909.11556."""

from typing import Literal

from pretrain.subnetwork.methods.raptr import DrawnKeys, Raptr


class ConstantKeys(DrawnKeys):
    """Keys of `constant`."""

    example_lengths = "9"
    summary = "random paths of one length"
    method: Literal["constant"]

    def build(self, layers: int, steps: int, seed: int) -> Raptr:
        if len(self.path_lengths) != 1:
            raise ValueError('method "constant" has one path length for the whole run, as in "path_lengths": "9"')
        return self.drawn("constant", layers, self.stages(layers, steps, None), seed)
