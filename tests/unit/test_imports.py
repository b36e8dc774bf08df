"""Imports point one way, file by file, as docs/layout.md says."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ORDER = [
    "errors",
    "files schema hashing streams",
    "place versions ranges progress stopwatch",
    "subnetwork",
    "cost",
    "data.batch data.draws",
    "data.objectives",
    "config",
    "results",
    "observe",
    "job",
    "data",
    "model",
    "ranks",
    "optim.names",
    "optim",
    "engine",
    "checkpoint",
    "hugging_face",
    "options",
    "plan",
    "inspect",
    "export",
    "generate",
    "evaluate",
    "study",
    "advise",
    "train",
    "cli",
]
"""Each place may import itself and those in the lines before it; of two that fit a module the longer one counts."""
LEVELS = {place: level for level, places in enumerate(ORDER) for place in places.split()}
FILES = sorted(Path("pretrain").rglob("*.py"))


def place_of(module: str) -> str | None:
    """The longest name in LEVELS that a module of the package has or is in."""
    parts = module.split(".")[1:]
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVELS), None)


def imports_of(source: str) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {module for module in found if module.startswith("pretrain.")}


def upward(module: str, source: str) -> list[str]:
    """Imports of a module that point against the direction."""
    own = place_of(module)
    assert own is not None, f"{module} has no place in ORDER"
    above = []
    for other in imports_of(source):
        place = place_of(other)
        if place is not None and place != own and LEVELS[place] >= LEVELS[own]:
            above.append(other)
    return above


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_only_what_lies_below_it(file):
    module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    if module not in ("pretrain", "pretrain.__main__"):
        assert upward(module, file.read_text()) == []


def test_an_import_against_the_direction_is_found():
    assert upward("pretrain.config.run", "from pretrain.data.loader import open_data") != []
    assert upward("pretrain.optim.norms", "def f():\n    import pretrain.checkpoint.saver") != []
    assert upward("pretrain.config.run", "from pretrain.data.objectives import OBJECTIVES") == []


def test_observe_is_a_leaf_but_for_config_and_the_idea():
    for file in Path("pretrain/observe").glob("*.py"):
        ours = {module.split(".")[1] for module in imports_of(file.read_text())}
        assert ours <= {"observe", "config", "subnetwork", "cost", "results", "errors", "files"}, file


@pytest.mark.parametrize("package", ["pretrain.subnetwork", "pretrain.config", "pretrain.cli.main"])
def test_what_needs_no_framework_loads_none(package):
    code = f"import sys, {package}; print([m for m in ('torch', 'megatron', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_import_one_another_in_no_circle():
    """Within a folder, too, and however late an import is."""
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    graph = {name: (imports_of(file.read_text()) & modules.keys()) - {name} for name, file in modules.items()}
    packages = {name for name, file in modules.items() if file.name == "__init__.py"}
    # `from package import module` names both; the package's own file imports its modules, never the other way round.
    graph = {
        name: {other for other in others if not (other in packages and name.startswith(other + "."))}
        for name, others in graph.items()
    }
    assert list(TopologicalSorter(graph).static_order())
