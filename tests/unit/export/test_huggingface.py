"""Exported models compute the same logits in transformers, and their tokenizers make the same tokens."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.saver import Saver
from pretrain.config import Run
from pretrain.config.run import Position
from pretrain.data.batch import Batch
from pretrain.data.loader import open_data, tokenizer_of
from pretrain.engine import Engine, build_engine
from pretrain.errors import UserError
from pretrain.export.huggingface import export
from pretrain.model.attention import dense_mask
from pretrain.model.layer import LayerInputs
from pretrain.subnetwork import LayerPath
from tests.support.project import BERT, DS, Project
from tests.support.runs import train

TOLERANCE = 1e-4
RECIPES = {
    "ul2": {},
    "gpt": {"data.objective": "causal"},
    "gpt, untied": {"data.objective": "causal", "model.tied_embeddings": "false"},
    "bert": BERT,
    "llama 3": {
        "data.objective": "causal", "model.num_query_groups": "2", "model.head_dim": "12",
        "model.rope_scaling": "{type: llama3, factor: 8.0, original_length: 16}",
    },
    "qwen3": {
        "model.num_query_groups": "1", "model.qk_norm": "true", "model.head_dim": "16",
        "model.rope_scaling": "{type: yarn, factor: 8.0, original_length: 16}",
    },
    "olmo2": {
        "data.objective": "causal", "model.num_query_groups": "2", "model.qk_norm": "whole", "model.norm_placement": "after",
    },
    "with qkv biases": {"model.num_query_groups": "2", "model.biases": "qkv"},
}  # fmt: skip


@dataclass
class Exported:
    run: Run
    engine: Engine
    folder: Path
    batch: Batch


@pytest.fixture(scope="module", params=RECIPES)
def exported(request, project, ranks, tmp_path_factory) -> Exported:
    """After two steps at a high learning rate, so that nothing is as it was initialised."""
    run = project.run(*(f"{key}={value}" for key, value in RECIPES[request.param].items()), "ds.optimizer.params.lr=0.05")
    home = tmp_path_factory.mktemp("run")
    engine, data, directory = build_engine(run, ranks), open_data(run), RunDirectory(home / "run")
    for step in (1, 2):
        result = engine.step(step, data.batch(step), run.method.paths(step))
    with Saver(run, engine.optimizer, ranks, directory, data.checksums()) as saver:
        saver.begin(run.position(Position(), 2), result.lr)
    batch = data.batch(3)[0]
    data.close()
    engine.optimizer.settle()
    export(directory.path, home / "hf")
    return Exported(run, engine, home / "hf", batch)


@torch.no_grad()
def our_logits(exported: Exported, tokens: torch.Tensor) -> torch.Tensor:
    """[b, s, vocabulary], all layers, one example a row: causal for decoders, in both directions for BERT."""
    (chunk,), count = exported.engine.model.chunks, exported.run.recipe.model.vocab_size
    both_ways = exported.run.recipe.data.objective == "mlm"
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    mask = dense_mask(torch.zeros_like(tokens), torch.full_like(tokens, both_ways, dtype=torch.bool), torch.float32)
    chunk.eval()
    path = LayerPath.full(exported.run.recipe.model.num_layers)
    logits = chunk(tokens, positions, LayerInputs(mask, path))
    if chunk.head is not None:
        logits = logits + chunk.head.bias
    return logits[..., :count]


def test_logits_are_the_same(exported):
    is_bert = exported.run.recipe.data.objective == "mlm"
    model = (AutoModelForMaskedLM if is_bert else AutoModelForCausalLM).from_pretrained(exported.folder)
    tokens = torch.from_numpy(np.ascontiguousarray(exported.batch.tokens[:, :40])).long()
    if is_bert:
        assert (tokens == tokenizer_of(exported.run).id("[MASK]")).any(), "masked input"
    with torch.no_grad():
        theirs = model(tokens).logits
    ours = our_logits(exported, tokens)
    assert ours.abs().max() > 0.5 and theirs.shape == ours.shape
    assert (ours - theirs).abs().max() < TOLERANCE
    with torch.no_grad():  # the comparison can fail: two heads of one layer exchanged
        qkv = dict(exported.engine.model.named_parameters())["decoder.layers.3.self_attention.linear_qkv.weight"]
        former = qkv.clone()
        qkv.copy_(former.roll(8, 0))
        assert (our_logits(exported, tokens) - theirs).abs().max() > TOLERANCE
        qkv.copy_(former)


def test_the_tokenizer_makes_the_same_tokens(exported):
    from pydoc_data.topics import topics

    ours, theirs = tokenizer_of(exported.run), AutoTokenizer.from_pretrained(exported.folder)
    for text in [*list(topics.values())[:100], "Zwölf Boxkämpfer 你好 😀\n\ttabs  and   spaces ", " a", ""]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode([text])[0].tolist()
        assert theirs.decode(theirs(text, add_special_tokens=False)["input_ids"]) == text
    assert theirs.eos_token_id == ours.id("</s>") and theirs.pad_token_id == ours.id("<pad>")
    the, of = (ours.encode([word])[0].tolist() for word in ("the", "of"))
    prompt = [ours.id("[NLU]"), *the, ours.id("<extra_id_0>"), *of]
    assert theirs("[NLU] the <extra_id_0> of", add_special_tokens=False)["input_ids"] == prompt, "as in training: nothing between"
    if exported.run.recipe.data.objective == "mlm":
        assert theirs("the [MASK] of")["input_ids"] == [ours.id("[CLS]"), *the, ours.id("[MASK]"), *of, ours.id("[SEP]")]


def test_the_model_card_says_what_was_done(exported):
    card = (exported.folder / "README.md").read_text()
    assert "raptr: path_lengths 4-6-8" in card and "| step | 2 of 20 |" in card and "AdamW" in card
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["vocab_size"] == exported.run.recipe.model.vocab_size and config["dtype"] == "float32"


def test_weights_of_another_type_and_in_several_files(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.export.huggingface.SHARD_BYTES", 50_000)
    export(exported.folder.parent / "run", tmp_path / "hf", torch.bfloat16)
    files = sorted(file.name for file in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    is_bert = exported.run.recipe.data.objective == "mlm"
    kind = AutoModelForMaskedLM if is_bert else AutoModelForCausalLM
    one, several = kind.from_pretrained(exported.folder).state_dict(), kind.from_pretrained(tmp_path / "hf").state_dict()
    assert all(
        torch.equal(weight.bfloat16(), several[name].bfloat16()) for name, weight in one.items() if weight.is_floating_point()
    )


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(exported, tmp_path):
    with pytest.raises(UserError, match="exists; remove it.* --force"):
        export(exported.folder.parent / "run", exported.folder)
    with pytest.raises(UserError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_still_growing_is_not_exported(project, tmp_path):
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps({**DS, "progressive_subnetwork": {"method": "stacking", "path_lengths": "4-8"}}))
    growing = Project(project.home, project.recipe, ds)
    assert train(growing, tmp_path / "run", "--stop-at", "10").returncode == 0
    with pytest.raises(
        UserError, match="has 4 of its 8 layers so far; use a checkpoint of the last stage, which begins at step 11"
    ):
        export(tmp_path / "run", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_where_it_may_go(exported, tmp_path):
    run = exported.folder.parent / "run"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="lies below a file"):
        export(run, tmp_path / "file" / "hf")
    (tmp_path / "mine").mkdir()
    for name in ("config.json", "thesis.tex"):
        (tmp_path / "mine" / name).write_text("")
    with pytest.raises(UserError, match="holds other files than an export's"):
        export(run, tmp_path / "mine", force=True)
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty")
    (tmp_path / "empty" / "README.md").write_text("edited")
    export(run, tmp_path / "empty", force=True)
    assert "edited" not in (tmp_path / "empty" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine"], "nothing is left beside"


def test_a_bert_learns_from_pairs(project, ranks, tmp_path):
    """Two texts stand as BERT had them, both types mean the same at first, and some steps on a task of pairs teach it
    something."""
    run = project.run(*(f"{key}={value}" for key, value in BERT.items()))
    engine, data, directory = build_engine(run, ranks), open_data(run), RunDirectory(tmp_path / "run")
    result = engine.step(1, data.batch(1), run.method.paths(1))
    with Saver(run, engine.optimizer, ranks, directory, data.checksums()) as saver:
        saver.begin(run.position(Position(), 1), result.lr)
    data.close()
    export(directory.path, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    pair = tokenizer("the", "of", return_tensors="pt")
    the, of = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("the", "of"))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert pair["input_ids"][0].tolist() == [cls, *the, sep, *of, sep]
    assert pair["token_type_ids"][0].tolist() == [0] * (len(the) + 2) + [1] * (len(of) + 1)
    masked = AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        types = [masked(**{**pair, "token_type_ids": pair["token_type_ids"] * kind}).logits for kind in (0, 1)]
    assert torch.equal(*types)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", num_labels=2).train()
    words = ["the", "of", "and", "class", "list", "error"]
    pairs = [(a, b, words.index(b) % 2) for a in words for b in words]  # the second text decides
    batch = tokenizer([a for a, _, _ in pairs], [b for _, b, _ in pairs], padding=True, return_tensors="pt")
    labels, optimizer = torch.tensor([kind for _, _, kind in pairs]), torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(400):  # how many it takes differs by machine
        if losses and losses[-1] < 0.5 * losses[0]:
            break
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses
