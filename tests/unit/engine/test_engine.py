"""What the engine refuses, and what it does in bf16."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.engine.micro_batch import MicroBatch
from pretrain.errors import TrainingStopped, UserError
from pretrain.place import find_place
from pretrain.ranks.launch import join, launch
from tests.support.project import BERT


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_micro_batch(project, ranks):
    run = project.run("model.tied_embeddings=false")
    data, engine = open_data(run), build_engine(run, ranks)
    batches = data.batch(1)
    data.close()
    only_in_2 = set(np.unique(batches[2].tokens)) - {t for i in (0, 1, 3) for t in np.unique(batches[i].tokens)}
    weights = dict(engine.model.named_parameters())
    weights["embedding.word_embeddings.weight"].data[list(only_in_2)] = float("nan")
    before = {name: w.detach().clone() for name, w in weights.items()}
    with pytest.raises(TrainingStopped, match="step 1, micro-batch 2 of replica 0: the loss is nan"):
        engine.step(1, batches, run.method.paths(1))
    for name, w in weights.items():
        assert torch.equal(w.nan_to_num(7), before[name].nan_to_num(7)), name


@pytest.mark.parametrize("stage", [0, 1])
def test_a_gradient_that_is_not_finite_stops_the_run(project, ranks, stage):
    run = project.run(f"ds.zero_optimization.stage={stage}")
    data, engine = open_data(run), build_engine(run, ranks)
    weight = dict(engine.model.named_parameters())["decoder.final_layernorm.weight"]
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingStopped, match="step 1: the gradient's norm is not finite"):
        engine.step(1, data.batch(1), run.method.paths(1))
    data.close()


@pytest.mark.parametrize("objective", ["ul2", "mlm"])
def test_head_and_projection_run_at_targets_alone(project, ranks, objective):
    """Half of the targets less is so many products less, forward and backward."""
    run = project.run(*(f"{key}={value}" for key, value in BERT.items()) if objective == "mlm" else ())
    data, engine = open_data(run), build_engine(run, ranks)
    batch, path, counted = data.batch(1)[0], run.method.paths(1)[0], []
    data.close()
    assert 0 < batch.targets.mean() < 0.6
    fewer = batch.targets & (np.cumsum(batch.targets).reshape(batch.targets.shape) % 2 == 0)
    for targets in (batch.targets, fewer):
        with FlopCounterMode(display=False) as counter:
            engine.forward_backward([MicroBatch(replace(batch, targets=targets), path)], scale=1.0)
        counted.append(counter.get_total_flops())
    hidden, pieces = run.recipe.model.hidden_size, run.recipe.model.vocab_size
    # A product that is added to in place, the projection's gradient, is none that the counter knows.
    a_target = 2 * hidden * (2 * pieces + (3 * hidden if objective == "mlm" else 0))
    assert counted[0] - counted[1] == a_target * (batch.targets.sum() - fewer.sum())


def test_bf16_follows_fp32_and_keeps_fp32_masters(project, ranks):
    losses = []
    for settings in ((), ("ds.bf16.enabled=true",), ("ds.bf16.enabled=true", "model.recompute=layer")):
        run = project.run(*settings)
        data, engine = open_data(run), build_engine(run, ranks)
        losses.append([engine.step(step, data.batch(step), run.method.paths(step)).loss for step in range(1, 16)])
        data.close()
    group = engine.optimizer.groups[0]
    assert {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}
    assert group.master.dtype == group.gradients.dtype == torch.float32 and group.weights.dtype == torch.bfloat16
    fp32, bf16, recomputed = map(np.array, losses)
    assert np.abs(fp32 - bf16).max() < 0.02
    assert np.abs(bf16 - recomputed).max() < 0.02


def test_skipped_layers_still_feel_momentum_and_weight_decay(project, ranks):
    """A zero gradient is a gradient: a layer that no path ran in step 2 moves on by what step 1 gave it."""
    run = project.run("ds.progressive_subnetwork.paths_per_step=1", "ds.progressive_subnetwork.path_lengths=4")
    data, engine = open_data(run), build_engine(run, ranks)
    name = "decoder.layers.{}.mlp.linear_fc2.weight"
    first, second = run.method.paths(1)[0], run.method.paths(2)[0]
    skipped = next(n for n in range(8) if first.active[n] and not second.active[n])
    never = [n for n in range(8) if not first.active[n] and not second.active[n]]
    assert never, "the test needs a layer that neither step ran"
    weights = dict(engine.model.named_parameters())
    engine.step(1, data.batch(1), [first])
    engine.optimizer.settle()
    before = {n: weights[name.format(n)].detach().clone() for n in [skipped, *never]}
    result = engine.step(2, data.batch(2), [second])
    data.close()
    engine.optimizer.settle()
    assert not torch.equal(weights[name.format(skipped)], before[skipped])
    for n in never:
        decayed = before[n] * (1 - result.lr * 0.1)
        assert torch.allclose(weights[name.format(n)], decayed, atol=1e-9)


def test_flex_is_refused_on_a_cpu(project, ranks):
    with pytest.raises(UserError, match="pass --model.attention sdpa"):
        with launch(project.run("model.attention=flex").recipe, ranks):
            pass


def test_processes_without_an_address_to_meet_at_are_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    place = find_place({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="WORLD_SIZE is 2 and MASTER_ADDR is not set"), join("cpu", place, tmp_path):
        pass
