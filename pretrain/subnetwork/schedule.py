"""Stages: from a step to the number of layers that it trains. Source: arXiv 2402.05913, section 3."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Stage:
    """A run of consecutive steps with one path length. A stage of RaPTr, not of a pipeline."""

    index: int
    """1, 2, ... in order; 0 for the full-model steps that may come first."""
    first_step: int
    """Steps count from 1."""
    last_step: int
    path_length: int
    """Expected number of active layers, the fixed ones included."""

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1


def make_stages(
    steps: int,
    layers: int,
    path_lengths: Sequence[int],
    stage_fractions: Sequence[float] | None = None,
    full_model_first_fraction: float = 0.0,
    full_model_last_steps: int = 0,
) -> tuple[Stage, ...]:
    """Lay the stages out over a run.

    The first ``round(full_model_first_fraction * steps)`` steps run all layers (stage 0, the warm-up of the
    paper's UL2 runs). The rest is divided by ``stage_fractions``, equal parts if None (the paper's BERT runs).
    A boundary is at the rounded cumulative fraction, so that no rounding error adds up; ties round to even. The last
    ``full_model_last_steps`` steps run all layers in a stage of their own, and all else is laid out over those before.

    Raises:
        ValueError: a fraction out of range, fractions that do not add up to 1, path lengths that shrink or exceed
            ``layers``, or a stage without a step.
    """
    if not path_lengths:
        raise ValueError("path_lengths is empty; write one length a stage, as in 6-8-10-12")
    if any(later < earlier for earlier, later in zip(path_lengths, path_lengths[1:])):
        raise ValueError(f"path_lengths {_dashed(path_lengths)} shrink; paths may only grow from stage to stage")
    if path_lengths[-1] > layers or path_lengths[0] < 1:
        raise ValueError(f"path_lengths {_dashed(path_lengths)} must lie between 1 and the model's {layers} layers")
    if not 0 <= full_model_first_fraction < 1:
        raise ValueError(f"full_model_first_fraction {full_model_first_fraction} must be at least 0 and below 1")

    if not 0 <= full_model_last_steps < steps:
        raise ValueError(f"full_model_last_steps {full_model_last_steps} must be fewer than the run's {steps} steps")
    steps -= full_model_last_steps
    fractions = _fractions(len(path_lengths), stage_fractions)
    first = round(_exact(full_model_first_fraction) * steps)
    stages = [Stage(0, 1, first, layers)] if first else []
    done, last = Fraction(0), first
    for index, (length, fraction) in enumerate(zip(path_lengths, fractions), start=1):
        done += fraction
        boundary = first + round((steps - first) * done)
        if boundary == last:
            raise ValueError(
                f"stage {index} of path_lengths {_dashed(path_lengths)} would be empty in {steps} steps; "
                "train longer, use fewer stages or larger stage_fractions"
            )
        stages.append(Stage(index, last + 1, boundary, length))
        last = boundary
    if full_model_last_steps:
        stages.append(Stage(len(path_lengths) + 1, last + 1, last + full_model_last_steps, layers))
    return tuple(stages)


def _fractions(count: int, given: Sequence[float] | None) -> list[Fraction]:
    if given is None:
        return [Fraction(1, count)] * count
    if len(given) != count:
        raise ValueError(f"stage_fractions has {len(given)} entries for {count} path_lengths; give one a stage")
    if any(f <= 0 for f in given):
        raise ValueError(f"stage_fractions {list(given)} must all be positive")
    exact = [_exact(f) for f in given]
    total = sum(exact, Fraction(0))
    if abs(total - 1) > Fraction(1, 10**6):
        raise ValueError(f"stage_fractions {list(given)} add up to {float(total):g}; they must add up to 1")
    return [f / total for f in exact]


def _exact(value: float) -> Fraction:
    """The decimal number that the user wrote, 0.3 as 3/10."""
    return Fraction(str(value))


def _dashed(lengths: Sequence[int]) -> str:
    return "-".join(map(str, lengths))
