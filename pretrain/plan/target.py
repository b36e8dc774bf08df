"""`plan --target-speedup`: path lengths for a share of the layers' operations, and what they buy on this layout beside the
alternatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations_with_replacement
from math import comb, lcm
from typing import Any

from pretrain.config import Run
from pretrain.config.deepspeed import ProgressiveSubnetwork
from pretrain.config.strict import COMMAND_LINE
from pretrain.cost.flops import savings
from pretrain.errors import UserError
from pretrain.plan.cost import speed

STAGES = 4
"""Of the paper's schedules, where the recipe has none."""
MOST_CHOICES = 500_000


@dataclass(frozen=True)
class Offer:
    """A method with its settings, and what it saves."""

    what: str
    run: Run | None
    """None where the method cannot run so; `why` says why."""
    why: str = ""

    @property
    def layer_factor(self) -> float:
        return savings(self.run.method, self.run.recipe.shape).layer_factor

    @property
    def ideal(self) -> float:
        """Step time of this layout, all layers over the method's, communication free."""
        return 1 / speed(self.run).ratio


def fixed_layers(block: ProgressiveSubnetwork) -> int:
    """How many layers run in every step of `raptr`."""
    return 2 if block.fixed_layers is None else len(set(block.fixed_layers))


def propose(layers: int, shares: Sequence[Fraction], factor: float, fixed: int, groups: int) -> tuple[int, ...]:
    """Path lengths that grow to all layers and run 1/factor of the layers' operations.

    Nearest to the target first; of equals those that grow most evenly, then those that `groups` divides, so that groups have
    equal shares in every step.

    Args:
        shares: of the whole run, for each stage; what they leave, the first steps, runs all layers.

    Raises:
        UserError: no such lengths.
    """
    shortest, stages = max(fixed, 1), len(shares)
    reach = float(layers / (layers - sum(shares[:-1]) * (layers - shortest)))
    if not 1 <= factor <= reach:
        raise UserError(
            f"{COMMAND_LINE}: --target-speedup {factor:g}: {layers} layers in {stages} stages, the last of which runs all, can"
            f" save 1 to {reach:.2f} times"
        )
    if comb(layers - shortest + stages - 1, stages - 1) > MOST_CHOICES:
        raise UserError(
            f"{COMMAND_LINE}: --target-speedup: {stages} stages of {layers} layers have too many possible lengths to look at; use"
            " fewer stages"
        )
    scale = lcm(*(share.denominator for share in shares))
    weights = [int(share * scale) for share in shares]
    wanted = scale * layers / factor - (scale - sum(weights)) * layers

    def worth(lengths: tuple[int, ...]) -> tuple:
        steps = [b - a for a, b in zip(lengths, lengths[1:])]
        uneven = max(steps) - min(steps) if steps else 0
        return (
            abs(sum(weight * length for weight, length in zip(weights, lengths)) - wanted),
            uneven,
            sum(k % groups > 0 for k in lengths),
            -lengths[0],
        )

    return min(((*rest, layers) for rest in combinations_with_replacement(range(shortest, layers + 1), stages - 1)), key=worth)


def offers(run: Run, factor: float) -> list[Offer]:
    """RaPTr with paths balanced over this layout's pipeline ranks, RaPTr with uniform paths, and stacking."""
    block, layers, ranks = run.ds.progressive_subnetwork, run.recipe.model.num_layers, run.recipe.parallel.pipeline
    groups = block.balance_groups if block.balance_groups % ranks == 0 else ranks
    fixed = fixed_layers(block)
    stages = len(block.stage_fractions or ()) or (len(block.path_lengths) if len(block.path_lengths) > 1 else STAGES)
    fractions = [Fraction(str(fraction)) for fraction in block.stage_fractions or ()] or [Fraction(1, stages)] * stages
    after_full = [(1 - Fraction(str(block.full_model_first_fraction))) * fraction for fraction in fractions]
    lengths = propose(layers, after_full, factor, fixed, groups)
    grown = propose(layers, fractions, factor, fixed, groups)  # a growing model has no first steps of all layers
    shared = {
        "paths_per_step": block.paths_per_step,
        "residual_scale": block.residual_scale if block.method == "raptr" else "none",
        "fixed_layers": block.fixed_layers,
    }
    raptr = {
        "method": "raptr",
        "path_lengths": lengths,
        "stage_fractions": block.stage_fractions,
        "full_model_first_fraction": block.full_model_first_fraction,
        **shared,
    }
    return [
        _offer(
            run,
            f"raptr, balanced over {groups} group{'s' * (groups > 1)}",
            {"sampler": "balanced", "balance_groups": groups, **raptr},
        ),
        _offer(run, "raptr, uniform (exact)", {"sampler": "exact", **raptr}),
        _offer(run, "stacking", {"method": "stacking", "path_lengths": grown, "stage_fractions": block.stage_fractions}),
    ]


def _offer(run: Run, what: str, block: dict[str, Any]) -> Offer:
    settings = type(run.ds.progressive_subnetwork).model_validate(block)
    changed = replace(run, ds=run.ds.model_copy(update={"progressive_subnetwork": settings}))
    try:
        assert changed.method
    except UserError as error:
        return Offer(what, None, str(error).split(": ", 2)[-1])
    return Offer(what, changed)
