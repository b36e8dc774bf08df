"""Methods: each decides, from the step alone, which paths the step's batch takes."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, Protocol, Sequence

from pretrain.subnetwork.path import Path, ResidualScale, Sampler, Scheme, draw
from pretrain.subnetwork.schedule import Stage, make_stages

MethodName = Literal["full", "raptr"]


class Method(Protocol):
    """What a method of progressive subnetworks is to the rest of the program."""

    name: str
    stages: tuple[Stage, ...]
    """Stages in order, without gaps, over all steps of the run."""

    def paths(self, step: int) -> tuple[Path, ...]:
        """The paths of a step, counted from 1; equal parts of the global batch take them in order."""
        ...

    def keep(self, stage: Stage) -> tuple[Fraction, ...]:
        """Exact probability of each layer to be active in a step of `stage`."""
        ...

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        ...


@dataclass(frozen=True)
class Full:
    """All layers in every step: the baseline."""

    layers: int
    steps: int
    name: str = "full"

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return make_stages(self.steps, self.layers, (self.layers,))

    def stage(self, step: int) -> Stage:
        return self.stages[0]

    def keep(self, stage: Stage) -> tuple[Fraction, ...]:
        return (Fraction(1),) * self.layers

    def paths(self, step: int) -> tuple[Path, ...]:
        return (Path.full(self.layers),)


@dataclass(frozen=True)
class Raptr:
    """Random Part Training: random paths whose length grows from stage to stage. Source: arXiv 2402.05913."""

    stages: tuple[Stage, ...]
    schemes: dict[int, Scheme]
    """For each stage's index, how its paths are drawn."""
    paths_per_step: int
    name: str = "raptr"

    def stage(self, step: int) -> Stage:
        return next(s for s in self.stages if s.first_step <= step <= s.last_step)

    def keep(self, stage: Stage) -> tuple[Fraction, ...]:
        return self.schemes[stage.index].keep

    def paths(self, step: int) -> tuple[Path, ...]:
        scheme = self.schemes[self.stage(step).index]
        return tuple(draw(scheme, step, index) for index in range(self.paths_per_step))


def make_method(
    name: MethodName,
    *,
    layers: int,
    steps: int,
    path_lengths: Sequence[int],
    stage_fractions: Sequence[float] | None = None,
    full_model_first_fraction: float = 0.0,
    fixed_layers: Sequence[int] | None = None,
    sampler: Sampler = "balanced",
    balance_groups: int = 1,
    paths_per_step: int = 1,
    residual_scale: ResidualScale = "none",
    path_seed: int = 0,
) -> Method:
    """The method of a run; every argument is a key of `progressive_subnetwork` or decided by the run.

    Raises:
        ValueError: settings that cannot run, and free layers that would never be trained although paths are longer
            than the fixed layers.
    """
    if name == "full":
        return Full(layers, steps)
    fixed = tuple(sorted({0, layers - 1} if fixed_layers is None else set(fixed_layers)))
    stages = make_stages(steps, layers, path_lengths, stage_fractions, full_model_first_fraction)
    schemes = {
        stage.index: Scheme(layers, stage.path_length, fixed, sampler, balance_groups, residual_scale, path_seed)
        for stage in stages
    }
    for scheme in schemes.values():
        never = [layer for layer, p in enumerate(scheme.keep) if p == 0]
        if never and scheme.length > len(fixed):
            raise ValueError(
                f"balance_groups {balance_groups}: with paths of {scheme.length} layers, layers {never} would never "
                'run; use fewer groups, other path_lengths, or "sampler": "exact"'
            )
    return Raptr(stages, schemes, paths_per_step)
