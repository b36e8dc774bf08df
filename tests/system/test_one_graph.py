"""Layers compiled: one graph, whatever the path, the scale and the stage of a run; here without generated code, which
test_compiled.py has.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.engine.micro_batch import MicroBatch
from pretrain.model import cross_entropy, layer, linear
from pretrain.subnetwork import LayerPath

METHODS = {
    "4-6-8": (),
    "pld": ('ds.progressive_subnetwork={"method": "pld", "theta": 0.5, "gamma": 0.1}',),
}


@pytest.fixture
def graphs(monkeypatch):
    """Numbers of graphs of layers and of passes over logits since the test began."""
    torch._dynamo.reset()
    counted = {"layers": 0, "loss": 0}

    def counting(what: str):
        def backend(graph, inputs):
            counted[what] += 1
            return graph.forward

        return backend

    compile_with, of_loss = torch.compile, set(vars(cross_entropy.Kernels()).values())

    def compiled(function, **options):
        return compile_with(function, backend=counting("loss" if function in of_loss else "layers"), **options)

    monkeypatch.setattr(torch, "compile", compiled)
    for made_once in (layer.compiled, cross_entropy.compiled_kernels):
        made_once.cache_clear()
    yield counted
    for made_once in (layer.compiled, cross_entropy.compiled_kernels):
        made_once.cache_clear()
    torch._dynamo.reset()


def losses(run, ranks, steps: int) -> list[float]:
    data, engine = open_data(run), build_engine(run, ranks)
    found = [engine.step(step, data.batch(step), run.method.paths(step)).loss for step in range(1, steps + 1)]
    found.append(engine.evaluate(data.held_out(), LayerPath.full(8)).loss)
    data.close()
    return found


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_one_graph_of_a_layer_and_the_losses_of_an_eager_one(project, ranks, graphs, method, recompute):
    settings = ("steps=9", f"model.recompute={recompute}", *METHODS[method])
    eager = project.run(*settings, "compile=none")
    lengths = {path.length for step in range(1, 10) for path in eager.method.paths(step)}
    scales = {scale for step in range(1, 10) for path in eager.method.paths(step) for scale in path.scale}
    assert len(lengths) > 2 and (method == "4-6-8" or len(scales) > 8), "there is something to tell apart"
    expected = losses(eager, ranks, 9)
    assert graphs["layers"] == 0
    assert losses(project.run(*settings, "compile=layers"), ranks, 9) == pytest.approx(expected, rel=1e-6)
    assert graphs == {"layers": 2, "loss": 2}, "a layer with gradients and without; two passes over logits"


def test_micro_batches_without_a_mask_have_one_more(project, ranks, graphs):
    """Of a step's micro-batches every second one has two examples a sample; the others have one, which needs no mask."""
    run = project.run("compile=layers", "data.objective=causal", "ds.progressive_subnetwork.method=full")
    data, engine = open_data(run), build_engine(run, ranks)
    length = run.recipe.data.sequence_length
    half = (np.arange(length) * 2 // length).astype(np.int32)
    batches = [
        replace(batch, segments=(half if index % 2 else half * 0)[None].repeat(len(batch.tokens), 0))
        for index, batch in enumerate(data.batch(1))
    ]
    data.close()
    causal = [MicroBatch(batch, LayerPath.full(8)).is_causal for batch in batches]
    assert set(causal) == {True, False}
    compiled = engine.step(1, batches, run.method.paths(1)).loss
    assert graphs["layers"] == 2, "with and without a mask"
    eager = build_engine(project.run("data.objective=causal", "ds.progressive_subnetwork.method=full"), ranks)
    assert compiled == pytest.approx(eager.step(1, batches, run.method.paths(1)).loss, rel=1e-6)


def test_parts_of_layers_have_a_graph_for_each_number_of_them(project, ranks, graphs):
    """Which blocks run is no constant of a graph: what changes from stage to stage is how many."""
    parts = "ds.progressive_subnetwork={method: raptr_parts, path_lengths: 6-7-8, group_lengths: 1-2-4, ffn_lengths: 2-4-6}"
    expected = losses(project.run("steps=9", parts, "compile=none"), ranks, 9)
    assert losses(project.run("steps=9", parts, "compile=layers"), ranks, 9) == pytest.approx(expected, rel=1e-6)
    assert graphs["layers"] == 3 + 1, "three stages with gradients, and all without"


def test_more_stages_of_parts_than_pytorch_would_compile(project, ranks, graphs):
    parts = "ds.progressive_subnetwork={method: raptr_ffn, ffn_lengths: 1-2-3-4-5-6-7-8-9-10-11-12}"
    assert len(losses(project.run("steps=12", parts, "compile=layers"), ranks, 12)) == 13
    assert graphs["layers"] == 12 + 1


SIZES = ("model.hidden_size=32", "model.head_dim=12", "model.ffn_hidden_size=48", "model.num_attention_heads=4")
CUT = "ds.progressive_subnetwork={method: raptr_parts, path_lengths: 8-8, group_lengths: 2-4, ffn_lengths: 3-6}"


@pytest.mark.parametrize(("broken", "through"), [(False, "part"), (False, "whole"), (True, "part"), (True, "whole")])
def test_no_joined_weight_waits_for_the_backward_pass(project, ranks, monkeypatch, broken, through):
    """The break: what is joined for the gradient as it was for the product is joined once, and kept."""
    torch._dynamo.reset()
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_with, backend="aot_eager_decomp_partition"))
    layer.compiled.cache_clear()
    if broken:
        monkeypatch.setattr(linear, "joined_again", linear.joined)
    run = project.run(*SIZES, CUT, "compile=layers")
    data, engine = open_data(run), build_engine(run, ranks)
    batch, own = data.batch(1)[0], {parameter.data_ptr() for parameter in engine.model.parameters()}
    data.close()
    engine.model.train()
    share = 2 if through == "part" else 1
    q, f = 48 // share, 48 // share
    joined = {(3 * q, 32), (32, q), (2 * f, 32), (32, f)}
    path, kept = (run.method.paths(1)[0] if through == "part" else LayerPath.full(8)), []

    def pack(tensor):
        if tuple(tensor.shape) in joined | {shape[::-1] for shape in joined} and tensor.data_ptr() not in own:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engine.forward_backward([MicroBatch(batch, path)], scale=1.0)
    layer.compiled.cache_clear()
    torch._dynamo.reset()
    assert bool(kept) == broken


def test_a_scale_that_were_a_number_would_be_a_constant_of_the_graph(project, ranks, graphs, monkeypatch):
    """The break: without the tensor each scale has a graph."""
    run = project.run("compile=layers")
    data, engine = open_data(run), build_engine(run, ranks)
    batch = data.batch(1)[0]
    data.close()
    engine.model.train()
    engine.forward_backward([MicroBatch(batch, LayerPath.full(8))], scale=1.0)  # what others make once is made before the break
    monkeypatch.setattr(layer.torch, "tensor", lambda value, **_: value)
    for scale in (1.0, 1.25, 1.5):
        engine.forward_backward([MicroBatch(batch, LayerPath((True,) * 8, (scale,) * 8))], scale=1.0)
    assert graphs["layers"] > 1


def test_compiled_is_the_default_on_gpus_alone(project):
    recipe = project.run().recipe
    assert recipe.compiles(on_gpu=True) and not recipe.compiles(on_gpu=False)
    assert recipe.model.uses_flex(on_gpu=True) and not recipe.model.uses_flex(on_gpu=False)
    assert not project.run("compile=none").recipe.compiles(on_gpu=True)


def test_a_resume_may_not_change_it_in_silence(project):
    assert project.run("compile=layers").identity() != project.run().identity()
    assert "recipe.compile" not in project.run().identity(), "older checkpoints do not know it"
