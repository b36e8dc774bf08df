"""A small model that is trained on a generated task solves it: questions, scores and training agree on what is asked."""

import json
import subprocess
import sys

import pytest
import yaml

from pretrain.evaluate.generated import induction_copying
from tests.support.project import DS
from tests.support.runs import rows
from tokenizer.encode import encode
from tokenizer.load import load_tokenizer
from tokenizer.train import train as train_tokenizer

VOCABULARY = 470
RECIPE = {
    "model": {
        "num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128, "vocab_size": VOCABULARY,
        "padded_vocab_size": 640, "init_std": 0.05,
    },
    "data": {"sequence_length": 64, "objective": "causal", "max_example_tokens": 64},
    "steps": 1000, "save_every": 10_000, "eval_every": 10_000, "eval_samples": 16, "log_every": 100, "threads": 1,
    "eval_tasks": ["induction_copying"], "eval_tasks_every": 200, "eval_tasks_share": 1.0,
}  # fmt: skip
OPTIMIZER = {"type": "AdamW", "params": {"lr": 4e-3, "betas": [0.9, 0.98], "weight_decay": 0.1}}
SCHEDULE = {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 100, "warmup_type": "linear", "cos_min_ratio": 0.3}}


@pytest.mark.slow
def test_a_small_model_learns_to_copy(tmp_path):
    """The questions that it is asked are of another seed than those it has learned from."""
    for name, count, seed in (("train", 40_000, 11), ("valid", 300, 12)):
        documents = induction_copying(count, seed)
        lines = [json.dumps({"text": document.answered}) for document in documents]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    train_tokenizer(str(tmp_path / "train.jsonl"), VOCABULARY, tmp_path / "tokenizer")
    for name in ("train", "valid"):
        encode(str(tmp_path / f"{name}.jsonl"), load_tokenizer(tmp_path / "tokenizer"), tmp_path / name)
    places = {"tokenizer": str(tmp_path / "tokenizer"), **{name: str(tmp_path / name) for name in ("train", "valid")}}
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], **places}}))
    sizes = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 64, "gradient_clipping": 1.0}
    settings = {**DS, **sizes, "optimizer": OPTIMIZER, "scheduler": SCHEDULE, "progressive_subnetwork": {"method": "full"}}
    (tmp_path / "copy.json").write_text(json.dumps(settings))
    words = [tmp_path / "copy.yaml", "--ds-config", tmp_path / "copy.json", "--run-dir", tmp_path / "run", "--device", "cpu"]
    command = [sys.executable, "-m", "pretrain", "train", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    accuracy = [row["task_induction_copying_accuracy"] for row in rows(tmp_path / "run") if "task_seconds" in row]
    assert accuracy[0] < 0.4 and accuracy[-1] >= 0.95, accuracy
