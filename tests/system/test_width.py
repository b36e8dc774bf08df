"""Methods that run parts of layers, as people run them."""

import re
import subprocess
import sys

import pytest

from tests.support.runs import command, essence, kill_after, rows, train

HEADS = ["--ds.progressive_subnetwork", "{method: raptr_heads, group_lengths: 1-2-4}"]
PARTS = ["--ds.progressive_subnetwork", "{method: raptr_parts, path_lengths: 4-6-8, group_lengths: 2-2-4, ffn_lengths: 3-5-6}"]


def plan(project, *words: str) -> subprocess.CompletedProcess:
    known = ["plan", str(project.recipe), "--ds-config", str(project.ds), *words]
    return subprocess.run([sys.executable, "-m", "pretrain", *known], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("step", [12, pytest.param(17, marks=pytest.mark.long)], ids=["where parts run", "where everything runs"])
def test_a_run_that_is_killed_goes_on_bit_for_bit(project, tmp_path, step):
    whole = train(project, tmp_path / "whole", *PARTS)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command(project, tmp_path / "run", *PARTS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    kill_after(process, tmp_path / "run", step)
    assert train(project, tmp_path / "run", *PARTS).returncode == 0
    ours, theirs = essence(rows(tmp_path / "run")), essence(rows(tmp_path / "whole"))
    saved = [row.pop("layer_flops_saved", 0.0) for row in ours], [row.pop("layer_flops_saved", 0.0) for row in theirs]
    assert ours == theirs and saved[0] == pytest.approx(saved[1], abs=1e-12)
    assert 0.2 < saved[1][0] < 0.8 and saved[1][0] > saved[1][19] > 0


def test_plan_says_what_runs_of_a_layer(project):
    done = plan(project, *HEADS)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 to 7 │ +8 of 8 │ +25% │ +100% │ +52 % │", done.stdout), done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{method: raptr_heads, group_lengths: 1-2-8}"], "group_lengths end with 8; end them with all 4 groups"),
        (["{method: raptr_ffn, ffn_lengths: 3-5-7}"], "ffn_lengths end with 7, which does not divide model.ffn_hidden_size 48"),
        (
            ["{method: raptr_ffn, ffn_lengths: 2-4-6}", "--parallel.tensor", "2"],
            "width_parts 1 is no multiple of parallel.tensor 2",
        ),
        (["{method: raptr_heads, group_lengths: 1-2-4}", "--model.qk_norm", "whole"], 'model.qk_norm "whole" norms all of them'),
        (["{method: raptr_heads}"], 'needs "group_lengths"'),
    ],
)
def test_what_cannot_be_is_one_line(project, words, message):
    done = plan(project, "--ds.progressive_subnetwork", *words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
