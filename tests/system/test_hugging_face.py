"""The lines of docs/hugging_face.md, as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.lm_eval import THREADS
from pretrain.place import alone
from tests.support.runs import train
from tests.support.tasks import write_tasks

BLOCKS = re.findall(r"```python\n(.*?)```", Path("docs/hugging_face.md").read_text(), re.S)
LM_EVAL = Path(".venv-lm-eval/bin/python")
needs_lm_eval = pytest.mark.skipif(not LM_EVAL.exists(), reason="make .venv-lm-eval/installed installs lm-eval")
TASKS = ("arc_easy", "piqa", "boolq", "lambada")
"""Four kinds: choices of the data, choices of the task, yes or no, and the one word that follows."""


def pretrain(*words) -> str:
    done = subprocess.run([sys.executable, "-m", "pretrain", *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def there(project, tmp_path_factory):
    """A run whose masks matter, its export, and documents of tasks."""
    there = tmp_path_factory.mktemp("there")
    settings = ["--model.init_std", "0.1", "--model.tied_embeddings", "false", "--data.sequence_length", "160"]
    assert train(project, there / "run", *settings, "--stop-at", "5").returncode == 0
    pretrain("export", there / "run", "--to", there / "hf")
    (there / "data").mkdir()
    write_tasks(there / "data", 125)
    return there


def test_a_prompt_is_read_both_ways(there):
    done = subprocess.run([sys.executable, "-c", BLOCKS[0]], cwd=there, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    words = ["--prompt", "The function returns a list of", "--max-tokens", 20, "--device", "cpu"]
    ours = pretrain("generate", there / "run", *words).strip()
    assert done.stdout.strip() == ours
    other = pretrain("generate", there / "run", *words, "--attention", "causal").strip()
    assert other != ours, "from left to right it writes something else"


@needs_lm_eval
@pytest.mark.slow
def test_scores_are_those_of_lm_eval_request_by_request(there):
    words = [there / "run", "--data", there / "data", "--limit", 125, "--batch-sizes", 16, "--lm-eval", LM_EVAL.absolute()]
    command = [sys.executable, "-m", "bench.lm_eval", *words, "--tasks", *TASKS, "--out", there / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")]
    found = {
        name: (int(documents), int(requests), float(farthest), same) for name, documents, requests, farthest, same in rows[1:]
    }
    assert found.keys() == {*TASKS, "all"} and found["all"][0] == 4 * 125 and found["all"][1] >= 1000
    for name, (_, _, farthest, same) in found.items():
        assert farthest < 1e-3 and same == "yes", name


@needs_lm_eval
@pytest.mark.slow
def test_lm_eval_with_the_mask_scores_as_evaluate_does(there, tmp_path):
    pretrain(
        "evaluate",
        there / "run",
        "--tasks",
        "arc_easy",
        "--data",
        there / "data",
        "--out",
        tmp_path / "ours.jsonl",
        "--device",
        "cpu",
    )
    ours = json.loads((tmp_path / "ours.jsonl").read_text())["metrics"]
    code = (
        BLOCKS[1]
        + f"""
import json, lm_eval, yaml
from pathlib import Path
from lm_eval.tasks import TaskManager

Path("own.yaml").write_text(yaml.safe_dump({{
    "include": str(Path(lm_eval.__file__).parent / "tasks/arc/arc_easy.yaml"), "task": "own", "dataset_path": "json",
    "dataset_name": None, "dataset_kwargs": {{"data_files": {{"test": {str(there / "data/arc_easy.test.jsonl")!r}}}}},
    "validation_split": None, "training_split": None, "tag": None,
}}))
for mode in ("[S2S]", None):
    model = PrefixLM(pretrained={str(there / "hf")!r}, dtype="float32", device="cpu")
    model.mode = mode
    found = lm_eval.simple_evaluate(model=model, tasks=["own"], task_manager=TaskManager(include_path="."))
    print(json.dumps(found["results"]["own"]))
"""
    )
    environment = {**alone(os.environ), **THREADS, "HF_HOME": str(tmp_path / "cache")}
    words = [str(LM_EVAL.absolute()), "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with_mode, without = (json.loads(line)["acc,none"] for line in done.stdout.splitlines() if line.startswith("{"))
    assert with_mode == pytest.approx(ours["accuracy"]["mean"]) and without != with_mode
