"""Means, standard errors and intervals, against numbers worked out by hand."""

import pytest

from pretrain.study.statistics import Estimate, Group, grouped
from tests.unit.study.test_page import made_row


def test_of_three_seeds():
    estimate = Estimate.of([1.0, 2.0, 6.0])
    assert estimate.mean == 3.0
    assert estimate.standard_error == pytest.approx((14 / 2) ** 0.5 / 3**0.5)  # squares of -2, -1, 3 over n - 1, and n
    # The 97.5 % point of Student's t with 2 degrees of freedom.
    assert estimate.half_width == pytest.approx(4.302653 * estimate.standard_error, rel=1e-6)
    assert not estimate.differs and Estimate.of([1.0, 1.1, 1.2]).differs


def test_one_seed_has_no_error_and_shows_nothing():
    estimate = Estimate.of([2.0])
    assert (estimate.standard_error, estimate.half_width, estimate.differs) == (None, None, False)


def test_differences_are_paired_by_seed():
    a = Group("a", tuple(made_row("a", seed, loss) for seed, loss in ((1, 5.0), (2, 6.0), (3, 7.5))))
    b = Group("b", tuple(made_row("b", seed, loss) for seed, loss in ((3, 7.0), (2, 5.5), (1, 4.5), (9, 1.0))))
    difference = a.against(b)
    assert difference.count == 3 and difference.mean == pytest.approx(0.5) and difference.standard_error == pytest.approx(0.0)
    assert a.over_seeds(lambda row: row.loss).standard_error > 0.7, (
        "the seeds scatter far more than the differences, or the test shows nothing"
    )
    assert Group("c", (made_row("c", 7, 1.0),)).against(b) is None


def test_methods_keep_their_order_and_sizes_stay_apart():
    rows = [made_row("b", 2, 1.0), made_row("a", 1, 1.0), made_row("b", 1, 1.0), made_row("a", 1, 1.0, size="wide")]
    found = grouped(rows)
    assert [(size, [(group.method, [row.seed for row in group.rows]) for group in groups]) for size, groups in found.items()] == [
        ("", [("b", [1, 2]), ("a", [1])]),
        ("wide", [("a", [1])]),
    ]
