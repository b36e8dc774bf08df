"""What a step and an evaluation report: below everything that shows or keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.config.recipe import ExampleKind


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on every rank."""

    loss: float
    """Mean over the target tokens of the global batch, through each sample's own path."""
    grad_norm: float
    """Norm of the whole model's gradient before clipping."""
    lr: float
    """Learning rate of this step's update."""
    targets: int
    """Target tokens of the global batch."""
    forward_seconds: tuple[float, ...]
    """Time that each rank spent in its own forward passes."""


@dataclass(frozen=True)
class TaskMean:
    """A metric of a task that was scored during training."""

    mean: float
    error: float | None
    """Standard error over documents, by clusters; None of a single one."""


@dataclass(frozen=True)
class Evaluation:
    """Losses per target token on held-out text, the same on every rank."""

    loss: float
    by_denoiser: dict[str, float]
    by_mode: dict[str, float]
    """Losses by UL2's mode token; empty where examples have none."""
    by_source: dict[str, float]

    @classmethod
    def of(cls, kinds: Sequence[ExampleKind], sums: Sequence[float], counts: Sequence[float]) -> "Evaluation":
        """Make an evaluation from sums of losses and numbers of targets of each kind of example."""

        def by(name: str) -> dict[str, float]:
            values: dict[str, float] = {}
            for value in dict.fromkeys(getattr(kind, name) for kind in kinds):
                chosen = [i for i, kind in enumerate(kinds) if value is not None and getattr(kind, name) == value]
                count = sum(counts[i] for i in chosen)
                if count:
                    values[value] = sum(sums[i] for i in chosen) / count
            return values

        return cls(sum(sums) / sum(counts), by("denoiser"), by("mode"), by("source"))
