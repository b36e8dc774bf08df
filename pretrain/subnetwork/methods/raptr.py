"""Random Part Training: random paths whose length grows from stage to stage. Source: arXiv 2402.05913."""

from dataclasses import dataclass
from fractions import Fraction

from pretrain.subnetwork.methods.base import Method, Settings
from pretrain.subnetwork.path import LayerPath, Scheme, draw
from pretrain.subnetwork.schedule import make_stages

KEYS = (
    "path_lengths",
    "stage_fractions",
    "full_model_first_fraction",
    "fixed_layers",
    "sampler",
    "balance_groups",
    "paths_per_step",
    "residual_scale",
    "path_seed",
)


@dataclass(frozen=True)
class Raptr(Method):
    """Also of `constant`, which has one stage."""

    schemes: dict[int, Scheme]
    """For each stage's index, how its paths are drawn."""
    paths_per_step: int

    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        return self.schemes[self.stage(first).index].keep

    def paths(self, step: int) -> tuple[LayerPath, ...]:
        scheme = self.schemes[self.stage(step).index]
        return tuple(draw(scheme, step, index) for index in range(self.paths_per_step))


def build(settings: Settings, name: str = "raptr") -> Raptr:
    """
    Raises:
        ValueError: settings that cannot run, and free layers that would never be trained although paths are longer
            than the fixed layers.
    """
    if not settings.path_lengths:
        raise ValueError(f'method "{name}" needs "path_lengths", as in "6-8-10-12"')
    layers, groups = settings.layers, settings.balance_groups
    fixed = tuple(sorted({0, layers - 1} if settings.fixed_layers is None else set(settings.fixed_layers)))
    stages = make_stages(
        settings.steps, layers, settings.path_lengths, settings.stage_fractions, settings.full_model_first_fraction
    )
    schemes = {
        stage.index: Scheme(
            layers, stage.path_length, fixed, settings.sampler, groups, settings.residual_scale, settings.path_seed
        )
        for stage in stages
    }
    for scheme in schemes.values():
        never = [layer for layer, p in enumerate(scheme.keep) if p == 0]
        if never and scheme.length > len(fixed):
            raise ValueError(
                f"balance_groups {groups}: with paths of {scheme.length} layers, layers {never} would never "
                'run; use fewer groups, other path_lengths, or "sampler": "exact"'
            )
    return Raptr(name, layers, stages, schemes, settings.paths_per_step)
