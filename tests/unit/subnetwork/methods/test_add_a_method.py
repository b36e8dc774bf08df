"""The method that docs/add_a_method.md adds works as printed there."""

import json
import re
import subprocess
import sys
import types
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.project import copy_code


@pytest.fixture
def code() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", Path("docs/add_a_method.md").read_text(), re.DOTALL)
    return found


def test_the_documents_method(code):
    assert len(code.splitlines()) <= 30
    module = types.ModuleType("alternate")
    sys.modules["alternate"] = module  # where pydantic looks
    exec(code, module.__dict__)
    method = module.AlternateKeys(method="alternate", stage_fractions=(0.8, 0.2)).build(layers=6, steps=10, seed=0)
    assert method.paths(3)[0].active == (True, True, False, True, False, True)
    assert method.paths(4)[0].active == (True, False, True, False, True, True)
    assert method.paths(9)[0].active == (True,) * 6
    assert method.keep(1, 8) == (1, *[Fraction(1, 2)] * 4, 1)


def test_a_file_and_a_line_are_all_that_it_takes(code, tmp_path):
    """In a copy of the package: the JSON takes the method and its key, refuses another's, and the option is explained."""
    copy_code(tmp_path)
    methods = tmp_path / "pretrain" / "subnetwork" / "methods"
    (methods / "alternate.py").write_text(code)
    registry = (methods / "__init__.py").read_text()
    registry = registry.replace("    RaptrPartsKeys,\n)", "    RaptrPartsKeys,\n    AlternateKeys,\n)")
    line = "from pretrain.subnetwork.methods.alternate import AlternateKeys\n"
    (methods / "__init__.py").write_text(
        registry.replace("from pretrain.subnetwork.methods.base", line + "from pretrain.subnetwork.methods.base", 1)
    )

    def plan(**block) -> subprocess.CompletedProcess:
        words = [
            "-m",
            "pretrain",
            "plan",
            "ul2_tiny",
            "--ds.progressive_subnetwork",
            json.dumps({"method": "alternate", **block}),
        ]
        return subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = plan(stage_fractions=[0.5, 0.5])
    assert done.returncode == 0 and "schedule: alternate" in done.stdout, done.stderr
    assert 'method "alternate" has no theta; it takes stage_fractions' in plan(theta=0.5).stderr
