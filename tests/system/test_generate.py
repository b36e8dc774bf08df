"""What is written with a cache is what is written without one, and by transformers, on every layout."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.saver import Saver
from pretrain.config.run import Position
from pretrain.data.loader import open_data, tokenizer_of
from pretrain.engine import build_engine
from pretrain.errors import UserError
from pretrain.export.huggingface import export
from pretrain.generate.write import Prompt, write
from tests.support.layouts import REPLICAS, layout
from tests.support.layouts import train as train_on
from tests.support.project import BERT
from tests.support.requests import random_requests, written
from tests.support.runs import train

COUNT, TOKENS = 50, 12


GROUPED = ("model.num_query_groups=2", "model.head_dim=12", "model.qk_norm=true")


@pytest.fixture(scope="module", params=[(), GROUPED], ids=["each head its own keys", "grouped"])
def trained(request, project, ranks, tmp_path_factory):
    """(engine, exported model, run, tokenizer) with large weights, so that texts and masks matter."""
    run, home = project.run("model.init_std=0.2", "model.tied_embeddings=false", *request.param), tmp_path_factory.mktemp("run")
    engine, data, directory = build_engine(run, ranks), open_data(run), RunDirectory(home / "run")
    for step in (1, 2, 3):
        result = engine.step(step, data.batch(step), run.method.paths(step))
    with Saver(run, engine.optimizer, ranks, directory, data.checksums()) as saver:
        saver.begin(run.position(Position(), 3), result.lr)
    data.close()
    export(directory.path, home / "hf")
    return engine, AutoModelForCausalLM.from_pretrained(home / "hf", dtype=torch.float32), run, tokenizer_of(run)


def contexts(run) -> list[tuple[int, ...]]:
    longest = run.recipe.data.sequence_length - TOKENS
    return [request.context for request in random_requests(COUNT, run.recipe.model.vocab_size, longest)]


@torch.no_grad()
def without_cache(model, context: tuple[int, ...], both_ways: bool) -> tuple[int, ...]:
    """Each token from all that is before it, all read anew."""
    tokens = list(context)
    for _ in range(TOKENS):
        may = torch.ones(len(tokens), len(tokens)).tril()
        if both_ways:
            may[:, : len(context)] = 1
        mask = torch.zeros(1, 1, *may.shape).masked_fill(may == 0, torch.finfo(torch.float32).min)
        tokens.append(int(model(torch.tensor([tokens]), attention_mask=mask).logits[0, -1].argmax()))
    return tuple(tokens[len(context) :])


@pytest.mark.parametrize("both_ways", [True, False])
def test_a_cache_changes_nothing_and_transformers_write_the_same(trained, ranks, both_ways):
    engine, model, run, tokenizer = trained
    asked = contexts(run)
    found = write(engine, ranks, tokenizer, [Prompt(context, both_ways, TOKENS) for context in asked], end=-1)
    assert len(set(found)) > COUNT // 2, "texts differ, so that equal ones say something"
    for context, ours in zip(asked, found, strict=True):
        assert ours == without_cache(model, context, both_ways)
        again = []  # our own model, all read anew for each token
        for _ in range(TOKENS):
            tokens = torch.tensor([(*context, *again)])
            logits = engine.decoding([tokens.shape[1]], [len(context) if both_ways else 0], tokens.shape[1]).next(tokens)
            again.append(int(logits.argmax()))
        assert ours == tuple(again)
    if not both_ways:
        settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        for context, ours in zip(asked[:10], found):
            theirs = model.generate(torch.tensor([context]), attention_mask=torch.ones(1, len(context)), **settings)
            assert tuple(theirs[0, len(context) :].tolist()) == ours
    other = write(engine, ranks, tokenizer, [Prompt(context, not both_ways, TOKENS) for context in asked], end=-1)
    assert other != found, "the other way of reading writes something else"


@pytest.mark.dist
def test_every_layout_writes_the_same(project, ranks, tmp_path):
    expected = written(project.run(*(f"{key}={value}" for key, value in layout().items())), ranks, 37)
    cases = {
        "TP2": layout(tensor=2),
        "DP2": layout(**REPLICAS),
        "DP2 with ZeRO-3": layout(zero=3, **REPLICAS),
    }
    results, errors = train_on(project, tmp_path, 2, {name: {**case, "write": 37} for name, case in cases.items()})
    assert results.keys() == cases.keys(), errors
    for name, found in results.items():
        assert found == expected, name


def test_a_pipeline_is_refused(project, ranks):
    from unittest.mock import patch

    engine = build_engine(project.run(), ranks)
    recipe = engine.recipe.model_copy(update={"parallel": engine.recipe.parallel.model_copy(update={"pipeline": 2})})
    with patch.object(engine, "recipe", recipe), pytest.raises(UserError, match="use tensor ranks or replicas, on which any"):
        engine.decoding([3], [0], 5)


def generate(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pretrain", "generate", *map(str, words), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


@pytest.fixture(scope="module")
def run_dir(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(project, folder, "--stop-at", "5", "--ds.optimizer.params.lr", "0.02").returncode == 0
    return folder


def test_a_person_continues_texts_and_fills_blanks(run_dir):
    done = generate(run_dir, "--prompt", "The value of", "A name is", "--fill", "The [X] of a name", "--max-tokens", 9)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("The value of") and "A name is" in done.stdout and "of a name" in done.stdout
    again = generate(run_dir, "--prompt", "The value of", "--max-tokens", 9, "--temperature", 1.5, "--seed", 1)
    assert (
        again.stdout == generate(run_dir, "--prompt", "The value of", "--max-tokens", 9, "--temperature", 1.5, "--seed", 1).stdout
    )
    assert (
        again.stdout != generate(run_dir, "--prompt", "The value of", "--max-tokens", 9, "--temperature", 1.5, "--seed", 2).stdout
    )


@pytest.mark.long
def test_what_cannot_be_is_one_line(project, run_dir, tmp_path):
    told = {
        (): "error: generate: name a run directory or a checkpoint, before --prompt",
        (run_dir,): "error: generate: give a text with --prompt, or one with blanks with --fill",
        (run_dir, "--prompt", "a", "--max-tokens", 80): "and 80 more are over the model's 64 positions",
        (run_dir, "--prompt", "a", "--max-tokens", 0): "error: --max-tokens 0: at least 1",
        (run_dir, "--prompt", "a", "--temperature", -1): "error: --temperature -1.0: 0 or more",
        (run_dir, "--prompt", "a", "--top-p", 0): "error: --top-p 0.0: above 0, at most 1",
        (run_dir, "--prompt", "a", "--stop", ""): "an empty text would end everything at once",
        (run_dir, "--fill", "a"): "error: --fill: write [X] where something is to be filled in",
        (run_dir, "--prompt", "", "--mode", "none"): "--prompt: the text is empty, and there is no mode token",
        (tmp_path / "none", "--prompt", "a"): "holds no checkpoint; give a run directory",
    }
    for words, line in told.items():
        done = generate(*words)
        assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr, (words, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    bert = [word for key, value in BERT.items() for word in (f"--{key}", value)]
    assert train(project, tmp_path / "bert", "--stop-at", "5", *bert).returncode == 0
    assert "a model that fills in masks gives no likelihood" in generate(tmp_path / "bert", "--prompt", "a").stderr
