"""What runs of a study make of tasks, method by method: means over seeds, and differences of runs with the same seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pretrain.errors import UserError
from pretrain.study.evals import StudyEval
from pretrain.study.row import Row
from pretrain.study.statistics import Estimate, Group, holm

BITS = "bits_per_byte"
"""The metric of which an average over tasks is taken, named before anybody looks: it moves long before accuracies do."""
LEVEL = 0.05
Run = tuple[str, str, int]


@dataclass(frozen=True)
class Ability:
    """A metric of a task, with what every run has of it."""

    task: str
    """With how contexts were read, where the study asks in two ways."""
    metric: str
    chance: float | None
    documents: int
    values: Mapping[Run, float]
    errors: Mapping[Run, float | None]
    """Standard errors over documents."""
    halves: Mapping[Run, float | None]
    """Half of the 95 % intervals over documents."""

    def over_seeds(self, group: Group) -> Estimate | None:
        """Return the estimate over a method's runs; None if none was asked."""
        found = [self.values[row.key] for row in group.finished if row.key in self.values]
        return Estimate.of(found) if found else None

    def against(self, group: Group, base: Group) -> Estimate | None:
        """Estimate a method minus the baseline, seed by seed; None without pairs.

        Shares of documents are whole numbers, in which few seeds may agree by chance: their error is at least that of as many
        documents, as if every run had been asked others. All are asked the same, so that this is wider than need be.
        """
        pairs = [(a.key, b.key) for a, b in group.pairs(base) if a.key in self.values and b.key in self.values]
        if not pairs:
            return None
        found = Estimate.of([self.values[mine] - self.values[its] for mine, its in pairs])
        if self.metric == BITS or found.standard_error is None:
            return found
        squares = [(self.errors[run] or 0.0) ** 2 for pair in pairs for run in pair]
        return replace(found, standard_error=max(found.standard_error, math.sqrt(sum(squares)) / len(pairs)))


def abilities(evals: Sequence[StudyEval], rows: Sequence[Row]) -> list[Ability]:
    """Return the metrics of all tasks after the last step, then the average of bits a byte over those tasks that all runs have.

    Raises:
        UserError: runs were asked different things.
    """
    last = {row.key: row.steps for row in rows}
    final = [row for row in evals if row.metrics and last.get(row.run) == row.step]
    ways, found = {row.attention for row in final}, list[Ability]()
    for name in dict.fromkeys((row.task, row.attention) for row in final):
        own = [row for row in final if (row.task, row.attention) == name]
        _require_alike(own)
        title = f"{own[0].task}, {own[0].attention}" if len(ways) > 1 else own[0].task
        for metric in dict.fromkeys((own[0].metric, BITS)):
            if metric in own[0].metrics:
                values = {row.run: row.metrics[metric].mean for row in own}
                errors = {row.run: row.metrics[metric].error for row in own}
                chance = own[0].chance if metric == own[0].metric else None
                halves = {row.run: row.half_width(metric) for row in own}
                found.append(Ability(title, metric, chance, own[0].documents, values, errors, halves))
    bits = [ability for ability in found if ability.metric == BITS]
    runs = {run for ability in bits for run in ability.values}
    whole = [ability for ability in bits if ability.values.keys() == runs]
    if len(whole) > 1:
        means = {run: sum(ability.values[run] for ability in whole) / len(whole) for run in runs}
        title = f"mean of {len(whole)}"
        found.append(Ability(title, BITS, None, sum(one.documents for one in whole), means, *[dict.fromkeys(runs)] * 2))
    return found


def surviving(differences: Sequence[Estimate | None]) -> list[bool]:
    """Say which differences of one method are still shown once all of its questions are counted (Holm, at 5 %)."""
    values = [None if one is None else one.p_value for one in differences]
    known = [index for index, value in enumerate(values) if value is not None]
    adjusted = dict(zip(known, holm([value for value in values if value is not None])))
    return [adjusted.get(index, 1.0) < LEVEL for index in range(len(values))]


def curves(evals: Sequence[StudyEval], rows: Sequence[Row]) -> dict[Run, list[tuple[float, float]]]:
    """Return for each run its points of held-out loss and mean bits a byte, over the checkpoints that were put to all tasks."""
    losses = {(row.key, at.step): at.loss for row in rows for at in row.evaluations}
    names = {(row.task, row.attention) for row in evals if BITS in row.metrics}
    found: dict[Run, list[tuple[float, float]]] = {}
    for run, step in sorted({(row.run, row.step) for row in evals}):
        at = [row for row in evals if (row.run, row.step) == (run, step) and BITS in row.metrics]
        own = {(row.task, row.attention): row.metrics[BITS].mean for row in at}
        if own.keys() == names and (run, step) in losses:
            found.setdefault(run, []).append((losses[run, step], sum(own.values()) / len(own)))
    return found


def _require_alike(rows: Sequence[StudyEval]) -> None:
    """Numbers about different documents are not compared."""
    for row in rows:
        if not row.comparable(rows[0]):
            raise UserError(
                f"{row.method}, seed {row.seed}: task {row.task} was put to it with other documents, version or examples than to"
                f" {rows[0].method}, seed {rows[0].seed}; remove its folder evals/ and call compare again"
            )
