"""A study of the test project: two methods and two seeds, seconds a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.project import DS
from tests.support.shared import shared_folder

METHODS = {
    "full": {"method": "full"},
    "short": {"method": "full", "flops_of": "raptr"},
    "raptr": {"method": "raptr", "path_lengths": "4-6-8", "balance_groups": 2, "paths_per_step": 2},
}


def write_study(project, folder: Path, **changes) -> Path:
    """A folder with study, recipe and JSON, as people lay it out."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(project.recipe, folder / "recipe.yaml")
    (folder / "ds_config.json").write_text(json.dumps({**DS, "progressive_subnetwork": {"method": "full"}}))
    facts = {"name": "small", "recipe": "recipe.yaml", "ds_config": "ds_config.json", "seeds": [1, 2], "methods": METHODS}
    facts = {key: value for key, value in (facts | changes).items() if value is not None}
    (folder / "study.yaml").write_text(yaml.safe_dump(facts, sort_keys=False))
    return folder / "study.yaml"


def compare_command(study: Path, runs: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "pretrain", "compare", str(study), "--runs", str(runs), "--device", "cpu", *words]


def compare(study: Path, runs: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(compare_command(study, runs, *words), capture_output=True, text=True, timeout=400)


def numbers(rows) -> list[dict]:
    """What must not depend on how often a study was killed: everything but times, and the check over them."""
    kept = []
    for row in rows:
        facts = row.model_dump(exclude={"step_seconds", "sha256"})
        for evaluation in facts["evaluations"]:
            del evaluation["seconds"]
        kept.append(facts)
    return kept


@pytest.fixture(scope="session")
def finished(project, tmp_path_factory):
    """A study that was left alone: its file, the folder of its runs, and what it said."""

    def run(home: Path) -> None:
        done = compare(write_study(project, home), home / "runs", "--jobs", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        (home / "said.txt").write_text(done.stdout)

    home = shared_folder(tmp_path_factory, "study", run)
    return home / "study.yaml", home / "runs", (home / "said.txt").read_text()
