"""Path lengths for a share of the operations."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.errors import UserError
from pretrain.plan.target import offers, propose


@pytest.mark.parametrize(
    "layers, factor, groups, lengths",
    [
        (12, 1.33, 2, (6, 8, 10, 12)),
        (24, 4 / 3, 4, (12, 16, 20, 24)),
        (12, 1.0, 2, (12, 12, 12, 12)),
        (12, 1.2, 2, (8, 9, 11, 12)),
    ],
)
def test_the_papers_schedule_comes_out_for_its_saving(layers, factor, groups, lengths):
    found = propose(layers, [Fraction(1, 4)] * 4, factor, 2, groups)
    assert (found == lengths) if layers != 12 or factor != 1.2 else sum(found) == 40


@example(layers=4, stages=3, factor=1.5, groups=1)  # the most that can be saved
@given(st.integers(4, 32), st.integers(2, 4), st.floats(1, 1.6), st.integers(1, 4))
def test_lengths_grow_to_all_layers_and_nothing_is_nearer(layers, stages, factor, groups):
    try:
        lengths = propose(layers, [Fraction(1, stages)] * stages, factor, 2, groups)
    except UserError:
        assert factor > layers * stages / (layers + (stages - 1) * 2)
        return
    assert lengths[-1] == layers and list(lengths) == sorted(lengths) and lengths[0] >= 2 and len(lengths) == stages
    assert abs(sum(lengths) - layers * stages / factor) <= 0.5 + 1e-9, "one layer more or less is further away"


@pytest.mark.parametrize("factor", [0.5, 9.0])
def test_what_cannot_be_saved_is_refused(factor):
    with pytest.raises(UserError, match="can save 1 to 2.67 times"):
        propose(12, [Fraction(1, 4)] * 4, factor, 2, 1)


def test_stages_of_unequal_length_count_as_long_as_they_are(project):
    fractions = [
        "ds.progressive_subnetwork.stage_fractions=[0.6, 0.3, 0.1]",
        "ds.progressive_subnetwork.paths_per_step=1",
        "steps=1000",
    ]
    assert [offer.layer_factor for offer in offers(project.run(*fractions), 1.33)] == pytest.approx([1.33] * 3, rel=0.02)
    late, _, stacking = offers(
        project.run(
            "ds.progressive_subnetwork.full_model_first_fraction=0.25", "ds.progressive_subnetwork.paths_per_step=1", "steps=1200"
        ),
        1.2,
    )
    assert late.layer_factor == pytest.approx(1.2, rel=0.02) and late.run.method.stages[0].path_length == 8
    assert stacking.layer_factor == pytest.approx(1.2, rel=0.01), "which has no such first steps"


def test_balanced_paths_are_no_slower_than_uniform_ones_on_a_pipeline(project):
    balanced, uniform, stacking = offers(
        project.run("parallel.pipeline=2", "ds.progressive_subnetwork.paths_per_step=1", world_size=2), 4 / 3
    )
    assert balanced.layer_factor == uniform.layer_factor == stacking.layer_factor == pytest.approx(4 / 3)
    assert balanced.ideal >= uniform.ideal > 1


def test_the_command_shows_it(project):
    words = [sys.executable, "-m", "pretrain", "plan", project.recipe, "--ds-config", project.ds, "--target-speedup", "1.6"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        "for 1.6 times fewer layer FLOPs" in done.stdout
        and "stacking" in done.stdout
        and "1.33 times fewer layer FLOPs at most" in done.stdout
    )
    bare = subprocess.run([*map(str, words[:-1]), "2.0"], capture_output=True, text=True, timeout=120)
    assert (
        bare.returncode == 0 and "the 2 fixed layers alone would run" in bare.stdout and "stacking cannot run so: " in bare.stdout
    )
    full = subprocess.run([*map(str, words[:-1]), "1"], capture_output=True, text=True, timeout=120)
    assert full.returncode == 0 and "fixed layers alone" not in full.stdout
    refused = subprocess.run([*map(str, words[:-1]), "7"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "--target-speedup 7: 8 layers in 3 stages" in refused.stderr and not refused.stdout
