"""Each layer's count of updates goes into a checkpoint and comes back, also to another way of skipping."""

import pytest
import torch

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.manifest import Manifest, read_manifest
from pretrain.checkpoint.resume import resume
from pretrain.checkpoint.saver import Saver
from pretrain.config.run import Position
from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.errors import UserError
from pretrain.optim.adamw import state_of

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


def test_where_all_layers_are_updated_nothing_is_written_of_it(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 3, *EXACT, saves=3)
    folder = tmp_path / "checkpoints" / "step_00000003"
    manifest = read_manifest(folder)
    assert manifest.updates is None and manifest.updates_of(8) == (3,) * 8
    assert "updates" not in (folder / "manifest.json").read_text(), "so that programs that know of no counts can read it"


def test_stages_with_one_count_for_all_refuse_several(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 4, *NONE, saves=4)
    with pytest.raises(UserError, match=r"have been updated 1 to 4 times in 4 steps .*; use 1, 2 or 3"):
        train(project, ranks, tmp_path, 6, *EXACT, "ds.zero_optimization.stage=0", changing=("skipped_update",))


def test_counts_that_cannot_be_are_refused(project, ranks, tmp_path):
    train(project, ranks, tmp_path, 4, *NONE, saves=4)
    facts = read_manifest(tmp_path / "checkpoints" / "step_00000004").model_dump()
    for wrong in (facts["updates"][:-1], (5, *facts["updates"][1:])):
        with pytest.raises(ValueError, match="it tells the updates of"):
            Manifest.model_validate({**facts, "updates": wrong})
