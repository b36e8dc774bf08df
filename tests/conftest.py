"""What the tests share: a small real tokenizer and token files, and a recipe that trains in milliseconds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

from pretrain.config import Run, read_run
from pretrain.ranks.libraries import prepare_libraries

prepare_libraries("cpu")  # before Megatron-Core is imported, below and by the tests

from pretrain.ranks.groups import make_groups  # noqa: E402
from pretrain.ranks.process import Ranks  # noqa: E402

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

VOCABULARY = 600
RECIPE = """
model:
  num_layers: 8
  hidden_size: 32
  num_attention_heads: 4
  ffn_hidden_size: 48
  vocab_size: {vocab}
  padded_vocab_size: 640
data:
  tokenizer: {home}/tokenizer
  train: {home}/train
  valid: {home}/valid
  sequence_length: 64
  max_example_tokens: 40
steps: 20
save_every: 5
eval_every: 10
eval_samples: 12
threads: 1
"""
CLIPPING = 0.4
"""Below the norm of every step that the parity tests take, so that all of them cover clipping."""
DS = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": CLIPPING,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 4, "warmup_type": "linear", "cos_min_ratio": 0.1}},
    "zero_optimization": {"stage": 1},
    "progressive_subnetwork": {"method": "raptr", "path_lengths": "4-6-8", "balance_groups": 2, "paths_per_step": 2},
}

BERT = {
    "data.objective": "mlm",
    "data.max_example_tokens": "37",  # of which 15 % is no whole number, so that micro-batches differ in targets
    "model.norm": "layernorm",
    "model.feed_forward": "gelu",
    "model.biases": "true",
    "model.position_embedding": "learned",
    "model.head": "transform",
}
"""Turns the test recipe into a BERT."""


@dataclass(frozen=True)
class Project:
    """A recipe, its JSON and its data on disk."""

    home: Path
    recipe: Path
    ds: Path

    def run(self, *settings: str, world_size: int = 1) -> Run:
        """The run with `key=value` settings, as the command line would change it."""
        pairs = [tuple(setting.split("=", 1)) for setting in settings]
        return read_run(str(self.recipe), [(f"--{key}", value) for key, value in pairs], str(self.ds), world_size)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and token files, made by the real tools from Python's own documentation."""
    from pydoc_data.topics import topics

    from tokenizer.encode import encode
    from tokenizer.pieces import load_tokenizer
    from tokenizer.train import train

    home = tmp_path_factory.mktemp("data")
    texts = list(topics.values())
    for name, part in (("train", texts[:40]), ("valid", texts[40:50])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    train(str(home / "train.jsonl"), VOCABULARY, home / "tokenizer", model_type="bpe")
    for name in ("train", "valid"):
        encode(str(home / f"{name}.jsonl"), load_tokenizer(home / "tokenizer"), home / name)
    return home


@pytest.fixture(scope="session")
def project(home: Path) -> Project:
    recipe, ds = home / "tiny.yaml", home / "tiny.json"
    recipe.write_text(RECIPE.format(vocab=VOCABULARY, home=home))
    ds.write_text(json.dumps(DS, indent=2))
    return Project(home, recipe, ds)


@pytest.fixture(scope="session")
def ranks(project: Project) -> Iterator[Ranks]:
    """One process's groups, for tests that build models."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    recipe = project.run().recipe
    make_groups(recipe.parallel, recipe.seed, torch.device("cpu"))
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()
