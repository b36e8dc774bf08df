"""The method that docs/add_a_method.md adds works as printed there."""

import re
import sys
import types
from fractions import Fraction
from pathlib import Path

from pretrain.subnetwork.methods.base import Settings


def test_the_documents_method():
    (code,) = re.findall(r"```python\n(.*?)```", Path("docs/add_a_method.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 30
    module = types.ModuleType("alternate")
    sys.modules["alternate"] = module  # where dataclasses look
    exec(code, module.__dict__)
    method = module.build(Settings(layers=6, steps=10, stage_fractions=(0.8, 0.2)))
    assert method.paths(3)[0].active == (True, True, False, True, False, True)
    assert method.paths(4)[0].active == (True, False, True, False, True, True)
    assert method.paths(9)[0].active == (True,) * 6
    assert method.keep(1, 8) == (1, *[Fraction(1, 2)] * 4, 1)
