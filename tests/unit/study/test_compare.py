"""Code that a study takes from git."""

import subprocess

import pytest

from pretrain.errors import UserError
from pretrain.study import compare
from pretrain.versions import CODE_LIST


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """Commit files of a repository that stands in the place of this one; returns the commit's name."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(compare, "HOME", home)

    def git(*words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(["git", "-C", home, *identity, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")

    def commit(*files: str) -> str:
        for file in files:
            (home / file).parent.mkdir(exist_ok=True)
            (home / file).write_text(file)
        git("add", "--all")
        git("commit", "--quiet", "--message", "test")
        return git("rev-parse", "HEAD")

    commit.home = home
    return commit


def test_a_commit_says_itself_what_its_runs_took_along(commit, tmp_path):
    """One from before the list was there took what BEFORE_LISTS says, whatever is there besides."""
    names = [*compare.BEFORE_LISTS[:-1]]
    old = commit(*(f"{name}/file.py" for name in names), "requirements.txt", "tests.py")
    (commit.home / CODE_LIST).write_text("# what a run takes along\npretrain\nslurm\nmore\n")
    new = commit("more/file.py")
    for made_with, expected in ((old, {*names, "requirements.txt"}), (new, {"pretrain", "slurm", "more"})):
        to = tmp_path / made_with
        to.mkdir()
        assert compare._from_git(made_with, to)
        assert {path.name for path in to.iterdir()} == {*expected, "COMMIT"}
    assert not compare._from_git("0" * 40, tmp_path)


def test_without_the_list_nothing_is_copied(commit, tmp_path):
    with pytest.raises(UserError, match="has no slurm/code_files.txt; .* call it in a clone"):
        compare._copy_this(tmp_path)
