"""Layers compiled: one graph, whatever the path, the scale and the stage of a run; here without generated code, which
test_compiled.py has.
"""

from functools import cache

import pytest
import torch

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.engine.micro_batch import MicroBatch
from pretrain.model import cross_entropy, decoder, layer
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

    @cache
    def compiled(function):
        return torch.compile(function, fullgraph=True, dynamic=False, backend=counting("layers"))

    def compiled_kernels():
        return cross_entropy.Kernels(
            *(torch.compile(f, fullgraph=True, backend=counting("loss")) for f in vars(cross_entropy.Kernels()).values())
        )

    monkeypatch.setattr(layer, "compiled", compiled)
    monkeypatch.setattr(decoder, "compiled_kernels", compiled_kernels)
    yield counted
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


def test_parts_of_layers_have_a_graph_for_each_number_of_them(project, ranks, graphs):
    """Which blocks run is no constant of a graph: what changes from stage to stage is how many."""
    parts = "ds.progressive_subnetwork={method: raptr_parts, path_lengths: 6-7-8, group_lengths: 1-2-4, ffn_lengths: 2-4-6}"
    expected = losses(project.run("steps=9", parts, "compile=none"), ranks, 9)
    assert losses(project.run("steps=9", parts, "compile=layers"), ranks, 9) == pytest.approx(expected, rel=1e-6)
    assert graphs["layers"] == 3 + 1, "three stages with gradients, and all without"


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
