"""What a method is to the rest of the program, and what it is told."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pretrain.subnetwork.path import LayerPath, ResidualScale, Sampler
from pretrain.subnetwork.schedule import Stage

MethodName = Literal["full", "raptr", "constant", "pld", "ild_dts", "stacking", "midas"]
Copies = tuple[tuple[int, int], ...]
"""Pairs of a layer and the one that it becomes a copy of."""


@dataclass(frozen=True)
class Settings:
    """The keys of `progressive_subnetwork`, and what the run decides; a method takes those that it needs."""

    layers: int
    steps: int
    path_lengths: Sequence[int] = ()
    stage_fractions: Sequence[float] | None = None
    full_model_first_fraction: float = 0.0
    fixed_layers: Sequence[int] | None = None
    sampler: Sampler = "balanced"
    balance_groups: int = 1
    paths_per_step: int = 1
    residual_scale: ResidualScale = "none"
    path_seed: int = 0
    theta: float = 0.5
    gamma: float = 0.001
    q_max: float = 0.6


@dataclass(frozen=True)
class Method(ABC):
    """Decides, from the step alone, which paths the step's batch takes."""

    name: str
    layers: int
    stages: tuple[Stage, ...]
    """In order, without gaps, over all steps of the run."""

    @abstractmethod
    def paths(self, step: int) -> tuple[LayerPath, ...]:
        """The paths of a step, counted from 1; equal parts of the global batch take them in order."""

    @abstractmethod
    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        """Probability of each layer to be active, mean over the steps `first` to `last`, which belong to one stage."""

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        return next(stage for stage in self.stages if stage.first_step <= step <= stage.last_step)

    def whole(self, step: int) -> LayerPath:
        """What is evaluated after a step: all layers, where all exist."""
        return LayerPath.full(self.layers)

    def copies(self, step: int) -> Copies:
        """Layers that become copies of others, with their moments, before a step; only methods that grow have any."""
        return ()
