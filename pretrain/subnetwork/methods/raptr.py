"""Random Part Training: random paths whose length grows from stage to stage. Source: arXiv 2402.05913."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from pretrain.schema import Count, Number, Positive
from pretrain.subnetwork.methods.base import (
    FullModelLast,
    Method,
    PathSeed,
    PathsPerStep,
    ResidualScale,
    StageFractions,
    WithLengths,
    steps_at_the_end,
)
from pretrain.subnetwork.path import LayerPath, Sampler, Scheme, draw
from pretrain.subnetwork.schedule import Stage, make_stages


@dataclass(frozen=True)
class Raptr(Method):
    """Random paths drawn by one scheme a stage; also the method `constant`, which has one stage."""

    schemes: dict[int, Scheme]
    """For each stage's index, how its paths are drawn."""
    paths_per_step: int

    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        return self.schemes[self.stage(first).index].keep

    def paths(self, step: int) -> tuple[LayerPath, ...]:
        scheme = self.schemes[self.stage(step).index]
        return tuple(draw(scheme, step, index) for index in range(self.paths_per_step))


class DrawnKeys(WithLengths):
    """How paths of a given length are drawn: the keys that `raptr` and `constant` share."""

    full_model_first_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the steps that train all layers before stage 1, as in the paper's UL2 runs."""
    full_model_last_steps: FullModelLast = 0
    fixed_layers: Annotated[tuple[Count, ...], Field(strict=False)] | None = None
    """Layers that are always active, counted from 0; the first and the last if left out."""
    sampler: Sampler = "balanced"
    """bernoulli: each layer by itself, so the length varies (the paper's definition). exact: a uniform subset.
    balanced: a subset spread evenly over balance_groups, so that pipeline ranks have equal work."""
    balance_groups: Positive = 1
    """Groups of neighbouring layers for balanced; a multiple of the pipeline ranks balances them. It does not follow
    the layout, so that paths are the same on any layout."""
    paths_per_step: PathsPerStep = 1
    residual_scale: ResidualScale = "none"
    path_seed: PathSeed = None

    def stages(self, layers: int, steps: int, fractions: StageFractions) -> tuple[Stage, ...]:
        """Lay the stages out.

        Raises:
            ValueError: settings that cannot run.
        """
        first, last = self.full_model_first_fraction, steps_at_the_end(self.full_model_last_steps)
        return make_stages(steps, layers, self.path_lengths, fractions, first, last)

    def drawn(self, name: str, layers: int, stages: tuple[Stage, ...], seed: int) -> Raptr:
        """Return the method that draws paths of the stages' lengths.

        Raises:
            ValueError: settings that cannot run, and free layers that would never be trained although paths are longer
                than the fixed layers.
        """
        fixed = tuple(sorted({0, layers - 1} if self.fixed_layers is None else set(self.fixed_layers)))
        seed = seed if self.path_seed is None else self.path_seed
        schemes = {
            stage.index: Scheme(layers, stage.path_length, fixed, self.sampler, self.balance_groups, self.residual_scale, seed)
            for stage in stages
        }
        for scheme in schemes.values():
            never = [layer for layer, p in enumerate(scheme.keep) if p == 0]
            if never and scheme.length > len(fixed):
                raise ValueError(
                    f"balance_groups {self.balance_groups}: with paths of {scheme.length} layers, layers {never} would never "
                    'run; use fewer groups, other path_lengths, or "sampler": "exact"'
                )
        return Raptr(name, layers, stages, schemes, self.paths_per_step)


class RaptrKeys(DrawnKeys):
    """Keys of `raptr`."""

    summary = "random paths that grow in stages"
    method: Literal["raptr"] = "raptr"
    stage_fractions: StageFractions = None

    def build(self, layers: int, steps: int, seed: int) -> Raptr:
        return self.drawn("raptr", layers, self.stages(layers, steps, self.stage_fractions), seed)
