"""The page of bench.gpu: bars, parts that fail, and those whose time is over."""

import sys

import pytest

from bench import gpu
from bench.gpu_common import Part, Row
from bench.gpu_parts import PARTS


def test_a_row_is_good_within_its_bounds_and_not_if_it_failed():
    assert Row("", 0.4, least=0.38).good and not Row("", 0.3, least=0.38).good
    assert Row("", 1.0, most=1.08).good and not Row("", 1.1, most=1.08).good
    assert Row("", "ran").good and not Row("", "no memory", failed=True).good
    assert Row("", float("nan"), most=1.0).good is False


@pytest.mark.parametrize(
    "code, problem",
    [
        ("import time; time.sleep(60)", "not through after 5 s"),
        ("raise SystemExit('no such kernel')", "no such kernel"),
    ],
)
def test_a_part_that_ends_badly_leaves_what_it_found(monkeypatch, tmp_path, code, problem):
    monkeypatch.setitem(PARTS, "replay", Part("", 5, lambda device: iter(())))
    script = tmp_path / "part.sh"
    row = '{"what": "first", "value": 1.0, "most": null, "least": null, "failed": false}'
    script.write_text(f"#!/bin/sh\nfor last; do :; done\necho '{row}' > $last\nexec {sys.executable} -c \"{code}\"\n")
    script.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(script))
    found = gpu.in_own_process("replay", "cpu", tmp_path, 5)
    assert found.problem == problem and found.rows == [Row("first", 1.0)]
    assert f"**{problem}**" in gpu.table(found) and not list(tmp_path.glob(".gpu_*"))
