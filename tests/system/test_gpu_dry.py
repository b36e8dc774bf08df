"""Whole runs on GPUs that are not there (tests/support/dry): nothing is on a wrong device or of a wrong type, from the first
weight to the last checkpoint, and little waits for the device in a step. Compiled layers and flex attention's kernel are left
out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.versions import HOME
from tests.support.project import BERT, DS

pytestmark = [
    pytest.mark.long,
    pytest.mark.dist,
    pytest.mark.skipif(torch.version.cuda is None, reason="torch is a CPU build; a CUDA build needs no driver"),
]
WITHOUT_GPUS = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
"""None is to be asked, where there are some."""
WAITS = 1
"""For the numbers of the step before."""
STEPS, SAVED = 8, 5


def words_of(settings: dict[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


PARTS = {"method": "raptr_parts", "path_lengths": "4-6-8", "group_lengths": "2-2-4", "ffn_lengths": "3-5-6"}
CASES: dict[str, tuple[int, dict[str, object], dict[str, object]]] = {
    "one GPU, flex": (1, {}, {}),
    "sdpa, in fp32": (1, {"model.attention": "sdpa", "ds.bf16.enabled": "false"}, {}),
    "in fp8": (1, {"precision": "fp8", "model.ffn_hidden_size": 64}, {}),
    "BERT": (1, BERT, {}),
    "selective recomputation": (1, {"model.recompute": "selective"}, {}),
    "layers stand still": (1, {"ds.progressive_subnetwork.skipped_update": "none"}, {}),
    "scaled layers": (1, {}, {"method": "pld", "theta": 0.5, "gamma": 0.1}),
    "a growing model": (1, {}, {"method": "stacking", "path_lengths": "4-6-8"}),
    "parts of layers": (1, {}, PARTS),
    "TP2, sequence parallel, recomputed": (
        2,
        {"parallel.tensor": 2, "parallel.sequence": "true", "model.recompute": "layer"},
        {},
    ),
    "PP2 with two virtual chunks": (2, {"parallel.pipeline": 2, "parallel.virtual": 2}, {}),
    "DP2, ZeRO-1": (2, {}, {}),
    "DP2, ZeRO-2": (2, {"ds.zero_optimization.stage": 2}, {}),
    "DP2, ZeRO-3": (2, {"ds.zero_optimization.stage": 3}, {}),
}


def dry(processes: int, report: Path, *words: object) -> list[list[dict]]:
    """Run a command; of each rank what its steps waited for and copied, the first entry from before there were any."""
    report.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.support.dry", report, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=HOME,
        env=WITHOUT_GPUS,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((report / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("name", CASES)
def test_a_run_needs_no_more_than_a_device_that_computes_nothing(project, tmp_path, name):
    processes, settings, method = CASES[name]
    ds = {**DS, "bf16": {"enabled": True}, **({"progressive_subnetwork": method} if method else {})}
    (tmp_path / "ds.json").write_text(json.dumps(ds))
    words = ["train", project.recipe, "--ds-config", tmp_path / "ds.json", "--run-dir", tmp_path / "run", "--compile", "none"]
    words += words_of({"steps": STEPS, "save_every": SAVED, "eval_every": SAVED, **settings})
    grows = method.get("method") == "stacking"
    growths = 0
    first = dry(processes, tmp_path / "first", *words, "--stop-at", SAVED)
    then = dry(processes, tmp_path / "then", *words)  # resumes
    for rank in range(processes):
        assert [len(first[rank]), len(then[rank])] == [SAVED, STEPS - SAVED]
        for step in (*first[rank][2:], *then[rank][2:]):
            if grows and any("saver.py" in wait for wait in step["waits"]):  # layers are copied, through the CPU
                growths += 1
                continue
            assert sum(step["waits"].values()) <= WAITS, step["waits"]
            assert sum(step["copies"].values()) == 2, step["copies"]  # of all micro-batches there, and of the numbers back
            assert step["streams"] == [
                "copy",
                "wait",
                "lent",
            ]  # a stream of its own, and nobody reads too early or frees too soon
    assert growths == (1 if grows else 0)  # the other one falls into a first step


def test_what_waits_is_seen():
    code = """
import torch
from tests.support.dry.device import install
device = install()
def seen(what):
    device.counts.reset()
    with device:
        what()
    return sum(device.counts.waits.values()), sum(device.counts.copies.values())
with device:
    there, here, pinned = torch.zeros(3, device="cuda"), torch.zeros(3), torch.zeros(3, pin_memory=True)
found = {
    "a number": seen(lambda: there.sum().item()),
    "a condition": seen(lambda: bool((there > 0).any())),
    "an average": seen(lambda: float(there.mean())),
    "an array": seen(lambda: there.cpu().numpy()),
    "a mask": seen(lambda: there.nonzero()),
    "pageable": seen(lambda: here.to("cuda", non_blocking=True)),
    "blocking": seen(lambda: pinned.to("cuda")),
    "the device": seen(torch.cuda.synchronize),
    "an event": seen(torch.cuda.Event().synchronize),
    "pinned": seen(lambda: pinned.to("cuda", non_blocking=True)),
    "on the device": seen(lambda: there.add_(there.clone())),
}
wanted = {name: (1, 0) for name in found} | {"pinned": (0, 1), "on the device": (0, 0)}
assert found == wanted, found
try:
    with device:
        there + here
except Exception as error:
    assert "device" in str(error)
else:
    raise AssertionError("tensors on two devices were added")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=HOME, env=WITHOUT_GPUS)
    assert done.returncode == 0, done.stderr


def test_everything_is_imported_without_a_driver():
    modules = [".".join(file.relative_to(HOME).with_suffix("").parts) for file in sorted((HOME / "pretrain").rglob("*.py"))]
    code = f"import importlib; [importlib.import_module(name) for name in {[m for m in modules if not m.endswith('__main__')]}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=HOME)
    assert done.returncode == 0, done.stderr
