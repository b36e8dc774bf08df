"""How many seeds a study needs before its differences have the intervals that one wants."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from rich.table import Table
from scipy.stats import chi2
from scipy.stats import t as student

from pretrain.study.statistics import CONFIDENCE, Estimate, Group

MOST = 1000
"""Seeds; nobody runs more."""
CAUTION = 0.8
"""In how many of studies like this one the scatter is at most what the cautious number of seeds reckons with."""


@dataclass(frozen=True)
class Need:
    """What a difference needs."""

    pair: str
    estimate: Estimate
    expected: int | None
    """Seeds if they scatter as those that there are; None if more than MOST."""
    cautious: int | None
    """Seeds if they scatter as much as those that there are allow for, in CAUTION of such studies."""


def needs(groups: Sequence[Group], base: Group, wanted: float) -> list[Need]:
    """Return for each method minus the baseline the seeds after which half of its interval is at most `wanted`, in nats; pairs of
    one seed, which say nothing of scatter, are left out."""
    found = []
    for group in groups:
        estimate = None if group is base else group.against(base)
        if estimate is not None and estimate.standard_error is not None:
            scatter, free = estimate.standard_error * sqrt(estimate.count), estimate.count - 1
            most = scatter * sqrt(free / float(chi2.ppf(1 - CAUTION, free)))
            name = f"{group.method} - {base.method}"
            found.append(Need(name, estimate, seeds_for(scatter, wanted), seeds_for(most, wanted)))
    return found


def half_width(scatter: float, seeds: int) -> float:
    """Half of the interval of a mean over so many seeds with this standard deviation (Student's t)."""
    return float(student.ppf((1 + CONFIDENCE) / 2, seeds - 1)) * scatter / sqrt(seeds)


def seeds_for(scatter: float, wanted: float) -> int | None:
    """Return the least number of seeds whose interval has at most this half-width; None if MOST have a wider one."""
    return next((seeds for seeds in range(2, MOST + 1) if half_width(scatter, seeds) <= wanted), None)


def needs_table(found: Sequence[Need], wanted: float) -> Table:
    """What `report --half-width` prints."""
    table = Table(
        "difference", "seeds", "half-width now", "seeds for it", f"in {CAUTION:.0%} of such studies", title_justify="left"
    )
    table.title = f"seeds for 95 % intervals of ± {wanted:g} nats"
    for need in found:
        wanted_seeds = (f"over {MOST}" if seeds is None else str(seeds) for seeds in (need.expected, need.cautious))
        assert need.estimate.half_width is not None, "of one seed there is no need"
        table.add_row(need.pair, str(need.estimate.count), f"{need.estimate.half_width:.4f}", *wanted_seeds)
    return table
