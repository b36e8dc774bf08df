"""The part of a report that is about tasks."""

from collections.abc import Iterable, Sequence

from pretrain.study.abilities import Ability, surviving
from pretrain.study.html import table, text
from pretrain.study.statistics import Estimate, Group

NOTE = (
    "After the last step. How little is known of a number stands before it: half of the interval that holds the true mean over"
    " seeds with 95 % (Student's t), or, of one seed, over documents, by clusters. Bits a byte are those that right answers take,"
    " less is better; of other metrics more is."
)


def tasks_tables(found: Sequence[Ability], groups: Sequence[Group], base: Group) -> Iterable[str]:
    """Make the tables: what each method reaches, and what it reaches beyond the baseline."""
    if not found:
        return
    asked = [group for group in groups if any(ability.over_seeds(group) for ability in found)]
    head = ["task", "metric", "chance", "documents", *(text(group.method) for group in asked)]
    body = [
        [
            text(one.task), one.metric.replace("_", " "), "" if one.chance is None else f"{one.chance:.3g}", f"{one.documents:,}",
            *(_mean(one, group) for group in asked),
        ]
        for one in found
    ]  # fmt: skip
    yield f'<h3>Tasks</h3><div class="wide">{table(head, body)}</div><p class="note">{NOTE}</p>'
    others = [group for group in asked if group is not base]
    differences = {group.method: [one.against(group, base) for one in found] for group in others}
    shown = {method: surviving(estimates) for method, estimates in differences.items()}
    count = sum(estimate is not None and estimate.half_width is not None for each in differences.values() for estimate in each)
    if not others or not any(estimate for each in differences.values() for estimate in each):
        return
    body = [
        [
            text(one.task), one.metric.replace("_", " "),
            *(_difference(differences[group.method][index], shown[group.method][index]) for group in others),
        ]
        for index, one in enumerate(found)
    ]  # fmt: skip
    note = (
        f"{count} intervals of 95 %, each by itself: of so many, {0.05 * count:.1f} miss by chance. Bold is what stays at 5 %"
        " once all questions about a method are counted (Holm). An interval that holds zero shows no difference, nor that there"
        " is none. Seeds are the unit: with one, nothing is said about a method. Errors of shares of documents are at least"
        " those of so many documents, since few seeds may agree by chance."
    )
    head = ["task", "metric", *(f"{text(group.method)} minus {text(base.method)}" for group in others)]
    yield f'<div class="wide">{table(head, body)}</div><p class="note">{note}</p>'


def _mean(ability: Ability, group: Group) -> str:
    estimate = ability.over_seeds(group)
    if estimate is None:
        return "–"
    half = estimate.half_width
    if estimate.count == 1:
        half = next(ability.halves[row.key] for row in group.finished if row.key in ability.halves)
    return f"{'' if half is None else f'± {half:.3f}, '}{estimate.mean:.3f}"


def _difference(estimate: Estimate | None, stays: bool) -> str:
    if estimate is None:
        return "–"
    if estimate.half_width is None:
        return f"{estimate.mean:+.3f} (one seed)"
    cell = f"{estimate.mean:+.3f} [{estimate.mean - estimate.half_width:+.3f}, {estimate.mean + estimate.half_width:+.3f}]"
    return f"<b>{cell}</b>" if stays else cell
