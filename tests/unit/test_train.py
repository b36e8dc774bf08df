"""The loop of a GPU, where a step's numbers are read when the next has been begun; here on a CPU, which can do so, too."""

import traceback
from collections import Counter

import numpy as np
import pytest
import torch

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.errors import TrainingStopped
from pretrain.train import Begun

ASKS = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
"""Methods of a tensor that would wait for a GPU."""


class Watch:
    def __init__(self):
        self.seen = []

    def step(self, step, result, paths):
        self.seen.append((step, result.loss))


@pytest.mark.parametrize("ahead", [False, True])
def test_results_are_read_in_order_one_step_late_where_the_device_computes_beside_it(project, ranks, ahead):
    run = project.run()
    data, engine, watch = open_data(run), build_engine(run, ranks), Watch()
    begun, known = Begun(watch, None, ahead), []
    for step in range(1, 6):
        begun.add(engine.begin(step, data.batch(step), run.method.paths(step)), run.method.paths(step))
        known.append(len(watch.seen))
    begun.finish()
    again = build_engine(run, ranks)
    assert known == ([0, 1, 2, 3, 4] if ahead else [1, 2, 3, 4, 5])
    assert watch.seen == [(step, again.step(step, data.batch(step), run.method.paths(step)).loss) for step in range(1, 6)]
    data.close()


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_step_that_is_not_finite_updates_nothing_and_stops_the_run_at_the_next(project, ranks, fused):
    run = project.run(f"ds.optimizer.params.fused={fused}")
    data, engine = open_data(run), build_engine(run, ranks)
    begun = Begun(Watch(), None, ahead=True)
    begun.add(engine.begin(1, data.batch(1), run.method.paths(1)), run.method.paths(1))
    weight = dict(engine.model.named_parameters())["decoder.final_layernorm.weight"]
    engine.optimizer.settle()
    before = [group.master.detach().clone() for group in engine.optimizer.groups]
    hook = weight.register_hook(lambda gradient: gradient * float("nan"))
    begun.add(engine.begin(2, data.batch(2), run.method.paths(2)), run.method.paths(2))
    hook.remove()
    engine.optimizer.settle()
    awake = {layer for path in run.method.paths(2) for layer in path.layers} | {None}
    for group, master in zip(engine.optimizer.groups, before, strict=True):
        assert group.layer not in awake or torch.equal(group.master, master)
    with pytest.raises(TrainingStopped, match="step 2: the gradient's norm is not finite"):
        begun.add(engine.begin(3, data.batch(3), run.method.paths(3)), run.method.paths(3))
    data.close()


@pytest.mark.parametrize("micro_batches", [2, 8])
def test_beginning_a_step_asks_the_device_nothing_however_many_micro_batches(project, ranks, monkeypatch, micro_batches):
    """What it asks are numbers that the CPU has: target tokens and fingerprints."""
    batch = project.run().batch
    run = project.run(f"ds.train_micro_batch_size_per_gpu={batch // micro_batches}")
    assert run.micro_batches == micro_batches
    data, engine = open_data(run), build_engine(run, ranks)
    batches = {step: data.batch(step) for step in (1, 2)}
    data.close()
    engine.step(1, batches[1], run.method.paths(1))
    asked = Counter()

    def noting(name):
        method = getattr(torch.Tensor, name)

        def call(self, *args, **kwargs):
            frames = [f for f in traceback.extract_stack()[:-1] if "/tests/" not in f.filename]
            asked[f"{name} in {frames[-1].filename.rsplit('/', 1)[-1]}: {frames[-1].line}"] += 1
            return method(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ASKS:
            patch.setattr(torch.Tensor, name, noting(name))
        outcome = engine.begin(2, batches[2], run.method.paths(2))
    assert np.isfinite(outcome.read().loss)
    assert asked == {"tolist in agreement.py: targets, *fingerprints = slots.tolist()": 1}
