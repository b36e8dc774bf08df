"""Methods that give every layer a probability of its own in every step, and draw each layer by itself."""

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from pretrain.subnetwork.methods.base import Method
from pretrain.subnetwork.path import LayerPath, ResidualScale, draw_each, scale_of
from pretrain.subnetwork.schedule import Stage

GRAIN = 2**32
"""Probabilities are whole multiples of 1/GRAIN, so that the last bits of a machine's `exp` decide nothing."""


@dataclass(frozen=True)
class Independent(Method):
    """No fixed layers, one stage."""

    residual_scale: ResidualScale
    paths_per_step: int
    path_seed: int

    @abstractmethod
    def pace(self, first: int, last: int) -> float:
        """Return what changes over the run, mean over steps, counted from 1."""

    @abstractmethod
    def probability(self, layer: int, pace: float) -> float:
        """Return a layer's probability to be active; linear in `pace`, so that a mean pace gives a mean probability."""

    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        pace = self.pace(first, last)
        return tuple(Fraction(round(self.probability(layer, pace) * GRAIN), GRAIN) for layer in range(self.layers))

    def paths(self, step: int) -> tuple[LayerPath, ...]:
        keep = self.keep(step, step)
        scales = tuple(scale_of(p, self.residual_scale) for p in keep)
        return tuple(draw_each(keep, scales, self.path_seed, step, index) for index in range(self.paths_per_step))


I = TypeVar("I", bound=Independent)  # noqa: E741


def over_one_stage(
    kind: type[I], name: str, layers: int, steps: int, scale: ResidualScale, paths: int, seed: int, *own: float
) -> I:
    """Make a method of one stage whose length is the mean over the run.

    Args:
        own: what the method's class has beyond `Independent`.
    """

    def with_length(length: int) -> I:
        return kind(name, layers, (Stage(1, 1, steps, length),), scale, paths, seed, *own)

    return with_length(round(sum(with_length(layers).keep(1, steps))))
