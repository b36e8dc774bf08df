"""The small project that tests train: a recipe, its JSON, and where its data is; and copies of the code."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pretrain.config import Run, read_run
from pretrain.versions import CODE_LIST, HOME, listed_code

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
    "progressive_subnetwork": {
        "method": "raptr",
        "path_lengths": "4-6-8",
        "balance_groups": 2,
        "paths_per_step": 2,
        "skipped_update": "exact",  # the harder of the two: nothing of a sleeping layer may be lost
    },
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


def copy_code(to: Path) -> None:
    """Copy what a run takes along, to be edited."""
    for name in listed_code((HOME / CODE_LIST).read_text()):
        if (HOME / name).is_dir():
            shutil.copytree(HOME / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(HOME / name, to / name)
