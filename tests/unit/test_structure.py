"""The form that the house promises: files of one sitting, tests that mirror the package, types where they can be named."""

import ast
from pathlib import Path

import pytest

LONGEST = 300
PACKAGE = sorted(Path("pretrain").rglob("*.py"))
VALUES = {
    "pretrain/config/deepspeed.py", "pretrain/config/strict.py", "pretrain/subnetwork/methods/base.py",
    "pretrain/subnetwork/methods/__init__.py", "pretrain/data/objectives/denoisers.py",
}  # fmt: skip
"""Files that read values of any kind, before it is known what they are."""
FUNCTIONS = {"pretrain/config/run.py": ["_flat"]}
"""Single functions that do."""


@pytest.mark.parametrize("file", PACKAGE, ids=str)
def test_a_file_is_read_in_one_sitting(file):
    assert len(file.read_text().splitlines()) <= LONGEST


OF_THE_WHOLE = {
    "engine/test_against_the_reference.py",
    "study/test_results.py",
    "subnetwork/methods/test_add_a_method.py",
    "data/objectives/test_add_an_objective.py",
    "test_docs.py",
    "test_dry_backward.py",
    "test_hidden_waits.py",
    "test_imports.py",
    "test_structure.py",
}
"""Tests of what no single file of the package does: several at once, pages, the form of the code."""


@pytest.mark.parametrize(
    "file", sorted(file.relative_to("tests/unit") for file in Path("tests/unit").rglob("test_*.py")), ids=str
)
def test_unit_tests_mirror_the_package(file):
    tested = file.with_name(file.name.removeprefix("test_"))  # tokenizer and bench have their own names
    homes = [home / name for home in (Path("pretrain"), Path()) for name in (tested, tested.with_suffix(""))]
    assert str(file) in OF_THE_WHOLE or any(home.exists() for home in homes)


def bare_any(file: Path) -> list[str]:
    """Functions with a parameter or a result that is Any and nothing else, apart from *args and **kwargs."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotations = [argument.annotation for argument in arguments] + [node.returns]
            if any(isinstance(annotation, ast.Name) and annotation.id == "Any" for annotation in annotations):
                found.append(node.name)
    return found


@pytest.mark.parametrize("file", PACKAGE, ids=str)
def test_a_signature_names_its_types(file):
    if str(file) not in VALUES:
        assert bare_any(file) == FUNCTIONS.get(str(file), [])


def fragments_of_sentences(file: Path) -> list[str]:
    """Docstrings, also of fields and constants, that cannot be read alone."""
    nodes = ast.walk(ast.parse(file.read_text()))
    texts = [node.value.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and text.startswith(("Of ", "That ", "From which "))]


@pytest.mark.parametrize(
    "file", [file for home in ("pretrain", "tokenizer", "bench") for file in Path(home).rglob("*.py")], ids=str
)
def test_a_docstring_is_a_sentence_of_its_own(file):
    assert fragments_of_sentences(file) == []
