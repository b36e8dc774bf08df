"""Each layer's count of updates goes into a checkpoint and comes back, also to another way of skipping."""

import json
from math import prod

import pytest
import torch

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.find import run_of
from pretrain.checkpoint.manifest import Manifest, read_manifest
from pretrain.checkpoint.resume import resume
from pretrain.checkpoint.saver import Saver
from pretrain.checkpoint.state import ModelState
from pretrain.config.run import Position
from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.errors import UserError
from pretrain.optim.adamw import state_of
from pretrain.optim.names import TENSORS
from pretrain.subnetwork.units import Units
from pretrain.subnetwork.width import COLUMNS, GROUPS
from tests.support.weights import weights_of

NONE = ("ds.progressive_subnetwork.skipped_update=none", "ds.progressive_subnetwork.paths_per_step=1")
EXACT = NONE[1:]


def train(project, ranks, folder, last: int, *settings: str, saves: int | None = None, changing: tuple[str, ...] = ()):
    """Go on from the newest checkpoint of the folder, if there is one; rows, the engine and the run."""
    run = project.run(*settings)
    engine, data, rows = build_engine(run, ranks), open_data(run), []
    with Saver(run, engine.optimizer, ranks, RunDirectory(folder), data.checksums()) as saver:
        start = resume(run, saver, changing=changing)
        for step in range(start.step + 1, last + 1):
            result = engine.step(step, data.batch(step), run.method.paths(step))
            rows.append((result.loss, result.grad_norm))
            if step == saves:
                saver.begin(run.position(Position(), step), result.lr)
    data.close()
    engine.optimizer.settle()
    return rows, engine, run


def used(run, steps: int) -> tuple[int, ...]:
    return tuple(
        sum(any(path.active[n] for path in run.method.paths(s)) for s in range(1, steps + 1)) for n in range(run.method.layers)
    )


def test_layers_that_stood_still_go_on_bit_for_bit(project, ranks, tmp_path):
    unbroken, whole, run = train(project, ranks, tmp_path, 8, *NONE, saves=4)
    manifest = read_manifest(tmp_path / "checkpoints" / "step_00000004")
    assert manifest.updates == used(run, 4) and min(manifest.updates) < 4
    again, engine, _ = train(project, ranks, tmp_path, 8, *NONE)
    assert again == unbroken[4:]
    assert engine.optimizer.updates == whole.optimizer.updates == used(run, 8)
    for ours, theirs in zip(engine.model.parameters(), whole.model.parameters()):
        assert torch.equal(ours, theirs)
    for group in engine.optimizer.groups:
        count = 8 if group.layer is None else used(run, 8)[group.layer]
        assert state_of(engine.optimizer.adamw, group.master)["step"] == count


def test_another_way_of_skipping_has_to_be_named_and_goes_on_from_the_counts(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 4, *NONE, saves=4)
    with pytest.raises(UserError, match="skipped_update is 'none' there"):
        train(project, ranks, tmp_path, 6, *EXACT)
    _, engine, run = train(project, ranks, tmp_path, 6, *EXACT, saves=6, changing=("skipped_update",))
    counts = tuple(count + 2 for count in used(run, 4))
    assert engine.optimizer.updates == counts
    assert read_manifest(tmp_path / "checkpoints" / "step_00000006").updates == counts
    with pytest.raises(UserError, match="skipped_update is 'exact' there, 'none' here"):
        train(project, ranks, tmp_path, 8, *NONE)
    _, engine, run = train(project, ranks, tmp_path, 8, *NONE, changing=("skipped_update",))
    assert max(engine.optimizer.updates) == 6 + 2 and min(engine.optimizer.updates) < 8


def test_a_run_from_before_there_was_a_choice_updated_sleeping_layers(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 3, *EXACT, saves=3)
    (file,) = tmp_path.glob("checkpoints/*/manifest.json")
    facts = json.loads(file.read_text())
    del facts["ds_config"]["progressive_subnetwork"]["skipped_update"]
    facts.pop("checksum", None)
    old = Manifest.model_validate(facts)
    assert run_of(file.parent, old).ds.progressive_subnetwork.skipped_update == "exact"


def test_where_all_layers_are_updated_nothing_is_written_of_it(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 3, *EXACT, saves=3)
    folder = tmp_path / "checkpoints" / "step_00000003"
    manifest = read_manifest(folder)
    assert manifest.updates is None and manifest.updates_of(Units(8)) == (3,) * 8
    assert "updates" not in (folder / "manifest.json").read_text(), "so that programs that know of no counts can read it"


def test_stages_with_one_count_for_all_refuse_several(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 4, *NONE, saves=4)
    with pytest.raises(UserError, match=r"have been updated 1 to 4 times in 4 steps .*; use 1, 2 or 3"):
        train(project, ranks, tmp_path, 6, *EXACT, "ds.zero_optimization.stage=0", changing=("skipped_update",))


def test_counts_that_cannot_be_are_refused(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 4, *NONE, saves=4)
    facts = read_manifest(tmp_path / "checkpoints" / "step_00000004").model_dump()
    for wrong in (facts["updates"][:-1], (5, *facts["updates"][1:])):
        with pytest.raises(ValueError, match="counts of updates in 4 steps, and has 8 of layers and parts"):
            Manifest.model_validate({**facts, "updates": wrong})


PARTS = ("ds.progressive_subnetwork={method: raptr_parts, path_lengths: 6-8, group_lengths: 2-4, ffn_lengths: 2-6}",)
STANDING = (*PARTS, "ds.progressive_subnetwork.skipped_update=none")


def state(engine) -> dict[str, torch.Tensor]:
    """All masters and moments, in full, by the places that a checkpoint gives them."""
    found = {}
    for placed in ModelState(engine.optimizer, 1, 0).kept:
        for kind in TENSORS:
            whole = found.setdefault(f"{placed.shard.name}/{kind}", torch.full((prod(placed.shape),), torch.nan))
            for begin, length, here in zip(*(n.tolist() for n in placed.fragment.runs())):
                whole[begin : begin + length] = placed.shard.numbers(kind)[here : here + length]
    assert not any(numbers.isnan().any() for numbers in found.values())
    return found


def test_parts_of_layers_go_on_bit_for_bit(project, ranks, tmp_path):
    unbroken, whole, run = train(project, ranks, tmp_path, 8, *STANDING, saves=4)
    units, counts = run.method.units, read_manifest(tmp_path / "checkpoints" / "step_00000004").updates
    steps = [set(units.of_path(path)) for step in range(1, 5) for path in run.method.paths(step)]
    assert counts == tuple(sum(unit in used for used in steps) for unit in range(units.count))
    again, engine, _ = train(project, ranks, tmp_path, 8, *STANDING)
    assert again == unbroken[4:] and engine.optimizer.updates == whole.optimizer.updates
    assert all(torch.equal(numbers, state(engine)[name]) for name, numbers in state(whole).items())


HEADS_ALONE = ("ds.progressive_subnetwork={method: raptr_heads, group_lengths: 1-4, skipped_update: none}",)
COLUMNS_ALONE = ("ds.progressive_subnetwork={method: raptr_ffn, ffn_lengths: 1-4, skipped_update: none}",)


@pytest.mark.parametrize(
    ("one", "other"),
    [(PARTS, EXACT), (EXACT, PARTS), (STANDING, NONE), (NONE, STANDING), (HEADS_ALONE, COLUMNS_ALONE), (HEADS_ALONE, STANDING)],
)
def test_whoever_cuts_layers_otherwise_takes_over_the_same_numbers(project, ranks, tmp_path, one, other):
    _, before, run = train(project, ranks, tmp_path, 4, *one, saves=4)
    _, after, _ = train(project, ranks, tmp_path, 4, *other, changing=("progressive_subnetwork",))
    assert all(torch.equal(numbers, state(after)[name]) for name, numbers in state(before).items())
    was, now = before.optimizer, after.optimizer
    for layer in range(8):
        begin, end = was.units.number(layer), was.units.number(layer + 1)
        for kind, old, new in ((GROUPS, was.units.groups, now.units.groups), (COLUMNS, was.units.columns, now.units.columns)):
            for block in range(new):
                expected = was.updates[was.units.number(layer, kind, block)] if old == new else max(was.updates[begin:end])
                assert now.updates[now.units.number(layer, kind, block)] == expected
        assert now.updates[now.units.number(layer)] == max(was.updates[begin:end])
    assert weights_of(before.model).keys() == weights_of(after.model).keys()
    for name, weight in weights_of(before.model).items():
        assert torch.equal(weight, weights_of(after.model)[name])
