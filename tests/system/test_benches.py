"""The benchmarks run, and write what they promise; what they measure is for a quiet machine."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from bench.namespaces import why_not
from pretrain.plan.roofline import COUNTS
from tests.support.launch import torchrun

SMALL = [
    "--model.num_layers",
    "4",
    "--model.hidden_size",
    "64",
    "--model.ffn_hidden_size",
    "128",
    "--model.num_attention_heads",
    "2",
    "--data.sequence_length",
    "32",
    "--ds.progressive_subnetwork.path_lengths",
    "2",
]


@pytest.mark.dist
@pytest.mark.long
@pytest.mark.parametrize("processes, layout", [(1, "one"), (2, "PP2")])
def test_path_speed(tmp_path, processes, layout):
    process = torchrun(
        processes,
        "bench.path_speed",
        "--rounds",
        "1",
        "--out",
        tmp_path,
        "--device",
        "cpu",
        "--parallel.pipeline",
        str(processes),
        *SMALL,
    )
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert (
        "measured over ideal" in out
        and json.loads((tmp_path / f"path_speed_cpu_{layout}.json").read_text())["facts"]["layers"] == "2 of 4"
    )
    assert (tmp_path / f"path_speed_cpu_{layout}.md").exists() and (tmp_path / f"path_speed_cpu_{layout}.png").exists()


def test_width_speed(tmp_path):
    words = ["--rounds", "1", "--out", str(tmp_path), "--device", "cpu", *SMALL]
    done = subprocess.run([sys.executable, "-m", "bench.width_speed", *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "| half of both |" in (tmp_path / "width_speed.md").read_text(), done.stderr


@pytest.mark.dist
@pytest.mark.long
def test_collectives(tmp_path):
    process = torchrun(2, "bench.collectives", "--out", tmp_path / "found.json", "--device", "cpu")
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert {row["operation"] for row in json.loads((tmp_path / "found.json").read_text())["rows"]} == {
        "all_reduce",
        "all_gather",
        "reduce_scatter",
    }


@pytest.mark.parametrize("module", ["checkpoint", *(pytest.param(name, marks=pytest.mark.long) for name in ("data", "encode"))])
def test_the_others(tmp_path, project, module):
    words = {
        "checkpoint": ["--recipe", project.recipe, "--ds-config", project.ds, "--folder", tmp_path],
        "data": ["--steps", 21],
        "encode": ["--input", project.home / "train.jsonl", "--tokenizer", project.home / "tokenizer", "--ranks", 1, 2],
    }[module]
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{module}", *map(str, words), "--rounds", "1", "--out", tmp_path / "results"],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "results").glob(f"{module}_cpu*")} == {".json", ".md"}


@pytest.mark.dist
@pytest.mark.long
def test_link(tmp_path):
    """On real network namespaces; where they cannot be made it says why."""
    if os.geteuid() == 0 and shutil.which("apt-get") and not (shutil.which("ip") and shutil.which("tc")):
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "iproute2"], capture_output=True)
    words = [
        "--mbit",
        "400",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--former",
        "none",
        "--out",
        tmp_path,
        "--ds.train_batch_size",
        "8",
        "--ds.train_micro_batch_size_per_gpu",
        "4",
    ]
    done = subprocess.run([sys.executable, "-m", "bench.link", *map(str, words)], capture_output=True, text=True, timeout=400)
    if (problem := why_not()) is not None:
        assert done.returncode == 1 and done.stderr == f"error: {problem}\n"
        pytest.skip(problem)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "link.json").read_text())["median"]["400 Mbit/s"]
    rows = found["rows"]
    assert found["predicted"].keys() == rows.keys() and "as planned" in done.stdout
    for row in rows.values():
        assert row["6"]["bytes"] < 0.6 * row["12"]["bytes"], "half the layers are half of what is sent"
    seconds = [rows[name]["12"]["seconds"] for name in ("by layer", "by layer, overlapped")]
    assert seconds[1] < 0.95 * seconds[0], "what overlaps is not waited for"


@pytest.mark.long
def test_peer(tmp_path):
    words = ["--hidden", "384", "--threads", "1", "--rounds", "1", "--out", tmp_path, *SMALL]
    done = subprocess.run([sys.executable, "-m", "bench.peer", *map(str, words)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "peer.json").read_text())
    assert len(case["seconds"]) == 6 and all(len(times) == 1 for times in case["seconds"].values())
    assert "engine, compiled, half the layers" in (tmp_path / "peer.md").read_text()


@pytest.mark.long
def test_gpu_parts_run_on_a_small_model_and_a_failed_bar_is_told(tmp_path):
    words = ["--device", "cpu", "--out", tmp_path, "--parts", "replay", "attention", "losses", "fp8", "resume", "checkpoint"]
    done = subprocess.run([sys.executable, "-m", "bench.gpu", *map(str, words)], capture_output=True, text=True, timeout=500)
    parts = {part["name"]: part for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(part["rows"] and part["problem"] is None for part in parts.values())
    page = (tmp_path / "gpu.md").read_text()
    assert "numbers that differ after 20 missed updates, of 5,000,000 | 0 | at most 0 |" in page and "not met" not in page


@pytest.mark.long
def test_kernels_of_a_layer_are_no_more_than_was_counted(tmp_path):
    words = ["--recipes", "ul2_tiny", "--out", tmp_path]
    done = subprocess.run([sys.executable, "-m", "bench.kernels", *map(str, words)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]["ul2_tiny"]
    for (how, way), most in COUNTS.items():
        found = rows[how][way]
        assert found["products"] == (5 if way == "forward" else 9) and found["products"] + found["others"] <= most.kernels
        assert found["bytes"] <= 1.1 * (most.hidden * 128 + most.ffn * 384), "angles weigh more where heads are few"
