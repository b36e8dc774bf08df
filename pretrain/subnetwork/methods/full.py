"""All layers in every step: the baseline."""

from fractions import Fraction

from pretrain.subnetwork.methods.base import Method, Settings
from pretrain.subnetwork.path import LayerPath
from pretrain.subnetwork.schedule import make_stages


class Full(Method):
    def paths(self, step: int) -> tuple[LayerPath, ...]:
        return (LayerPath.full(self.layers),)

    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        return (Fraction(1),) * self.layers


def build(settings: Settings) -> Full:
    layers = settings.layers
    return Full("full", layers, make_stages(settings.steps, layers, (layers,)))
