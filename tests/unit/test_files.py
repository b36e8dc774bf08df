"""What is to go goes; what cannot is named, and stops nobody."""

import os

import pytest

from pretrain.errors import reason, with_file
from pretrain.files import remove


@pytest.fixture
def busy(monkeypatch):
    """A file called so cannot be removed, as one that a network file system keeps for whoever has it open."""
    unlink = os.unlink

    def refuse(path, *words, **more):
        if os.fspath(path).endswith(".nfs0001"):
            raise OSError(16, "Device or resource busy", os.fspath(path))
        return unlink(path, *words, **more)

    monkeypatch.setattr(os, "unlink", refuse)


def test_a_folder_with_a_busy_file_loses_all_the_rest(tmp_path, busy):
    folder = tmp_path / "old"
    (folder / "inner").mkdir(parents=True)
    for name in ("a", ".nfs0001", "inner/b"):
        (folder / name).write_text("")
    problem = remove(folder)
    assert problem is not None and str(folder) in problem and "busy" in problem
    assert [path.name for path in folder.rglob("*")] == [".nfs0001"]


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert remove(tmp_path / "link") is None and not (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept" / "file").exists()
    assert remove(tmp_path / "link") is None, "what is not there is gone"


@pytest.mark.parametrize("error", [OSError("words alone"), OSError(), OSError(5, "Input/output error"), OSError(5, None, "/f")])
def test_no_message_says_none(error):
    assert "None" not in reason(error) + with_file(error) and reason(error)
