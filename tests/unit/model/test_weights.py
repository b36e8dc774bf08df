"""Initial weights follow from (seed, global name)."""

import torch

from pretrain.model.decoder import build_chunks, transformer_config
from pretrain.model.weights import initialize


def weights_of(run):
    chunks = build_chunks(run.recipe, transformer_config(run.recipe, torch.float32, on_gpu=False))
    initialize(chunks, run.recipe)
    return {c.global_name(n): p.detach().clone() for c in chunks for n, p in c.named_parameters()}


def test_weights_depend_on_seed_and_name_alone(project, ranks):
    torch.manual_seed(1)
    first = weights_of(project.run())
    torch.manual_seed(2)
    again, other = weights_of(project.run("model.recompute=layer")), weights_of(project.run("seed=7"))
    assert all(first[name].equal(again[name]) for name in first)
    matrices = [name for name, w in first.items() if w.dim() == 2]
    assert all(not first[name].equal(other[name]) for name in matrices)


def test_a_deeper_model_starts_with_the_same_first_layers(project, ranks):
    shallow = weights_of(project.run("model.num_layers=4", "ds.progressive_subnetwork.path_lengths=4"))
    deep = weights_of(project.run())
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    assert shallow[name].equal(deep[name])


def test_spread_is_as_documented(project, ranks):
    weights = weights_of(project.run("model.hidden_size=128"))
    assert abs(weights["decoder.layers.0.mlp.linear_fc1.weight"].std() / 0.02 - 1) < 0.05
    assert abs(weights["decoder.layers.0.mlp.linear_fc2.weight"].std() / (0.02 / 16**0.5) - 1) < 0.05
    assert weights["decoder.final_layernorm.weight"].equal(torch.ones(128))
