"""Advice: hours are plan's, losses are those of the committed rows, and nothing is said beyond them."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.evidence import evidence
from pretrain.advise.advice import advise
from pretrain.advise.evidence import FILE, Evidence, Measured, read_evidence
from pretrain.advise.show import sentences
from pretrain.cli.main import main
from pretrain.config import read_run
from pretrain.errors import UserError
from pretrain.plan.cost import Cluster, hours
from pretrain.plan.link import Links, forecast

CLUSTER = Cluster(1, 8)


def measured(method: str, difference: float, half_width: float, **keys) -> Measured:
    return Measured({"method": method, **keys}, difference, half_width, 5, 5, ("a",))


def known(*ones: Measured) -> Evidence:
    return Evidence(1_700_000, 12, 900, 2048, 128, "ul2", 0.77, ones)


FULL = [("--ds.progressive_subnetwork", '{"method": "full"}')]
RAPTR = {"path_lengths": [6, 8, 10, 12], "paths_per_step": 2}


def test_what_is_known_is_what_the_committed_rows_say():
    assert FILE.read_text() == evidence().text() and read_evidence() == evidence()


def test_path_lengths_are_the_same_shares_of_other_layers_and_what_falls_has_fallen_as_far():
    keys = measured("raptr", 0, 0, **RAPTR).keys(24, 200_000, 12, 900)
    assert keys.given["path_lengths"] == (12, 16, 20, 24)
    fallen = measured("pld", 0, 0, theta=0.5, gamma=0.1).keys(24, 9000, 12, 900)
    assert fallen.given["gamma"] == pytest.approx(0.01)


@pytest.mark.parametrize("links", [None, Links(100, 3600)])
def test_hours_are_those_of_plan(links):
    run = read_run("ul2_1.6b", [], None, 8)
    found = advise(run, CLUSTER, links, known(measured("raptr", 0.01, 0.01, **RAPTR)), 0.03)
    (option,) = found.options
    own = replace(run, ds=run.ds.model_copy(update={"progressive_subnetwork": option.keys}))
    if links is None:
        assert (found.full_hours, option.hours) == pytest.approx(hours(own, CLUSTER))
    else:
        assert option.hours == pytest.approx(forecast(own, CLUSTER, links).seconds * run.steps / 3600)
        assert found.full_hours == pytest.approx(forecast(own, CLUSTER, links).full.whole * run.steps / 3600)
    assert option.saved == pytest.approx(found.full_hours - option.hours) and option.layer_factor == pytest.approx(4 / 3)


def test_the_fastest_that_is_shown_to_lose_little_is_advised_and_else_all_layers():
    run = read_run("ul2_124m", [], None, 8)
    fast, sure = measured("raptr", 0.0, 0.2, **RAPTR | {"path_lengths": [4]}), measured("raptr", 0.01, 0.01, **RAPTR)
    found = advise(run, CLUSTER, None, known(sure, fast), 0.03)
    assert [option.measured for option in found.options] == [fast, sure] and found.best.measured is sure
    assert "try raptr 6-8-10-12, 2 paths a step" in " ".join(sentences(run, found, known(sure, fast), 123_000_000))
    none = advise(run, CLUSTER, None, known(fast), 0.03, 0.7 * found.full_hours)
    said = " ".join(sentences(run, none, known(fast), 123_000_000))
    assert none.best is None and "advice: all layers in every step" in said and "72 times as many" in said
    assert "1.7 M parameters" in said and "77% of them targets" in said and "33% targets" in said
    assert "all layers do not get through the run's steps; raptr 4, 2 paths a step would" in said


def test_of_those_that_are_as_fast_the_one_that_lost_least_is_advised_and_within_the_budget():
    run = read_run("ul2_124m", [], None, 8)
    worse, better = measured("raptr", 0.02, 0.005, **RAPTR), measured("stacking", -0.04, 0.01, path_lengths=[6, 8, 10, 12])
    slower = measured("constant", -0.1, 0.01, path_lengths=[10])
    found = advise(run, CLUSTER, None, known(worse, better, slower), 0.03)
    assert found.best.measured is better
    assert advise(run, CLUSTER, None, known(slower, better), 0.03, found.options[0].hours).best.measured is better
    assert advise(run, CLUSTER, None, known(slower, better), 0.03, 1e-3).best is None


def test_a_method_that_cannot_run_here_is_told():
    run = read_run("ul2_124m", [("--parallel.pipeline", "2")], None, 8)
    found = advise(run, CLUSTER, None, known(measured("raptr", 0, 0, path_lengths=[6, 12], paths_per_step=7)), 0.03)
    ((name, why),) = found.refused
    assert name == "raptr" and "paths_per_step" in why and not found.options
    odd = read_run("ul2_124m", [*FULL, ("--model.num_layers", "9")], None, 8)
    refused = advise(odd, CLUSTER, None, known(measured("raptr", 0, 0, **RAPTR)), 0.03).refused
    assert refused == (("raptr", "paths of 6/12, 8/12, 10/12, 12/12 of 9 layers are no whole numbers"),)


@pytest.mark.parametrize(
    "recipe, settings, what",
    [
        ("bert_base", [], "data.objective mlm"),
        ("ul2_124m", [("--model.num_layers", "32")], "model.num_layers 32"),
        ("ul2_124m", [("--model.num_layers", "4")], "model.num_layers 4"),
    ],
)
def test_beyond_what_was_measured_nothing_is_said(recipe, settings, what):
    run = read_run(recipe, [*settings, *FULL], None, 8)
    with pytest.raises(UserError, match=what):
        advise(run, CLUSTER, None, known(measured("raptr", 0, 0, **RAPTR)), 0.03)


@pytest.mark.parametrize("words", ["ul2_1.6b --nodes 4 --link-gbps 100", "ul2_124m"])
def test_the_command_shows_what_docs_show(capsys, words):
    assert main(["advise", *words.split()]) == 0
    page = Path("docs/compare.md").read_text()
    assert f"pretrain advise {words}\n" in page
    assert "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) in page


def test_the_recipes_own_method_is_not_asked_for_and_a_budget_is_kept(capsys):
    words = ["--model.num_layers", "24", "--ds.progressive_subnetwork.path_lengths", "3-5", "--budget", "70"]
    assert main(["advise", "ul2_124m", *words]) == 0
    said = capsys.readouterr().out
    assert "24 layers" in said and "advice: " in said and "steps in 70 hours" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (("ul2_1.6b", "--budget", "0"), "--budget 0 must be at least 0.001"),
        (("ul2_1.6b", "--mfu", "1e-300"), "--mfu 1e-300 must be at least 0.001"),
        (("ul2_1.6b", "--intra-node-gbps", "5"), "--intra-node-gbps needs --link-gbps"),
        (("bert_base", "--nodes", "1"), "data.objective mlm"),
    ],
)
def test_what_cannot_be_said_is_refused_in_a_line(capsys, words, said):
    assert main(["advise", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
