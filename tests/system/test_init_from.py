"""From a folder of Hugging Face's and back, as people do it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from pretrain.export.huggingface import export
from tests.support.hugging_face import FOLDERS, PIECES, make_model, make_tokenizer, settings
from tests.support.launch import pretrain
from tests.support.project import BERT
from tests.support.runs import rows, train
from tokenizer import load_tokenizer

CLOSE = 1e-4
QUICK = ("qwen3", "olmo2")
"""Classes that are tried in any case; the others are long to try."""


@pytest.fixture(scope="module")
def folders(home, tmp_path_factory) -> Path:
    """Folders of several classes, and token files that the command has encoded with their tokenizer."""
    at = tmp_path_factory.mktemp("hf")
    texts = [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]
    make_tokenizer(at / "tokenizer", texts[:20])
    for kind in (*FOLDERS, "bert"):
        make_model(kind).save_pretrained(at / kind, max_shard_size="60kB")
        for file in (at / "tokenizer").iterdir():
            shutil.copy(file, at / kind)
    for kind in ("llama", "qwen3"):
        make_model(kind, torch.bfloat16).save_pretrained(at / f"{kind}, bf16")
        for file in (at / "tokenizer").iterdir():
            shutil.copy(file, at / f"{kind}, bf16")
    for name in ("train", "valid"):
        words = ["--input", home / f"{name}.jsonl", "--tokenizer", at / "tokenizer", "--out", at / name]
        done = subprocess.run([sys.executable, "-m", "tokenizer", "encode", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return at


def options(kind: str, home: Path, **changed: str) -> list[str]:
    return [word for key, value in {**settings(kind, home), **changed}.items() for word in (f"--{key}", value)]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(pytest.param(kind, torch.float32, marks=[] if kind in QUICK else pytest.mark.long) for kind in FOLDERS),
        ("llama", torch.bfloat16),
        pytest.param("qwen3", torch.bfloat16, marks=pytest.mark.long),
    ],
    ids=lambda value: str(value),
)
def test_in_and_out_again_is_bit_for_bit_the_same(kind, dtype, folders, project, tmp_path):
    folder = folders / (f"{kind}, bf16" if dtype == torch.bfloat16 else kind)
    done = train(project, tmp_path / "run", *options(kind, folders, init_from=str(folder)), "--stop-at", "0")
    assert done.returncode == 0 and f"beginning with the weights of {folder}" in done.stdout, done.stderr
    export(tmp_path / "run", tmp_path / "out", dtype)
    before, after = tensors(folder), tensors(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    facts = [json.loads((at / "config.json").read_text()) for at in (folder, tmp_path / "out")]
    assert facts[0]["architectures"] == facts[1]["architectures"] and facts[0]["dtype"] == facts[1]["dtype"]
    tokens = torch.arange(40).remainder(PIECES)[None]
    with torch.no_grad():
        one, other = (
            AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32)(tokens).logits for at in (folder, tmp_path / "out")
        )
    assert torch.equal(one, other)


def test_a_bert_computes_the_same_again(folders, project, tmp_path):
    pieces = load_tokenizer(folders / "bert").vocab_size
    data = {
        key: value for key, value in settings("llama", folders).items() if key.startswith("data.") and key != "data.objective"
    }
    own = {
        "model.vocab_size": str(pieces),
        "model.padded_vocab_size": "640",
        "model.num_layers": "8",
        "init_from": f"{folders}/bert",
    }
    words = {**data, **BERT, **own, "data.tokenizer": f"{folders}/bert"}
    done = train(
        project, tmp_path / "run", *(word for key, value in words.items() for word in (f"--{key}", value)), "--stop-at", "0"
    )
    assert done.returncode == 0, done.stderr
    export(tmp_path / "run", tmp_path / "out")
    tokens = torch.arange(40).remainder(PIECES)[None]
    with torch.no_grad():
        one, other = (
            AutoModelForMaskedLM.from_pretrained(at)(tokens).logits[..., :PIECES] for at in (folders / "bert", tmp_path / "out")
        )
    assert (one - other).abs().max() < CLOSE, "what is added to every token is in the positions now"


def test_it_goes_on_with_ul2_and_resumes_without_the_folder(folders, project, tmp_path):
    folder, pieces = tmp_path / "llama", load_tokenizer(folders / "llama").vocab_size
    shutil.copytree(folders / "llama", folder)
    changed = {"init_from": str(folder), "data.objective": "ul2", "model.vocab_size": str(pieces)}
    words = options("llama", folders, **changed)
    assert train(project, tmp_path / "run", *words, "--stop-at", "5").returncode == 0
    shutil.rmtree(folder)
    done = train(project, tmp_path / "run", *words, "--stop-at", "7")
    assert done.returncode == 0 and "resuming after step 5" in done.stdout and "beginning with" not in done.stdout, done.stderr
    whole = train(
        project, tmp_path / "afresh", *options("llama", folders, **{**changed, "init_from": f"{folders}/llama"}), "--stop-at", "7"
    )
    assert whole.returncode == 0
    assert [row["loss"] for row in rows(tmp_path / "run")] == [row["loss"] for row in rows(tmp_path / "afresh")]
    export(tmp_path / "run", tmp_path / "out")
    ours, theirs = load_tokenizer(folders / "llama"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("[S2S]")["input_ids"] == [ours.id("[S2S]")] and theirs.eos_token_id == ours.id("</s>")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight.shape[0] == pieces


@pytest.mark.dist
@pytest.mark.long
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_layouts_begin_alike(kind, folders, project, tmp_path):
    words, layout = options(kind, folders), ["--parallel.tensor", "2", "--parallel.pipeline", "2", "--device", "cpu"]
    assert train(project, tmp_path / "one", *words).returncode == 0
    several = pretrain(project, tmp_path / "four", 4, *words, *layout)
    out, err = several.communicate(timeout=180)
    assert several.returncode == 0, err
    ours, theirs = rows(tmp_path / "four"), rows(tmp_path / "one")
    assert len(ours) == len(theirs) >= 20
    for mine, other in zip(ours, theirs):
        for key in ("loss", "eval_loss"):
            if key in other:
                assert abs(mine[key] - other[key]) < CLOSE, (mine["step"], key)
    for at in ("one", "four"):
        export(tmp_path / at, tmp_path / f"{at}, out")
    weights, others = tensors(tmp_path / "four, out"), tensors(tmp_path / "one, out")
    assert max(float((weights[name] - others[name]).abs().max()) for name in others) < CLOSE


def test_a_folder_that_does_not_fit_is_told_once(folders, project, tmp_path):
    done = train(project, tmp_path / "run", *options("llama", folders, **{"model.rotary_base": "10000"}))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "model.rotary_base is 500000 there and 10000 here" in done.stderr
