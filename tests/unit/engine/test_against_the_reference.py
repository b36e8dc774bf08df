"""The engine trains as the plainest reference does, and no way of breaking it stays unnoticed."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pretrain.data.loader import open_data
from pretrain.engine import Engine, build_engine
from pretrain.model.layer import SkippableLayer
from pretrain.subnetwork import path_of_sample
from tests.support.project import BERT, CLIPPING
from tests.support.reference import Reference, cosine
from tests.support.weights import weights_of

STEPS = 10
TOLERANCE = 1e-4


def train_both(run, ranks, shift_path: int = 0):
    """Losses and norms of both over STEPS steps, and the largest difference of a weight at the end."""
    data = open_data(run)
    engine = build_engine(run, ranks)
    model = run.recipe.model
    frequencies, sharpness = None, 1.0
    if (scaling := model.rope_scaling) is not None:  # as transformers works them out
        yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": scaling.factor}
        yarn["original_max_position_embeddings"] = scaling.original_length
        length = int(scaling.factor * scaling.original_length)
        config = LlamaConfig(
            num_attention_heads=1, hidden_size=model.head_size, max_position_embeddings=length, rope_parameters=yarn
        )
        frequencies, sharpness = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    reference = Reference(
        weights_of(engine.model), model.num_layers, model.num_attention_heads, model.vocab_size, model.norm_epsilon,
        groups=model.groups, head_size=model.head_size, embedding_scale=model.embedding_scale, softcap=model.logit_softcap,
        z_loss=model.z_loss, frequencies=frequencies, sharpness=sharpness, gelu=model.feed_forward == "gelu", clipping=CLIPPING,
        stand_still=run.ds.progressive_subnetwork.skipped_update == "none",
    )  # fmt: skip
    ours, theirs, uneven = [], [], run.recipe.data.objective == "causal"
    for step in range(1, STEPS + 1):
        batches = data.batch(step)
        uneven |= len({int(batch.targets.sum()) for batch in batches}) > 1
        paths = run.method.paths(step)
        per_batch = [paths[path_of_sample(index * run.micro_batch, run.batch, len(paths))] for index in range(run.micro_batches)]
        result = engine.step(step, batches, run.method.paths(step + shift_path))
        lr = cosine(step, run.steps, 4, 1e-3, 0.1)
        assert result.lr == pytest.approx(lr)
        ours.append((result.loss, result.grad_norm))
        theirs.append(reference.step(batches, per_batch, lr))
    data.close()
    engine.optimizer.settle()
    assert uneven, "target counts must differ between micro-batches, or the test shows nothing"
    weights = max(float((w - reference.weights[name].detach()).abs().max()) for name, w in weights_of(engine.model).items())
    return torch.tensor(ours), torch.tensor(theirs), weights


def assert_parity(ours, theirs, weights) -> None:
    assert (ours[:, 0] - theirs[:, 0]).abs().max() < TOLERANCE
    assert ((ours[:, 1] - theirs[:, 1]) / theirs[:, 1]).abs().max() < TOLERANCE
    assert theirs[:, 1].min() > CLIPPING, "clipping must act, or the test does not cover it"
    assert weights < TOLERANCE


YARN = "model.rope_scaling={type: yarn, factor: 4.0, original_length: 16}"
HEADS = ("ds.progressive_subnetwork={method: raptr_heads, group_lengths: 1-2, paths_per_step: 2, skipped_update: exact}",)
FFN = (
    "ds.progressive_subnetwork={method: raptr_ffn, ffn_lengths: 2-4-6, width_parts: 2, width_fixed: 1, skipped_update: exact}",
)
PARTS = (
    "ds.progressive_subnetwork={method: raptr_parts, path_lengths: 4-6-8, group_lengths: 2-2-4, ffn_lengths: 3-5-6,"
    " skipped_update: exact, paths_per_step: 2}",
)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.recompute=layer",),
        ("model.tied_embeddings=false", "ds.progressive_subnetwork.residual_scale=1/keep"),
        ("ds.zero_optimization.stage=0", "ds.progressive_subnetwork.residual_scale=1/sqrt(keep)", "model.recompute=layer"),
        ("ds.progressive_subnetwork.method=full",),
        ("data.objective=causal",),
        ("ds.progressive_subnetwork.skipped_update=none", "ds.progressive_subnetwork.paths_per_step=1"),
        ("ds.zero_optimization.stage=2", "ds.zero_optimization.overlap_comm=true", "ds.progressive_subnetwork.paths_per_step=1"),
        ("data.denoisers=60-20-20",),
        ("model.num_query_groups=2", "model.head_dim=12", "model.qk_norm=true", "model.recompute=selective"),
        ("model.num_query_groups=2", "model.head_dim=12", "model.qk_norm=true", YARN),
        ("model.norm_placement=after", "model.qk_norm=whole", "model.num_query_groups=2", "model.head_dim=12"),
        ("model.norm_placement=after", "model.biases=true", "ds.progressive_subnetwork.residual_scale=1/keep"),
        ("model.num_query_groups=2", "model.qk_norm=true", "model.biases=qkv", *HEADS),
        ("model.biases=true", "model.recompute=layer", *PARTS),
        ("model.feed_forward=gelu", "model.recompute=selective", *FFN),
        ("model.biases=true", *PARTS, "ds.progressive_subnetwork.skipped_update=none"),
        ("model.feed_forward=gelu", *FFN, "ds.progressive_subnetwork.skipped_update=none"),
        ("ds.zero_optimization.stage=0", "model.num_query_groups=2", *HEADS),
        ("model.z_loss=0.01", "model.logit_softcap=1.5", "model.embedding_scale=4.0"),
        ("model.num_query_groups=1", "model.biases=qkv", "ds.zero_optimization.stage=0"),
        tuple(f"{key}={value}" for key, value in BERT.items()),
        (
            *(f"{key}={value}" for key, value in BERT.items()),
            "data.whole_words=true",
            "model.recompute=layer",
            "ds.zero_optimization.stage=0",
        ),
    ],
)
def test_training_equals_the_plain_reference(project, ranks, settings):
    assert_parity(*train_both(project.run(*settings), ranks))


def assert_noticed(ours, theirs, weights) -> None:
    """Both trained, and to something clearly else."""
    assert torch.isfinite(ours).all() and torch.isfinite(theirs).all()
    assert max(float((ours - theirs).abs().max()), weights) > 10 * TOLERANCE


def test_a_path_shifted_by_one_step_is_noticed(project, ranks):
    assert_noticed(*train_both(project.run(), ranks, shift_path=1))


def test_a_scale_left_out_is_noticed(project, ranks, monkeypatch):
    run = project.run("ds.progressive_subnetwork.residual_scale=1/keep")
    compute = SkippableLayer.compute
    monkeypatch.setattr(SkippableLayer, "compute", lambda self, x, mask, scale, attention: compute(self, x, mask, 1.0, attention))
    assert_noticed(*train_both(run, ranks))


def test_a_mean_of_micro_batch_means_is_noticed(project, ranks, monkeypatch):
    """The engine divides each micro-batch by its own number of targets."""
    forward_backward = Engine.forward_backward

    def mean_of_means(self, micro_batches, scale, forward_only=False):
        parts = []
        for micro in micro_batches:
            targets = int(micro.batch.targets.sum())
            parts += forward_backward(self, [micro], 1 / (targets * len(micro_batches)), forward_only)
        return parts

    monkeypatch.setattr(Engine, "forward_backward", mean_of_means)
    assert_noticed(*train_both(project.run(), ranks))
