"""Old checkpoints that cannot be removed, and places where a run directory cannot be."""

import os
import shutil
from pathlib import Path

import pytest

from pretrain.checkpoint import directory as module
from pretrain.checkpoint.directory import RunDirectory, prune, prune_leftovers
from pretrain.errors import UserError
from tests.unit.test_files import busy  # noqa: F401  # a fixture


@pytest.fixture
def directory(tmp_path) -> RunDirectory:
    """Four checkpoints, as far as their names and their number of files go."""
    found = RunDirectory(tmp_path / "run")
    for step in (5, 10, 15, 20):
        found.checkpoint(step).mkdir(parents=True)
        (found.checkpoint(step) / "manifest.json").write_text("{}")
    return found


def names(directory: RunDirectory) -> list[str]:
    return sorted(path.name for path in directory.checkpoints.iterdir())


def test_a_link_to_a_copy_is_unlinked_and_the_copy_stays(directory, tmp_path):
    shutil.move(directory.checkpoint(5), tmp_path / "copy")
    directory.checkpoint(5).symlink_to(tmp_path / "copy")
    assert prune(directory, 2, None) == []
    assert names(directory) == ["step_00000015", "step_00000020"] and (tmp_path / "copy" / "manifest.json").exists()


def test_a_busy_file_is_left_and_named_and_later_starts_say_so_too(directory, busy, capsys):  # noqa: F811
    (directory.checkpoint(5) / ".nfs0001").write_text("")
    (problem,) = prune(directory, 2, None)
    assert "step_00000005.removed0" in problem and "busy" in problem
    assert names(directory) == ["step_00000005.removed0", "step_00000015", "step_00000020"]
    assert prune(directory, 2, None) == [], "it is none of the checkpoints any more"
    for _ in range(2):
        prune_leftovers(directory)
        assert capsys.readouterr().out.count("WARNING") == 1
    assert [path.name for path in directory.steps_saved()] == ["step_00000015", "step_00000020"]


def test_an_unfinished_save_that_cannot_be_removed_is_out_of_the_way(directory, busy, capsys):  # noqa: F811
    unfinished = directory.checkpoint(25).with_suffix(".unfinished")
    unfinished.mkdir()
    (unfinished / ".nfs0001").write_text("")
    prune_leftovers(directory)
    assert "WARNING" in capsys.readouterr().out and not unfinished.exists(), "the next save of this step has its name"


def test_one_that_is_read_only_is_kept_whole(directory, monkeypatch):
    """For root nothing is read-only; so the question is answered for it."""
    ours = os.access
    monkeypatch.setattr(module.os, "access", lambda path, mode: Path(path).name != "step_00000005" and ours(path, mode))
    assert prune(directory, 2, None) == [f"{directory.checkpoint(5)}: is read-only, so it is kept"]
    assert (directory.checkpoint(5) / "manifest.json").exists() and not directory.checkpoint(10).exists()


@pytest.mark.parametrize("where", ["run", "run/checkpoints", "above"])
def test_a_link_to_nothing_is_named(tmp_path, where):
    run_dir = tmp_path / "above" / "run" if where == "above" else tmp_path / "run"
    place = tmp_path / where
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{place}: is a link to {tmp_path}/gone, which is not there"):
        RunDirectory(run_dir).lock()


def test_a_file_in_the_place_of_the_checkpoints_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints: is a file"):
        RunDirectory(tmp_path).lock()
