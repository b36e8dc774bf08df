"""Imports point one way, as the design says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LEVELS = [
    "errors",
    "files",
    "place",
    "versions",
    "subnetwork",
    "config",
    "observe",
    "job",
    "data",
    "model",
    "parallel",
    "checkpoint",
    "options",
    "plan",
    "inspect",
    "export",
    "study",
    "train",
    "commands",
]
"""Each package may import those before it."""


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("name", LEVELS)
def test_a_package_imports_only_what_lies_below_it(name):
    below = set(LEVELS[: LEVELS.index(name) + 1])
    home = Path("pretrain") / name
    for file in home.rglob("*.py") if home.is_dir() else [home.with_suffix(".py")]:
        ours = {module.split(".")[1] for module in imports_of(file) if module.startswith("pretrain.")}
        assert ours <= below, f"{file} imports {sorted(ours - below)}"


def test_observe_is_a_leaf_but_for_config_and_the_idea():
    for file in Path("pretrain/observe").glob("*.py"):
        ours = {module.split(".")[1] for module in imports_of(file) if module.startswith("pretrain.")}
        assert ours <= {"observe", "config", "subnetwork", "errors"}, file


@pytest.mark.parametrize("package", ["pretrain.subnetwork", "pretrain.config"])
def test_the_idea_and_the_configuration_load_no_framework(package):
    code = f"import sys, {package}; print([m for m in ('torch', 'megatron', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
