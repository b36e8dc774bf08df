"""A checkpoint's settings as they are for scoring: nothing that only training minds stands in the way."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pretrain.config.recipe import Parallel
from pretrain.errors import UserError
from pretrain.evaluate.load import evaluation_of
from tests.support.project import BERT

SETTINGS = {
    "micro-batches that are counted": ("ds.gradient_accumulation_steps=4",),
    "ZeRO-3": ("ds.zero_optimization.stage=3",),
    "flex": ("model.attention=flex",),
    "bf16": ("ds.bf16.enabled=true",),
    "paths that need a batch": ("ds.progressive_subnetwork.paths_per_step=4", "ds.train_batch_size=16"),
}
LAYOUTS = {
    "one": (1, Parallel()),
    "TP2": (2, Parallel(tensor=2)),
    "PP2": (2, Parallel(pipeline=2)),
    "PP2 with two virtual chunks x DP2": (4, Parallel(pipeline=2, virtual=2)),
}


def asked(run, world: int = 1, layout: Parallel = LAYOUTS["one"][1], step: int = 20):
    ranks = SimpleNamespace(world_size=world, device=torch.device("cpu"))
    return evaluation_of(run, Path("step"), SimpleNamespace(step=step), layout, ranks)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_any_run_is_scored_on_any_layout(project, settings, layout):
    run = project.run(*SETTINGS[settings])
    found = asked(run, *LAYOUTS[layout])
    assert not found.ds.bf16.enabled and found.recipe.model.attention != "flex" and found.method.name == "full"
    assert found.recipe.parallel == LAYOUTS[layout][1] and found.world_size == LAYOUTS[layout][0]
    assert found.recipe.data == run.recipe.data


def test_what_cannot_be_asked_is_refused(project):
    growing = project.run('ds.progressive_subnetwork={"method": "stacking", "path_lengths": "4-8"}')
    with pytest.raises(UserError, match="has 4 of its 8 layers so far"):
        asked(growing, step=2)
    assert asked(growing, step=20).recipe.model.num_layers == 8
    with pytest.raises(UserError, match="a model that fills in masks"):
        asked(project.run(*(f"{key}={value}" for key, value in BERT.items())))
    with pytest.raises(UserError, match="tensor"):
        asked(project.run(), 3, Parallel(tensor=3))
