"""Jumps where paths become longer: one that is planted is found, and the page has those of the committed rows."""

from pathlib import Path

import pytest

from bench.theory.boundaries import STUDY, jumps, table
from pretrain.study.row import read_table


def test_a_jump_that_is_planted_is_found_where_it_is():
    rows, step = read_table(STUDY), 451
    planted = []
    for row in rows:
        if row.method == "raptr":
            training = tuple((last, loss + 0.5 * (last >= step)) for last, loss in row.training)
            evaluations = tuple(at.model_copy(update={"loss": at.loss + 0.25 * (at.step >= step)}) for at in row.evaluations)
            row = row.model_copy(update={"training": training, "evaluations": evaluations})
        planted.append(row)
    before, after = ({(jump.method, jump.step): jump for jump in jumps(some, "full_4e3")} for some in (rows, planted))
    for key, jump in after.items():
        more = key == ("raptr", step)
        assert jump.trained[0] - before[key].trained[0] == pytest.approx(0.5 * more)
        assert jump.held_out[0] - before[key].held_out[0] == pytest.approx(0.25 * more)
    assert {method for method, _ in after} == {"raptr", "stacking"}


def test_the_page_has_the_jumps_of_the_committed_rows():
    page = Path("docs/theory.md").read_text()
    for line in table(jumps(read_table(STUDY), "full_4e3")):
        assert line in page
