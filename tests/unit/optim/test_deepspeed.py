"""DeepSpeed's private parts are known in one file, which lists them."""

import ast
import re
from pathlib import Path

import pytest

HOME = Path("pretrain/optim/deepspeed.py")
LISTED = set(re.findall(r"`(\w+)`", HOME.read_text().split('"""')[1]))
OWN = {"DeepSpeedEngine", "BF16_Optimizer", "optimizer"}
"""Classes, and a name that others use, too."""
PRIVATE = sorted(LISTED - OWN)
ELSEWHERE = {"ds_pipe_replicated": "pretrain/optim/model.py", "__compatible_ops__": "pretrain/ranks/cpu.py"}
"""What must be set before this file is imported, or where the model is made."""


def test_the_list_is_what_the_file_touches():
    code = HOME.read_text().split('"""', 2)[2]
    unused = [name for name in PRIVATE if not re.search(rf"\b{name}\b", code) and name not in ELSEWHERE]
    assert unused == [] and len(PRIVATE) >= 9


PUBLIC = {"step", "param_groups"}
"""What DeepSpeed and PyTorch document, of their engine and optimizers."""


def test_what_the_file_touches_is_on_the_list():
    """Attributes of DeepSpeed's engine and optimizer, also where asked for by name."""
    touched = set()
    for node in ast.walk(ast.parse(HOME.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self.engine", "flattened"):
            touched.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
            touched.add(ast.literal_eval(node.args[1]))
    assert len(touched) > 5 and touched - PUBLIC - LISTED == set()


@pytest.mark.parametrize("name", PRIVATE)
def test_no_other_file_touches_it(name):
    allowed = {HOME, Path(ELSEWHERE.get(name, HOME))}
    found = {file for file in Path("pretrain").rglob("*.py") if re.search(rf"\b{name}\b", file.read_text())}
    assert found <= allowed


def test_nobody_else_imports_deepspeed_but_where_it_is_set_up():
    importing = {
        str(file) for file in Path("pretrain").rglob("*.py") if re.search(r"^\s*(import|from) deepspeed", file.read_text(), re.M)
    }
    assert importing == {str(HOME), "pretrain/ranks/cpu.py", "pretrain/ranks/libraries.py"}
