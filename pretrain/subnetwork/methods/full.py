"""All layers in every step: the baseline."""

from fractions import Fraction

from pretrain.subnetwork.methods.base import Method, MethodKeys
from pretrain.subnetwork.path import LayerPath
from pretrain.subnetwork.schedule import make_stages


class Full(Method):
    """All layers, unscaled."""

    def paths(self, step: int) -> tuple[LayerPath, ...]:
        return (LayerPath.full(self.layers),)

    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        return (Fraction(1),) * self.layers


class FullKeys(MethodKeys):
    """Takes the keys of all other methods and heeds none (`methods/__init__.py` adds them): one flag makes a run its baseline."""

    summary = "all layers in every step, whatever else this block says"

    def build(self, layers: int, steps: int, seed: int) -> Full:
        return Full("full", layers, make_stages(steps, layers, (layers,)))
