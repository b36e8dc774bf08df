"""Means over few seeds, with what they are worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import t as student

from pretrain.study.row import Row

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    standard_error: float | None
    """Standard deviation (n - 1) over the square root of n; None of one seed."""
    count: int
    """n."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        error = stdev(values) / sqrt(len(values)) if len(values) > 1 else None
        return cls(fmean(values), error, len(values))

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval that holds the true mean with CONFIDENCE, if seeds scatter as a normal distribution does
        (Student's t, n - 1 degrees of freedom)."""
        if self.standard_error is None:
            return None
        return float(student.ppf((1 + CONFIDENCE) / 2, self.count - 1)) * self.standard_error

    @property
    def differs(self) -> bool:
        """Does the interval leave out zero?"""
        return self.half_width is not None and abs(self.mean) > self.half_width

    @property
    def p_value(self) -> float | None:
        """How often a mean as far from zero comes by chance if the true one is zero (two-sided t test); None of one seed."""
        if self.standard_error is None:
            return None
        if self.standard_error == 0:
            return float(self.mean == 0)
        return float(2 * student.sf(abs(self.mean) / self.standard_error, self.count - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several questions, so that one below a level means what a single one would mean (Holm 1979,
    Scandinavian Journal of Statistics 6, section 2)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


@dataclass(frozen=True)
class Group:
    """The runs of one method, with one size of model."""

    method: str
    rows: tuple[Row, ...]
    """Rows of the method, by seed."""

    @property
    def finished(self) -> tuple[Row, ...]:
        """What counts: a loss half-way is not one of the same thing."""
        return tuple(row for row in self.rows if row.finished)

    def over_seeds(self, of: Callable[[Row], float]) -> Estimate | None:
        """Return the estimate over the runs that have finished; None if there are none."""
        return Estimate.of([of(row) for row in self.finished]) if self.finished else None

    def pairs(self, other: "Group") -> list[tuple[Row, Row]]:
        """Finished runs of both with the same seed, which had the same initial weights and data, and losses of the same held-out
        text."""
        theirs = {row.seed: row for row in other.finished}
        return [(row, theirs[row.seed]) for row in self.finished if row.seed in theirs and row.measures_as(theirs[row.seed])]

    def against(self, other: "Group") -> Estimate | None:
        """Estimate this one's held-out loss minus the other's, seed by seed; None without pairs."""
        differences = [mine.loss - its.loss for mine, its in self.pairs(other)]
        return Estimate.of(differences) if differences else None


def grouped(rows: Sequence[Row]) -> dict[str, list[Group]]:
    """For each size its methods, in the order in which rows name them."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.size, {}).setdefault(row.method, []).append(row)
    return {
        size: [Group(method, tuple(sorted(runs, key=lambda row: row.seed))) for method, runs in methods.items()]
        for size, methods in found.items()
    }
