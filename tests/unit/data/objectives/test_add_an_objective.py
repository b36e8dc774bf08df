"""A new objective is a file and a line."""

import subprocess
import sys

from tests.support.project import copy_code

CODE = '''
from typing import ClassVar

from pretrain.data.objectives.causal import Causal
from pretrain.schema import Strict


class LeftOutKeys(Strict):
    left_out: int = 1
    """Tokens of every document that are not read."""


class LeftOut(Causal):
    """The objective `left_out`."""

    name: ClassVar = "left_out"
    summary: ClassVar = "every token but the first few predicts the next"
    keys: ClassVar = LeftOutKeys
'''


def test_a_file_and_a_line_are_all_that_it_takes(project, tmp_path):
    """In a copy of the package: the recipe takes the objective and its key, and both are explained."""
    copy_code(tmp_path)
    objectives = tmp_path / "pretrain" / "data" / "objectives"
    (objectives / "left_out.py").write_text(CODE)
    registry = (objectives / "__init__.py").read_text()
    registry = registry.replace("(Mixture, Causal, MaskedWords)", "(Mixture, Causal, MaskedWords, LeftOut)")
    line = "from pretrain.data.objectives.left_out import LeftOut\n"
    before = "from pretrain.data.objectives.mlm"
    (objectives / "__init__.py").write_text(registry.replace(before, line + before, 1))

    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "pretrain", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    explained = call("train", "--explain").stdout
    assert "left_out: every token but the first few" in explained and "--data.left_out " in explained
    words = ["inspect", "batch", str(project.recipe), "--ds-config", str(project.ds), "--data.objective", "left_out"]
    done = call(*words, "--data.left_out", "2")
    assert done.returncode == 0, done.stderr
    assert "left_out" in call(*words[:-1], "left_in").stderr, "named among the objectives that there are"
