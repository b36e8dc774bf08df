"""Skipped means skipped: no matrix product, no activation kept, plain and recomputed."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.engine.micro_batch import MicroBatch
from pretrain.model.layer import LayerInputs
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.width import Chosen, Width

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


LAYERS = 8
SIZES = ("model.hidden_size=64", "model.ffn_hidden_size=96", "model.num_attention_heads=4", "model.head_dim=24")
CUT = "ds.progressive_subnetwork={method: raptr_parts, path_lengths: 6-8, group_lengths: 2-4, ffn_lengths: 3-6}"
MATRICES = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)


def operations(engine, batch, width: Width | None) -> int:
    """Operations of matrix products in a forward and a backward pass."""
    path = LayerPath((True,) * LAYERS, (1.0,) * LAYERS, None if width is None else (width,) * LAYERS)
    engine.model.train()
    with FlopCounterMode(display=False) as counter:
        engine.forward_backward([MicroBatch(batch, path)], scale=1.0)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if operation in MATRICES)


@pytest.mark.parametrize(("groups", "columns"), [((0, 3), None), (None, (1, 2, 5)), ((2,), (0, 4))])
@pytest.mark.parametrize("feed_forward", ["swiglu", "gelu"])
def test_products_are_exactly_the_promised_share(project, ranks, groups, columns, feed_forward):
    run = project.run(*SIZES, CUT, f"model.feed_forward={feed_forward}")
    engine, data = build_engine(run, ranks), open_data(run)
    batch = data.batch(1)[0]
    data.close()
    width = Width(None if groups is None else Chosen(groups, 4), None if columns is None else Chosen(columns, 6))
    whole, part = operations(engine, batch, None), operations(engine, batch, width)
    tokens, (h, f, q) = batch.tokens.size, (64, 96, 96)
    heads, ffn = 2 * 4 * h * q, 2 * (3 if feed_forward == "swiglu" else 2) * h * f
    of_heads, of_columns = width.shares
    skipped = LAYERS * 3 * tokens * ((1 - of_heads) * heads + (1 - of_columns) * ffn)
    assert whole - part == pytest.approx(skipped, rel=1e-12) and skipped > 0


def test_what_does_not_run_has_no_gradient(project, ranks):
    run = project.run(*SIZES, CUT)
    engine, data = build_engine(run, ranks), open_data(run)
    batch = data.batch(1)[0]
    data.close()
    engine.model.train()
    path = LayerPath((True,) * LAYERS, (1.0,) * LAYERS, (Width(Chosen((1,), 4), Chosen((0, 5), 6)),) * LAYERS)
    engine.forward_backward([MicroBatch(batch, path)], scale=1.0)
    used = set(run.method.units.of_path(path))
    for group in engine.optimizer.groups:
        assert (group.gradients is not None) == (group.unit is None or group.unit in used)
        assert group.gradients is None or group.gradients.any()
    assert len(used) == LAYERS * (1 + 1 + 2) and run.method.units.count == LAYERS * (1 + 4 + 6)
