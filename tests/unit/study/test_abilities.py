import math
from statistics import stdev

import pytest

from pretrain.errors import UserError
from pretrain.evaluate.rows import Mean
from pretrain.study.abilities import abilities, curves, surviving
from pretrain.study.abilities_page import tasks_tables
from pretrain.study.evals import StudyEval
from pretrain.study.statistics import Estimate, grouped, holm
from tests.unit.evaluate.test_rows import ROW
from tests.unit.study.test_page import made_row

SEEDS = (1, 2, 3)
BITS = {"full": (2.0, 2.2, 2.1), "raptr": (1.9, 2.1, 2.0)}
ROWS = [made_row(method, seed, 5.0 + seed / 10) for seed in SEEDS for method in ("full", "raptr")]


def made_eval(method: str, seed: int, bits: float, step: int = 100, **changes) -> StudyEval:
    metrics = {"accuracy": Mean(mean=bits / 4, error=0.05), "bits_per_byte": Mean(mean=bits, error=0.1)}
    facts = {**ROW.model_dump(), "metrics": metrics, "clusters": 21, "step": step, "size": "", "method": method, "seed": seed}
    return StudyEval(**{**facts, **changes})


EVALS = [
    made_eval(method, seed, value + shift, task=task)
    for method, values in BITS.items()
    for seed, value in zip(SEEDS, values)
    for task, shift in (("one", 0.0), ("two", 1.0 + seed % 2))
]


def test_differences_are_those_of_equal_seeds():
    full, raptr = grouped(ROWS)[""]
    found = abilities(EVALS, ROWS)
    assert [(one.task, one.metric) for one in found] == [
        ("one", "accuracy"), ("one", "bits_per_byte"), ("two", "accuracy"), ("two", "bits_per_byte"),
        ("mean of 2", "bits_per_byte"),
    ]  # fmt: skip
    bits = found[1].against(raptr, full)
    assert bits.mean == pytest.approx(-0.1) and bits.standard_error == pytest.approx(0, abs=1e-12) and bits.count == 3
    over = found[1].over_seeds(full)
    assert over.mean == pytest.approx(2.1) and over.standard_error == pytest.approx(stdev(BITS["full"]) / math.sqrt(3))
    assert found[-1].over_seeds(full).mean == pytest.approx((2.1 + 2.1 + 5 / 3) / 2)
    same = found[1].against(full, full)
    assert (same.mean, same.standard_error) == (0, 0), "a method minus itself"
    counted = found[0].against(raptr, full)
    assert counted.mean == pytest.approx(-0.025) and not counted.differs
    assert counted.standard_error == pytest.approx(math.sqrt(6 * 0.05**2) / 3), "seeds that agree by chance show nothing"


def test_only_the_last_step_counts_and_runs_were_asked_alike():
    early = [made_eval("full", 1, 9.0, step=60, task="one")]
    assert abilities(EVALS + early, ROWS)[1].values[("", "full", 1)] == 2.0
    with pytest.raises(UserError, match="raptr, seed 3: task one was put to it with other documents"):
        abilities([*EVALS[:-2], made_eval("raptr", 3, 2.0, task="one", requests="x")], ROWS)
    two_ways = [*EVALS, *(row.model_copy(update={"attention": "prefix"}) for row in EVALS)]
    assert [one.task for one in abilities(two_ways, ROWS)][::2][:2] == ["one, causal", "two, causal"]
    only_one = [row for row in EVALS if (row.method, row.task) != ("raptr", "two")]
    assert [one.task for one in abilities(only_one, ROWS)].count("mean of 2") == 0, "an average is over what all have"


def test_adjusted_for_how_much_was_asked():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    clear, chance = Estimate(1.0, 0.02, 5), Estimate(0.1, 0.036, 5)
    assert chance.differs and clear.differs
    assert surviving([clear, chance, None, chance, Estimate(1.0, None, 1)]) == [True, False, False, False, False]
    assert surviving([chance]) == [True]
    assert Estimate(0.0, 0.0, 3).p_value == 1 and Estimate(1.0, 0.0, 3).p_value == 0


def test_tables_have_widths_before_means_and_say_how_many_intervals():
    groups = grouped(ROWS)[""]
    first, second = tasks_tables(abilities(EVALS, ROWS), groups, groups[0])
    half = abilities(EVALS, ROWS)[1].over_seeds(groups[0]).half_width
    assert f"± {half:.3f}, 2.100" in first and "<td>0.5</td>" in first
    assert "5 intervals of 95 %" in second and "0.2 miss by chance" in second and "<b>-0.100 [-0.100, -0.100]</b>" in second
    one_seed = [row for row in ROWS if row.seed == 1]
    evals = [row for row in EVALS if row.seed == 1]
    first, second = tasks_tables(abilities(evals, one_seed), grouped(one_seed)[""], grouped(one_seed)[""][0])
    assert "± 0.209, 2.000" in first, "2.086 errors over 21 clusters of documents"
    assert "-0.100 (one seed)" in second and "0 intervals" in second
    assert list(tasks_tables([], groups, groups[0])) == []


def test_points_of_loss_and_ability():
    early = [made_eval("full", 1, 3.0, step=60, task=task) for task in ("one", "two")]
    partly = [made_eval("raptr", 1, 3.0, step=60, task="one")]
    found = curves([*EVALS, *early, *partly], ROWS)
    losses = {at.step: at.loss for at in ROWS[0].evaluations}
    assert found[("", "full", 1)] == [(losses[60], 3.0), (losses[100], pytest.approx((2.0 + 4.0) / 2))]
    assert len(found[("", "raptr", 1)]) == 1, "a checkpoint that was not put to all tasks has no point"
