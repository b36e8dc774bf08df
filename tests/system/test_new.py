"""`new`: two files of a person's own, checked and ready to train."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pretrain.config import read_run
from pretrain.config.write import scaled_paths
from tests.support.hugging_face import PIECES, make_model, make_tokenizer
from tokenizer import load_tokenizer
from tokenizer.encode import encode


def pretrain(*words, **how) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pretrain", *map(str, words)], capture_output=True, text=True, timeout=180, **how
    )


def test_a_recipe_like_another_trains(home, tmp_path):
    words = ["--tokenizer", home / "tokenizer", "--data", home / "train", "--valid", home / "valid", "--steps", "3"]
    small = ["--data.sequence_length", "64", "--ds.train_micro_batch_size_per_gpu", "2", "--ds.train_batch_size", "4"]
    done = pretrain("new", tmp_path / "a" / "mine.yaml", "--like", "ul2_tiny", *words, *small, "--eval_samples", "100000")
    assert done.returncode == 2 and "eval_samples 100000 takes 100000 samples" in done.stderr and list(tmp_path.iterdir()) == []
    done = pretrain("new", tmp_path / "a" / "mine.yaml", "--like", "ul2_tiny", *words, *small)
    assert done.returncode == 0 and "everything that can be checked" in done.stdout, done.stderr
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["mine.json", "mine.yaml"]
    text = (tmp_path / "a" / "mine.yaml").read_text()
    assert "  # Width of the residual stream.\n  hidden_size: 128\n" in text and max(map(len, text.splitlines())) <= 130
    run = read_run(str(tmp_path / "a" / "mine.yaml"), [])
    assert (
        run.recipe.model.vocab_size == load_tokenizer(home / "tokenizer").vocab_size and run.recipe.model.padded_vocab_size == 640
    )
    assert re.search(r"positions in 3 steps: [\d.,]+ times the [\d,]+ tokens there are", done.stdout)
    done = pretrain("train", tmp_path / "a" / "mine.yaml", "--run-dir", tmp_path / "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr


def test_a_small_model_like_a_large_one(home, tmp_path):
    """What a person does not say goes in proportion, and as many samples are evaluated as there are."""
    words = ["--tokenizer", home / "tokenizer", "--data", home / "train", "--data.sequence_length", "64", "--steps", "20"]
    shape = ["--model.num_layers", "4", "--model.hidden_size", "64", "--model.num_attention_heads", "4"]
    batch = [
        "--ds.train_micro_batch_size_per_gpu",
        "2",
        "--ds.train_batch_size",
        "4",
        "--ds.scheduler.params.warmup_num_steps",
        "2",
    ]
    done = pretrain("new", tmp_path / "mine", "--like", "llama_1b", *words, *shape, *batch)
    assert done.returncode == 0, done.stderr
    run = read_run(str(tmp_path / "mine.yaml"), [])
    model = run.recipe.model
    assert (model.groups, model.head_size, model.ffn_hidden_size) == (1, 16, 256) and run.recipe.eval_samples < 512
    assert "times the" in done.stdout, "the data was opened"
    assert "valid_share: 0.005" in (tmp_path / "mine.yaml").read_text()
    assert "objective: causal" in (tmp_path / "mine.yaml").read_text()


@pytest.fixture(scope="module")
def folder(home, tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("hf")
    make_tokenizer(at / "theirs", [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()][:20])
    make_model("mistral").save_pretrained(at / "theirs")
    encode(str(home / "train.jsonl"), load_tokenizer(at / "theirs"), at / "train")
    return at


@pytest.mark.parametrize("objective", ["causal", "ul2"])
def test_a_folder_of_hugging_faces_goes_on(folder, tmp_path, objective):
    small = ["--steps", "8", "--ds.train_batch_size", "2", "--ds.train_micro_batch_size_per_gpu", "2"]
    words = ["--init-from", folder / "theirs", "--data", folder / "train", "--data.objective", objective, *small]
    warm_up = ["--ds.scheduler.params.warmup_num_steps", "1"]
    done = pretrain("new", tmp_path / "mine", *words, *warm_up)
    assert done.returncode == 0, done.stderr
    wrong = pretrain("new", tmp_path / "other", *words, *warm_up, "--model.hidden_size", "64")
    assert wrong.returncode == 2 and "model.hidden_size is 32 there and 64 here" in wrong.stderr
    recipe = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    model, added = recipe["model"], 0 if objective == "causal" else 106
    assert (model["num_layers"], model["num_query_groups"], model["vocab_size"]) == (8, 2, PIECES + added)
    assert recipe["export_as"] == "MistralForCausalLM" and recipe["data"]["sequence_length"] == 64
    done = pretrain("train", tmp_path / "mine.yaml", "--run-dir", tmp_path / "run", "--device", "cpu")
    assert done.returncode == 0 and "beginning with the weights" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the name of the new recipe comes first"),
        (["mine", "--tokenizer", "x", "--data", "y"], "--like or --init-from says"),
        (["mine", "--like", "ul2_tiny", "--data", "y"], "--data and --tokenizer say"),
        (["mine", "--like", "ul2_tinny", "--tokenizer", "x", "--data", "y"], 'recipe "ul2_tinny" is neither'),
        (["mine", "--init-from", "nowhere", "--data", "y"], "nowhere/config.json: cannot be read (No such file"),
        ([".", "--like", "ul2_tiny", "--tokenizer", "x", "--data", "y"], ". is no name of a file"),
        (["llama_1b", "--like", "ul2_tiny", "--tokenizer", "x", "--data", "y"], "llama_1b is a recipe that is here already"),
        (
            ["mine", "--like", "ul2_tiny", "--tokenizer", "x", "--data", "y", "--valid", "y"],
            "y is what is trained on; leave it out",
        ),
        (["mine", "--like", ".", "--init-from", ".", "--data", "y"], "both say a shape"),
        (["mine", "--like", "ul2_tiny", "--tokenizer", "TOKENIZER", "--data", "y"], "y.bin: no such file"),
        (
            ["mine", "--like", "ul2_tiny", "--tokenizer", "TOKENIZER", "--data", "y", "--log-to", "wanbd"],
            'mine.yaml: key "log_to',
        ),
        (["mine", "--like", "ul2_tiny", "--tokenizer", "nowhere", "--data", "y"], "nowhere: no tokenizer here"),
        (["taken", "--like", "ul2_tiny", "--tokenizer", "x", "--data", "y"], "taken.json: exists"),
        (["mine", "--like", "ul2_tiny", "--tokenizer", "x", "--data", "y", "--stepps", "3"], 'did you mean "--steps"'),
    ],
)
def test_what_is_wrong_is_one_line(words, message, home, tmp_path):
    words = [str(home / "tokenizer") if word == "TOKENIZER" else word for word in words]
    (tmp_path / "taken.json").write_text("{}")
    done = pretrain(
        "new", *words, cwd=tmp_path, env={"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    )
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mine")] == []


@pytest.mark.parametrize(("layers", "lengths"), [(12, "6-9-12"), (8, "4-6-8"), (28, "14-21-28"), (2, "1-2"), (1, "1")])
def test_path_lengths_keep_their_shares(layers, lengths):
    block = scaled_paths({"method": "raptr", "path_lengths": "4-6-8", "stage_fractions": [0.2, 0.3, 0.5]}, 8, layers)
    assert block["path_lengths"] == lengths and ("stage_fractions" in block) == (lengths.count("-") == 2)
    assert scaled_paths({"method": "full"}, 8, layers) == {"method": "full"}
