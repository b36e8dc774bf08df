"""What `pip install` puts elsewhere works there: both commands, with their recipes."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for part in ("pretrain", "tokenizer", "ds_configs", "requirements"):
        shutil.copytree(part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("pyproject.toml", tree)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, tree]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_both_commands_are_there_and_run_in_any_folder(installed, tmp_path):
    scripts = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert all(f"{name} = {target}" in entry_points.read_text() for name, target in scripts.items()) and len(scripts) == 2
    for words, shown in (
        (["pretrain", "plan", "ul2_tiny"], "everything that can be checked without data holds"),
        (["tokenizer", "--help"], "encode"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and shown in done.stdout, done.stdout + done.stderr
