"""What every method has: keys of the JSON, and the paths that follow from them and from a step's number."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pretrain.schema import Count, Number, Positive, Strict
from pretrain.subnetwork import path
from pretrain.subnetwork.path import LayerPath
from pretrain.subnetwork.schedule import Stage
from pretrain.subnetwork.units import Units

Copies = tuple[tuple[int, int], ...]
"""Pairs of a layer and the one that it becomes a copy of."""


@dataclass(frozen=True)
class Method(ABC):
    """Decides, from the step alone, which paths the step's batch takes."""

    name: str
    layers: int
    stages: tuple[Stage, ...]
    """Stages in order, without gaps, over all steps of the run."""

    @abstractmethod
    def paths(self, step: int) -> tuple[LayerPath, ...]:
        """Return the paths of a step, counted from 1; equal parts of the global batch take them in order."""

    @abstractmethod
    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        """Return each layer's probability to be active, mean over the steps `first` to `last`, which belong to one stage."""

    def width(self, first: int, last: int) -> tuple[float, float]:
        """Return the shares of an active layer's groups of heads and feed-forward columns that run, mean over steps of one
        stage."""
        return 1.0, 1.0

    @property
    def units(self) -> Units:
        """What a step may leave out."""
        return Units(self.layers)

    def stage(self, step: int) -> Stage:
        """Return the stage that a step belongs to."""
        return next(stage for stage in self.stages if stage.first_step <= step <= stage.last_step)

    def whole(self, step: int) -> LayerPath:
        """Return what is evaluated after a step: all layers, where all exist."""
        return LayerPath.full(self.layers)

    def copies(self, step: int) -> Copies:
        """Return layers that become copies of others, with their moments, before a step; only methods that grow have any."""
        return ()


SkippedUpdate = Annotated[
    Literal["exact", "none"],
    Field(
        description="What AdamW does to a layer that no path of a step runs. none: nothing; its weights, moments and count of"
        " updates stand still. exact: an update with a gradient of 0, as if it were not skipped; the default in ZeRO stage 0,"
        " which can do nothing else."
    ),
]


class MethodKeys(Strict, ABC):
    """The block `progressive_subnetwork` of one method: a subclass has its keys, their defaults and their explanation."""

    method: str
    """Name of the method; a subclass allows one."""
    skipped_update: SkippedUpdate = "none"
    summary: ClassVar[str]
    """What the method does, in a few words, for `--explain`."""

    @abstractmethod
    def build(self, layers: int, steps: int, seed: int) -> Method:
        """Make the method of a run.

        Args:
            seed: the run's, which decides the paths unless the block has a path_seed.

        Raises:
            ValueError: settings that cannot run, with what to write instead.
        """

    @classmethod
    def names(cls) -> list[str]:
        """Return all keys but `method`, those that every method has last."""
        return sorted(
            cls.model_fields.keys() - {"method"},
            key=lambda key: (key in MethodKeys.model_fields, list(cls.model_fields).index(key)),
        )

    @property
    def given(self) -> dict[str, Any]:
        """Keys that have a value, the method's own first."""
        own = {key: getattr(self, key) for key in self.names()}
        return {key: value for key, value in own.items() if value is not None}


def dashed(value: Any) -> Any:
    """Read "6-8-10-12", 9 or a list."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    try:
        return tuple(int(part) for part in value.split("-"))
    except ValueError:
        raise ValueError('write whole numbers with dashes, as in "6-8-10-12", or a list') from None


def steps_at_the_end(given: int | Literal["decay"]) -> int:
    """Return a number of steps, which the decay's are once the scheduler has been read.

    Raises:
        ValueError: there is no decay.
    """
    if given == "decay":
        raise ValueError('full_model_last_steps "decay" needs a scheduler of type WarmupStableDecay; write a number of steps')
    return given


PathLengths = Annotated[
    tuple[int, ...],
    BeforeValidator(dashed),
    Field(description='Active layers of each stage, as a list or "6-8-10-12". The last stage usually trains all layers.'),
]
StageFractions = Annotated[
    Annotated[tuple[Number, ...], Field(strict=False)] | None,
    Field(description="Share of the steps of each stage; equal if left out, as in the paper's BERT runs."),
]
FullModelLast = Annotated[
    Count | Literal["decay"],
    Field(
        description="Steps at the end that train all layers; decay: those of WarmupStableDecay's decay. Stages are laid out over"
        " the others."
    ),
]
PathsPerStep = Annotated[
    Positive,
    Field(
        description="How many different paths one global batch runs. More paths give every layer a gradient more often; each must"
        " cover whole micro-batches."
    ),
]
ResidualScale = Annotated[
    path.ResidualScale,
    Field(
        description="Factor on the residual branches of an active layer in training, from its probability to be active. Of pld"
        ' and ild_dts "1/keep" if left out, of the others "none".'
    ),
]
PathSeed = Annotated[Count | None, Field(description="Seed of the paths; the run's seed if left out.")]


class WithLengths(MethodKeys):
    """Keys of a method that needs path lengths; its block is refused without them when it is read."""

    example_lengths: ClassVar[str] = "6-8-10-12"
    path_lengths: PathLengths = ()

    @model_validator(mode="after")
    def _has_lengths(self) -> "WithLengths":
        if not self.path_lengths:
            raise ValueError(f'method "{self.method}" needs "path_lengths", as in "{self.example_lengths}"')
        return self
