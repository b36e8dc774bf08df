"""Which methods could train a recipe on a cluster, in which time, and what has been measured of them."""

import math
from dataclasses import dataclass, replace

from pretrain.advise.evidence import Evidence, Measured
from pretrain.config import Run
from pretrain.config.checks import check
from pretrain.cost.flops import savings
from pretrain.errors import UserError
from pretrain.plan.cost import Cluster, hours
from pretrain.plan.link import Links, forecast
from pretrain.subnetwork.methods import FullKeys, MethodKeys
from pretrain.subnetwork.methods.growth import GrowthKeys

FARTHEST = 2
"""Times as many layers, or as few, as were measured: beyond that path lengths are not the same shares of anything known."""


@dataclass(frozen=True)
class Option:
    """A method that could be tried."""

    keys: MethodKeys
    measured: Measured
    layer_factor: float
    """Times fewer layer operations than all layers in every step."""
    hours: float
    saved: float
    """Hours."""

    @property
    def name(self) -> str:
        """What one would say of it."""
        given = self.keys.given
        words = [self.keys.method]
        if lengths := given.get("path_lengths"):
            words.append("-".join(map(str, lengths)))
        if (paths := given.get("paths_per_step")) is not None:
            words.append("1 path a step" if paths == 1 else f"{paths} paths a step")
        words += [f"{key} {given[key]:.3g}" for key in ("theta", "gamma", "q_max") if key in given]
        if self.keys.skipped_update == "exact" and not isinstance(self.keys, GrowthKeys):  # which never sleep
            words.append("skipped_update exact")
        return ", ".join(words).replace(f"{self.keys.method}, ", f"{self.keys.method} ", 1)


@dataclass(frozen=True)
class Advice:
    """What can be said."""

    full_hours: float
    options: tuple[Option, ...]
    """Those that can run, the fastest first."""
    refused: tuple[tuple[str, str], ...]
    """Those that cannot, by method, and why."""
    tolerance: float
    budget: float = math.inf
    """Hours that there are."""

    @property
    def best(self) -> Option | None:
        """The fastest one whose interval ends below the tolerance, within the budget; of those that take the same hours to a
        hundredth the one that has lost least."""
        good = [option for option in self.options if option.measured.most <= self.tolerance and option.saved > 0]
        fits = [option for option in good if option.hours <= self.budget]
        if not fits:
            return None
        fastest = min(option.hours for option in fits)
        return min((one for one in fits if one.hours <= 1.01 * fastest), key=lambda one: one.measured.difference)


def advise(
    run: Run, cluster: Cluster, links: Links | None, evidence: Evidence, tolerance: float, budget: float = math.inf
) -> Advice:
    """Look at every method that was measured.

    Args:
        links: without any, what replicas send each other is taken to cost nothing.
        tolerance: nats of held-out loss that may be lost.
        budget: hours that there are.

    Raises:
        UserError: nothing like this recipe was measured.
    """
    _require_measured(run, evidence)
    full = hours_of(_with(run, FullKeys(method="full")), cluster, links)
    options, refused = [], []
    for measured in evidence.measured:
        try:
            keys = measured.keys(run.recipe.model.num_layers, run.steps, evidence.layers, evidence.steps)
            candidate = _with(run, keys)
            check(candidate)
        except (UserError, ValueError) as error:
            refused.append((str(measured.method["method"]), str(error)))
            continue
        own = hours_of(candidate, cluster, links)
        options.append(Option(keys, measured, savings(candidate.method, run.recipe.shape).layer_factor, own, full - own))
    return Advice(full, tuple(sorted(options, key=lambda option: option.hours)), tuple(refused), tolerance, budget)


def hours_of(run: Run, cluster: Cluster, links: Links | None) -> float:
    """Return how long a run takes."""
    if links is None:
        return hours(run, cluster)[1]
    return forecast(run, cluster, links).seconds * run.steps / 3600


def _with(run: Run, keys: MethodKeys) -> Run:
    return replace(run, ds=run.ds.model_copy(update={"progressive_subnetwork": keys}), ds_file="what was measured")


def _require_measured(run: Run, evidence: Evidence) -> None:
    objective, layers = run.recipe.data.objective, run.recipe.model.num_layers
    if objective != evidence.objective:
        raise UserError(
            f"data.objective {objective}: methods were compared with {evidence.objective} alone, and what they lose with another"
            " objective is not known; `plan` tells what they would save"
        )
    if not 1 / FARTHEST <= layers / evidence.layers <= FARTHEST:
        raise UserError(
            f"model.num_layers {layers}: methods were compared with {evidence.layers} layers, and nothing is said of fewer than"
            f" {math.ceil(evidence.layers / FARTHEST)} or more than {FARTHEST * evidence.layers}; `plan` tells what they save"
        )
