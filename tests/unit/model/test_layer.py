"""Skipped means skipped: no matrix product, no activation kept, plain and recomputed."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.engine.micro_batch import MicroBatch
from pretrain.model.layer import LayerInputs
from pretrain.subnetwork import LayerPath

PRODUCTS = {"mm", "addmm", "bmm", "matmul", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward"}  # fmt: skip


class CountProducts(TorchDispatchMode):
    """Counts matrix products by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def path_of(layers: int, active: set[int]) -> LayerPath:
    return LayerPath(tuple(n in active for n in range(layers)), (1.0,) * layers)


def products(engine, batch, path: LayerPath) -> Counter:
    with CountProducts() as count:
        engine.forward_backward([MicroBatch(batch, path)], scale=1.0)
    engine.model.zero_grad()
    return count.counts


@pytest.mark.parametrize("recompute", ["none", "layer"])
def test_a_step_runs_the_products_of_its_active_layers_and_no_others(project, ranks, recompute):
    run = project.run(f"model.recompute={recompute}")
    data, engine = open_data(run), build_engine(run, ranks)
    (batch, *_), layers = data.batch(1), run.recipe.model.num_layers
    data.close()
    none = products(engine, batch, path_of(layers, set()))
    one = products(engine, batch, path_of(layers, {3}))
    a_layer = one - none
    forwards = 2 if recompute == "layer" else 1
    assert a_layer["mm"] == 4 * forwards + 2 * 4, "qkv, projection, two of the MLP; backward twice each"
    for active in ({0, 7}, {0, 2, 5, 7}, set(range(layers))):
        expected = none + Counter({name: len(active) * n for name, n in a_layer.items()})
        assert products(engine, batch, path_of(layers, active)) == expected


def test_a_skipped_layer_keeps_no_activation(project, ranks):
    run = project.run()
    data, engine = open_data(run), build_engine(run, ranks)
    (batch, *_), layers = data.batch(1), run.recipe.model.num_layers
    data.close()

    def saved(active: set[int]) -> int:
        kept: dict[int, int] = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            engine.forward_backward([MicroBatch(batch, path_of(layers, active))], scale=1.0)
        engine.model.zero_grad()
        weights = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
        return sum(size for pointer, size in kept.items() if pointer not in weights)

    assert saved({0}) - saved(set()) > 0
    assert saved({0, 1, 2, 3}) > saved({0, 1}) > saved({0})


def test_skipped_layers_have_no_gradient_and_pass_their_input_on(project, ranks):
    run = project.run()
    data, engine = open_data(run), build_engine(run, ranks)
    batch, *_ = data.batch(1)
    data.close()
    engine.forward_backward([MicroBatch(batch, path_of(8, {0, 4}))], scale=1.0)
    trained = {group.layer for group in engine.optimizer.groups if group.gradients is not None}
    assert trained == {None, 0, 4}
    layer = engine.model.chunks[0].decoder.layers[1]
    x = torch.randn(4, 1, 32)
    skipped = LayerInputs(torch.empty(0), path_of(8, {0, 4}))
    assert layer(x, skipped)[0].equal(x)


def test_evaluation_runs_all_layers_unscaled_whatever_the_last_path_was(project, ranks):
    run = project.run("ds.progressive_subnetwork.residual_scale=1/keep")
    data, engine = open_data(run), build_engine(run, ranks)
    before = engine.evaluate(data.held_out())
    engine.forward_backward([MicroBatch(data.batch(1)[0], run.method.paths(1)[0])], scale=1.0)
    after = engine.evaluate(data.held_out())
    data.close()
    assert before == after


def test_evaluation_does_not_depend_on_the_micro_batch(project, ranks):
    losses = []
    for micro_batch in (1, 4):
        run = project.run(f"ds.train_micro_batch_size_per_gpu={micro_batch}")
        data = open_data(run)
        losses.append(build_engine(run, ranks).evaluate(data.held_out()).loss)
        data.close()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
