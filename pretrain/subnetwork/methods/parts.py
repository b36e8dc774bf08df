"""Random parts in width: a step runs some groups of heads and some feed-forward columns of each layer, more from stage to stage.

arXiv 2402.05913 defines progressive subnetworks for any part of a model and tries layers alone. What it leaves open is decided
here: parts of a layer are drawn uniformly and by themselves in each layer, what runs is never rescaled, and the last stage runs
the whole width.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pretrain.schema import Count, Positive
from pretrain.subnetwork.methods.base import (
    FullModelLast,
    Method,
    MethodKeys,
    PathLengths,
    PathSeed,
    PathsPerStep,
    StageFractions,
    dashed,
    steps_at_the_end,
)
from pretrain.subnetwork.path import LayerPath, Scheme, draw
from pretrain.subnetwork.schedule import make_stages
from pretrain.subnetwork.units import Units
from pretrain.subnetwork.width import COLUMNS, GROUPS, Blocks, Width, lengths_problem

GroupLengths = Annotated[
    tuple[int, ...],
    BeforeValidator(dashed),
    Field(description='Query groups of each layer that run, stage by stage, as "2-4-6-8"; the last is all that the model has.'),
]
FfnLengths = Annotated[
    tuple[int, ...],
    BeforeValidator(dashed),
    Field(
        description='Blocks of feed-forward columns that run, stage by stage, as "4-6-8"; the last is how many blocks there are.'
    ),
]
WidthParts = Annotated[
    Positive,
    Field(description="Parts of neighbours of which equally many blocks run; a multiple of the tensor ranks balances them."),
]
WidthFixed = Annotated[Count, Field(description="First blocks of each part of the width that always run.")]


@dataclass(frozen=True)
class Parts(Method):
    """Random paths through random parts of layers."""

    schemes: dict[int, Scheme]
    groups: dict[int, Blocks | None]
    columns: dict[int, Blocks | None]
    """For each stage's index, how its paths, and groups and columns of their layers, are drawn; all run if None."""
    paths_per_step: int

    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        return self.schemes[self.stage(first).index].keep

    def width(self, first: int, last: int) -> tuple[float, float]:
        index = self.stage(first).index
        return tuple(1.0 if blocks is None else blocks.count / blocks.of for blocks in (self.groups[index], self.columns[index]))  # type: ignore[return-value]

    @property
    def units(self) -> Units:
        return Units(self.layers, *(max((b.of for b in kind.values() if b), default=0) for kind in (self.groups, self.columns)))

    def paths(self, step: int) -> tuple[LayerPath, ...]:
        stage = self.stage(step).index
        scheme, groups, columns = self.schemes[stage], self.groups[stage], self.columns[stage]

        def width(index: int, layer: int) -> Width:
            return Width(
                groups.draw(GROUPS, scheme.seed, step, index, layer) if groups else None,
                columns.draw(COLUMNS, scheme.seed, step, index, layer) if columns else None,
            )

        found = []
        for index in range(self.paths_per_step):
            path = draw(scheme, step, index)
            if groups or columns:
                path = replace(path, width=tuple(width(index, layer) for layer in range(self.layers)))
            found.append(path)
        return tuple(found)


class _PartsKeys(MethodKeys):
    """Keys that all of them have."""

    stage_fractions: StageFractions = None
    full_model_last_steps: FullModelLast = 0
    width_parts: WidthParts = 1
    width_fixed: WidthFixed = 0
    paths_per_step: PathsPerStep = 1
    path_seed: PathSeed = None
    needed: ClassVar[tuple[str, ...]]
    """Keys that must be given."""

    @model_validator(mode="after")
    def _has_lengths(self) -> "_PartsKeys":
        for name in self.needed:
            if not getattr(self, name):
                raise ValueError(f'method "{self.method}" needs "{name}", as in "4-6-8"')
        return self

    def build(self, layers: int, steps: int, seed: int) -> Parts:
        groups, columns = getattr(self, "group_lengths", ()), getattr(self, "ffn_lengths", ())
        count = max(len(groups), len(columns))
        if not count:
            raise ValueError(f'method "{self.method}" needs "group_lengths" or "ffn_lengths"; for paths alone there is "raptr"')
        paths = getattr(self, "path_lengths", ()) or (layers,) * count
        for name, lengths in (("group_lengths", groups), ("ffn_lengths", columns), ("path_lengths", paths)):
            if lengths and len(lengths) != count:
                raise ValueError(f"{name} has {len(lengths)} stages, and others {count}; give all of them one length a stage")
            if lengths and (problem := lengths_problem(name, lengths)):
                raise ValueError(problem)
        seed = seed if self.path_seed is None else self.path_seed
        last = steps_at_the_end(self.full_model_last_steps)
        stages = make_stages(steps, layers, paths, self.stage_fractions, full_model_last_steps=last)
        fixed = tuple(sorted({0, layers - 1}))

        def blocks(lengths: tuple[int, ...]) -> dict[int, Blocks | None]:
            found: dict[int, Blocks | None] = {}
            for stage in stages:
                whole = not lengths or stage.index > count or lengths[stage.index - 1] == lengths[-1]
                found[stage.index] = (
                    None if whole else Blocks(lengths[stage.index - 1], lengths[-1], self.width_parts, self.width_fixed)
                )
            return found

        schemes = {stage.index: Scheme(layers, stage.path_length, fixed, "exact", 1, "none", seed) for stage in stages}
        return Parts(self.method, layers, stages, schemes, blocks(groups), blocks(columns), self.paths_per_step)


class RaptrHeadsKeys(_PartsKeys):
    """Keys of `raptr_heads`."""

    summary = "random groups of heads, more in each stage"
    needed = ("group_lengths",)
    method: Literal["raptr_heads"] = "raptr_heads"
    group_lengths: GroupLengths = ()


class RaptrFfnKeys(_PartsKeys):
    """Keys of `raptr_ffn`."""

    summary = "random feed-forward columns, more in each stage"
    needed = ("ffn_lengths",)
    method: Literal["raptr_ffn"] = "raptr_ffn"
    ffn_lengths: FfnLengths = ()


class RaptrPartsKeys(_PartsKeys):
    """Keys of `raptr_parts`."""

    summary = "random paths through random parts of layers, longer and wider in each stage"
    needed = ("path_lengths",)
    method: Literal["raptr_parts"] = "raptr_parts"
    path_lengths: PathLengths = ()
    group_lengths: GroupLengths = ()
    ffn_lengths: FfnLengths = ()
