"""`plan --target-speedup`: path lengths for a share of the layers' operations, and what they buy on this layout beside the
alternatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations_with_replacement
from math import comb, lcm

from pretrain.config import Run
from pretrain.config.strict import COMMAND_LINE
from pretrain.cost.flops import savings
from pretrain.errors import UserError
from pretrain.plan.cost import speed
from pretrain.subnetwork.methods import MethodKeys, RaptrKeys
from pretrain.subnetwork.methods.growth import StackingKeys

STAGES = 4
"""Number of stages of the paper's schedules, where the recipe has none."""
MOST_CHOICES = 500_000


@dataclass(frozen=True)
class Offer:
    """A method with its settings, and what it saves."""

    what: str
    run: Run

    @property
    def layer_factor(self) -> float:
        """How many times fewer layer operations than with all layers."""
        return savings(self.run.method, self.run.recipe.shape).layer_factor

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.run.ds.progressive_subnetwork.given["path_lengths"])

    @property
    def ideal(self) -> float:
        """Step time of this layout, all layers over the method's, communication free."""
        return 1 / speed(self.run).ratio


@dataclass(frozen=True)
class Refused:
    """A method that cannot run so."""

    what: str
    why: str


def fixed_layers(keys: RaptrKeys) -> int:
    """Count the layers that run in every step of `raptr`."""
    return 2 if keys.fixed_layers is None else len(set(keys.fixed_layers))


def as_raptr(block: MethodKeys) -> RaptrKeys:
    """Return the keys of a block that `raptr` has, too, as a block of `raptr`."""
    shared = {key: getattr(block, key) for key in RaptrKeys.model_fields if key != "method" and hasattr(block, key)}
    return RaptrKeys.model_validate(shared)


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


def offers(run: Run, factor: float) -> list[Offer | Refused]:
    """RaPTr with paths balanced over this layout's pipeline ranks, RaPTr with uniform paths, and stacking."""
    keys, layers, ranks = as_raptr(run.ds.progressive_subnetwork), run.recipe.model.num_layers, run.recipe.parallel.pipeline
    if run.ds.progressive_subnetwork.method != "raptr":
        keys = keys.model_copy(update={"residual_scale": "none"})
    groups = keys.balance_groups if keys.balance_groups % ranks == 0 else ranks
    fixed = fixed_layers(keys)
    stages = len(keys.stage_fractions or ()) or (len(keys.path_lengths) if len(keys.path_lengths) > 1 else STAGES)
    fractions = [Fraction(str(fraction)) for fraction in keys.stage_fractions or ()] or [Fraction(1, stages)] * stages
    after_full = [(1 - Fraction(str(keys.full_model_first_fraction))) * fraction for fraction in fractions]
    lengths = propose(layers, after_full, factor, fixed, groups)
    grown = propose(layers, fractions, factor, fixed, groups)  # a growing model has no first steps of all layers
    balanced = keys.model_copy(update={"path_lengths": lengths, "sampler": "balanced", "balance_groups": groups})
    uniform = balanced.model_copy(update={"sampler": "exact", "balance_groups": 1})
    stacking = StackingKeys(method="stacking", path_lengths=grown, stage_fractions=keys.stage_fractions)
    return [
        _offer(run, f"raptr, balanced over {groups} group{'s' * (groups > 1)}", balanced),
        _offer(run, "raptr, uniform (exact)", uniform),
        _offer(run, "stacking", stacking),
    ]


def _offer(run: Run, what: str, block: MethodKeys) -> Offer | Refused:
    changed = replace(run, ds=run.ds.model_copy(update={"progressive_subnetwork": block}))
    try:
        assert changed.method
    except UserError as error:
        return Refused(what, str(error).split(": ", 2)[-1])
    return Offer(what, changed)
