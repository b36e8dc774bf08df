"""Requests are scored as transformers scores them with the same mask, and the same on every layout."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.saver import Saver
from pretrain.config.run import Position
from pretrain.data.batch import Batch
from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.evaluate.requests import score
from pretrain.export.huggingface import export
from pretrain.model.attention import dense_mask
from pretrain.subnetwork import LayerPath
from tests.support.layouts import BF16, REPLICAS, TOLERANCE, layout, train
from tests.support.requests import agreements, random_requests, scores

COUNT = 41
"""Not a multiple of anything, so that micro-batches are filled up."""


@pytest.fixture(scope="module")
def trained(project, ranks, tmp_path_factory):
    """(engine, exported model, run) after two steps at a high learning rate, so that masks matter."""
    run, home = project.run("ds.optimizer.params.lr=0.05"), tmp_path_factory.mktemp("run")
    engine, data, directory = build_engine(run, ranks), open_data(run), RunDirectory(home / "run")
    for step in (1, 2):
        result = engine.step(step, data.batch(step), run.method.paths(step))
    with Saver(run, engine.optimizer, ranks, directory, data.checksums()) as saver:
        saver.begin(run.position(Position(), 2), result.lr)
    data.close()
    export(directory.path, home / "hf")
    return engine, AutoModelForCausalLM.from_pretrained(home / "hf", dtype=torch.float32), run


@torch.no_grad()
def theirs(model, request, both_ways: bool) -> tuple[float, bool]:
    """One request at a time, no packing, nothing padded: a mask of four dimensions says who reads whom."""
    tokens = torch.tensor([request.context + request.continuation])
    length, context = tokens.shape[1], len(request.context)
    may = torch.ones(length, length).tril()
    if both_ways:
        may[:, :context] = 1
    mask = torch.zeros(1, 1, length, length).masked_fill(may == 0, torch.finfo(torch.float32).min)
    logits = model(tokens, attention_mask=mask).logits[0, context - 1 : -1].double()
    labels = tokens[0, context:]
    return float(logits.log_softmax(-1).gather(1, labels[:, None]).sum()), bool((logits.argmax(-1) == labels).all())


@pytest.mark.parametrize("both_ways", [True, False])
def test_scores_are_those_of_transformers_with_the_same_mask_and_of_no_other(trained, both_ways):
    engine, model, run = trained
    length = run.recipe.data.sequence_length
    requests = random_requests(COUNT, run.recipe.model.vocab_size, length)
    with torch.no_grad():  # some continuations are what greedy decoding gives
        for number in range(0, COUNT, 2):
            request = requests[number]
            best = theirs_greedy(model, request, both_ways)
            requests[number] = type(request)(request.context, best)
    found = score(engine, requests, 0, both_ways)
    for request, ours in zip(requests, found, strict=True):
        log_likelihood, is_greedy = theirs(model, request, both_ways)
        assert ours.log_likelihood == pytest.approx(log_likelihood, abs=1e-3) and ours.is_greedy == is_greedy
    assert 0 < sum(one.is_greedy for one in found) < COUNT
    others = [theirs(model, request, not both_ways)[0] for request in requests]
    assert max(abs(ours.log_likelihood - other) for ours, other in zip(found, others)) > 1e-2, "the other mask gives other scores"


def theirs_greedy(model, request, both_ways: bool) -> tuple[int, ...]:
    """The likeliest next token, alone."""
    tokens = torch.tensor([request.context])
    length = tokens.shape[1]
    may = torch.ones(length, length) if both_ways else torch.ones(length, length).tril()
    mask = torch.zeros(1, 1, length, length).masked_fill(may == 0, torch.finfo(torch.float32).min)
    return (int(model(tokens, attention_mask=mask).logits[0, -1].argmax()),)


def test_order_and_company_change_no_score(trained):
    engine, _, run = trained
    length = run.recipe.data.sequence_length
    requests = random_requests(COUNT, run.recipe.model.vocab_size, length)
    together = score(engine, requests, 0, True)
    backwards = score(engine, requests[::-1], 0, True)[::-1]
    alone = [score(engine, [request], 0, True)[0] for request in requests]
    for one, *others in zip(together, backwards, alone, strict=True):
        assert all(other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-5) for other in others)


def test_samples_that_the_schedule_cannot_send_are_refused(trained, project, ranks):
    engine, _, run = trained
    assert engine.sample_lengths == [32, 40, 48, 56, 64], "so that the other tests put requests into samples of several lengths"
    for each in ("compile=layers", "model.attention=flex"):
        assert build_engine(project.run(each), ranks).sample_lengths == [64], "nothing is compiled for one length more"
    for count, length in ((0, run.recipe.data.sequence_length), (2, 8)):
        with pytest.raises(ValueError, match=rf"samples to score are \[{count}, {length}\]"):
            engine.score(Batch.empty(count, length, 0))


LAYOUTS = {
    "TP2": layout(tensor=2),
    "TP2 with sequence parallelism": layout(tensor=2, sequence=True),
    "PP2": layout(pipeline=2),
    "PP2 with two virtual chunks": layout(pipeline=2, virtual=2),
    "DP2": layout(**REPLICAS),
    "DP2 without ZeRO": layout(zero=0, **REPLICAS),
    "DP2 with ZeRO-2": layout(zero=2, **REPLICAS),
    "DP2 with ZeRO-3": layout(zero=3, **REPLICAS),
    "bf16 DP2 with ZeRO-3": layout(zero=3, **REPLICAS, **BF16),
}


@torch.no_grad()
def test_parts_agree_as_transformers_do_with_fewer_layers(trained):
    """The share of targets at which a model cut short has the same likeliest token."""
    engine, model, run = trained
    data, layers = open_data(run), run.recipe.model.num_layers
    whole = LayerPath.full(layers)
    found = engine.agreement(data.held_out(), whole, {**run.parts, "whole": whole})
    agree, count = dict.fromkeys([f"first_{n}" for n in range(1, layers)], 0), 0
    for batch in data.held_out():
        may = dense_mask(torch.from_numpy(batch.segments), torch.from_numpy(batch.prefix), torch.float32).clamp(min=-1e30)
        inputs = {
            "input_ids": torch.from_numpy(batch.tokens), "position_ids": torch.from_numpy(batch.positions), "attention_mask": may,
        }  # fmt: skip
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        best = [model.lm_head(model.model.norm(one)).argmax(-1) for one in hidden[1:-1]] + [model.lm_head(hidden[-1]).argmax(-1)]
        targets = torch.from_numpy(batch.targets)
        count += int(targets.sum())
        for n in range(1, layers):
            agree[f"first_{n}"] += int(((best[n - 1] == best[-1]) & targets).sum())
    data.close()
    assert found["whole"] == 1.0 and found.keys() == {*run.parts, "whole"}
    for name, number in agree.items():
        assert found[name] == pytest.approx(number / count, abs=1.5 / count), name
    assert len({found[name] for name in agree}) > 2, "parts differ, so that equal shares say something"


@pytest.mark.dist
def test_every_layout_gives_the_same_scores(project, ranks, tmp_path):
    one = {
        name: scores(project.run(*(f"{key}={value}" for key, value in {**layout(), **more}.items())), ranks, COUNT, True)
        for name, more in {"fp32": {}, "bf16": BF16}.items()
    }
    results, errors = train(project, tmp_path, 2, {name: {**case, "score": COUNT} for name, case in LAYOUTS.items()})
    assert results.keys() == LAYOUTS.keys(), errors
    for name, found in results.items():
        within = 0.05 if "bf16" in name else TOLERANCE
        for ours, expected in zip(found, one["bf16" if "bf16" in name else "fp32"], strict=True):
            assert ours["is_greedy"] == expected.is_greedy or "bf16" in name
            assert ours["log_likelihood"] / ours["tokens"] == pytest.approx(expected.log_likelihood / expected.tokens, abs=within)


@pytest.mark.dist
def test_parts_agree_alike_on_layouts(project, ranks, tmp_path):
    expected = agreements(project.run(*(f"{key}={value}" for key, value in layout().items())), ranks)
    cases = {"TP2": layout(tensor=2), "PP2": layout(pipeline=2), "DP2 with ZeRO-3": layout(zero=3, **REPLICAS)}
    results, errors = train(project, tmp_path, 2, {name: {**case, "agree": 1} for name, case in cases.items()})
    assert results.keys() == cases.keys(), errors
    for name, found in results.items():
        assert found == pytest.approx(expected, abs=2e-3), name
    assert expected["whole"] == 1 and 0 < expected["first_1"] < 1
