"""`plan` checks what train checks, counts what train builds, and allocates nothing."""

import subprocess
import sys

import pytest

from pretrain.parallel.engine import Engine
from pretrain.plan import warnings


def plan(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "pretrain", "plan", *words], capture_output=True, text=True, timeout=120)


def test_a_large_recipe_is_planned_on_a_laptop():
    done = plan("ul2_1.6b")
    assert done.returncode == 0, done.stderr
    for text in ("1,602,959,616", "1.20x", "0: 1  1-5: 0.4  6-17: 0.5", "140,501 to 200,000", "everything that can be checked"):
        assert text in done.stdout
    assert done.stderr == ""


def test_it_counts_the_parameters_that_are_built(project, ranks):
    built = sum(p.numel() for p in Engine(project.run(), ranks).whole.parameters())
    assert f"{built:,}" in plan(str(project.recipe), "--ds-config", str(project.ds)).stdout


def test_uneven_layers_and_a_short_last_stage_are_warned_of(project):
    block = "ds.progressive_subnetwork."
    uneven = project.run(f"{block}path_lengths=5-8", f"{block}fixed_layers=[0]", f"{block}balance_groups=4")
    assert "stage 1: layers [1] run with probability 0.25, while 0.57 would be even" in next(warnings(uneven))
    short = project.run("ds.progressive_subnetwork.path_lengths=4-6")
    assert list(warnings(short)) == ["the last stage runs 6 of 8 layers; RaPTr ends with the full model"]
    assert list(warnings(project.run())) == []


@pytest.mark.parametrize("setting", [("--ds.progressive_subnetwork.path_lengths", "4-30"), ("--model.num_layers", "13")])
def test_it_refuses_what_train_would(setting):
    done = plan("ul2_1.6b", *setting)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
