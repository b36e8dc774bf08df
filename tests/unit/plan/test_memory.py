"""What `plan` counts against what PyTorch keeps, and peak speeds against the chips' own arithmetic."""

import pytest

from pretrain.config.read import parse_run, read_run
from pretrain.cost.flops import savings
from pretrain.cost.makespan import ideal_pipeline_ratio
from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.engine.micro_batch import MicroBatch
from pretrain.optim import fully_sharded, layerwise
from pretrain.plan.balance import spread
from pretrain.plan.cost import Cluster, hours, speed, suggest
from pretrain.plan.hardware import GPUS
from pretrain.plan.memory import layer_activations, layer_parameters, parameters, rank_memory
from pretrain.subnetwork import LayerPath
from tests.support.live_bytes import LiveBytes


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize(
    "shape",
    [
        (),
        ("model.feed_forward=gelu",),
        ("model.num_query_groups=2", "model.head_dim=48"),
        ("model.num_query_groups=1", "model.qk_norm=true", "model.biases=qkv"),
        ("model.num_query_groups=2", "model.qk_norm=whole", "model.norm_placement=after"),
    ],
    ids=" ".join,
)
def test_activations_of_a_layer_are_those_that_live_until_its_backward_pass(project, ranks, recompute, shape):
    sizes = ("model.hidden_size=128", "model.ffn_hidden_size=384", "model.vocab_size=600")
    run = project.run(*sizes, *shape, f"model.recompute={recompute}")
    data, engine = open_data(run), build_engine(run, ranks)
    batch = data.batch(1)[0]
    data.close()

    engine.model.train()

    def alive_after_forward(active: int) -> int:
        path, found = LayerPath(tuple(layer < active for layer in range(8)), (1.0,) * 8), []
        with LiveBytes() as live:
            hook = engine.model.chunks[0].register_forward_hook(lambda *_: found.append(live.now))
            engine.forward_backward([MicroBatch(batch, path)], scale=1.0)
        hook.remove()
        engine.model.zero_grad()
        return found[0]

    measured = (alive_after_forward(5) - alive_after_forward(2)) / 3
    assert layer_activations(run) * 4 == pytest.approx(measured, rel=0.1)


def test_parameters_of_one_process_are_the_models(project, ranks):
    for settings in (
        ("model.tied_embeddings=true",),
        ("model.tied_embeddings=false",),
        ("model.num_query_groups=2", "model.head_dim=12", "model.qk_norm=true", "model.biases=qkv"),
        ("model.num_query_groups=2", "model.qk_norm=whole", "model.norm_placement=after"),
    ):
        run = project.run(*settings)
        assert parameters(run, 0) == sum(p.numel() for p in build_engine(run, ranks).model.parameters())


def test_sharding_divides_what_it_shards(project):
    sizes = {}
    for stage in range(4):
        sizes[stage] = rank_memory(project.run(f"ds.zero_optimization.stage={stage}", world_size=2), 0)
    n = sizes[0].parameters
    assert [s.weights / n for s in sizes.values()][:3] == [4, 4, 4] and sizes[3].weights < 2 * n
    assert [s.gradients / n for s in sizes.values()][:3] == [4, 4, 4], "stage 2 sums once a step, and has two micro-batches here"
    assert sizes[3].gradients < 3.5 * n
    assert [s.optimizer / n for s in sizes.values()] == [8, 6, 6, 6]
    assert len(sizes[1].activations) == 3 and sizes[1].activations == tuple(sorted(sizes[1].activations)), "by stage"


@pytest.mark.parametrize(
    "name, units, clock, bf16, fp32",
    [
        ("a100-80gb", 108, 1.410e9, 2048, 128),  # NVIDIA A100 white paper, table 1: per SM and clock
        ("h100", 132, (1.830e9, 1.980e9), 4096, 256),  # NVIDIA H100 white paper: tensor cores run at a lower clock
        ("mi300x", 304, 2.100e9, 2048, 256),  # AMD CDNA 3 white paper, per compute unit
    ],
)
def test_peaks_are_units_times_clock_times_operations(name, units, clock, bf16, fp32):
    tensor, plain = clock if isinstance(clock, tuple) else (clock, clock)
    assert GPUS[name].bf16_tflops == pytest.approx(units * tensor * bf16 / 1e12, rel=0.01)
    assert GPUS[name].fp32_tflops == pytest.approx(units * plain * fp32 / 1e12, rel=0.01)


def test_hours_are_operations_over_speed():
    run = read_run("ul2_1.6b", [], None, 32)
    full, paths = hours(run, Cluster(4, 8, "h100", 0.5))
    tokens = 200_000 * 512 * 2048
    rough = 6 * 1.6e9 * tokens / (32 * 989e12 * 0.5) / 3600
    assert full == pytest.approx(rough, rel=0.2)
    assert paths / full == pytest.approx(savings(run.method, run.recipe.shape).model_flops)


def test_pipelines_save_less_than_one_rank_and_suggestions_prefer_what_fits():
    one = read_run("ul2_1.6b", [], None, 32)
    four = read_run("ul2_1.6b", [("--parallel.pipeline", "4")], None, 32)
    assert speed(four).ratio > speed(one).ratio and speed(one).bubble == pytest.approx(0)
    found = suggest(one, Cluster(4, 8))
    fits = [s.fits for s in found]
    assert fits == sorted(fits, reverse=True) and found[0].run.recipe.parallel.model_ranks == 1
    assert all(s.run.world_size == 32 for s in found)


def test_suggestions_know_nodes_of_any_size_and_zero_stages_that_exclude_pipelines():
    settings = [("--ds.train_batch_size", "576"), ("--parallel.tensor", "4")]  # 18 GPUs cannot hold replicas of 4
    run = parse_run("ul2_1.6b", settings, None, 18)
    layouts = {(s.run.recipe.parallel.tensor, s.run.recipe.parallel.pipeline) for s in suggest(run, Cluster(3, 6))}
    assert {(1, 1), (2, 1), (2, 3), (1, 3)} <= layouts and not any(6 % tensor for tensor, _ in layouts)
    sharded = suggest(read_run("ul2_1.6b", [("--ds.zero_optimization.stage", "2")], None, 32), Cluster(4, 8))
    assert {s.run.recipe.parallel.tensor for s in sharded} >= {1, 2} and any(s.run.recipe.parallel.pipeline > 1 for s in sharded)
    sharded = suggest(read_run("ul2_1.6b", [("--ds.zero_optimization.stage", "3")], None, 32), Cluster(4, 8))
    assert all(s.run.recipe.parallel.pipeline == 1 for s in sharded)
    assert all(s.run.recipe.parallel.sequence for s in suggest(run, Cluster(3, 6)) if s.run.recipe.parallel.tensor > 1)


def test_balance_and_speed_are_those_of_the_paths_that_are_drawn(project):
    """Against all paths of all steps, each with its own makespan."""

    def true_and_planned(*settings: str) -> tuple[float, float, float]:
        run = project.run(
            "parallel.pipeline=4", "steps=600", "ds.progressive_subnetwork.paths_per_step=1", *settings, world_size=4
        )
        layers = run.recipe.model.num_layers
        ratios = []
        for step in range(1, run.steps + 1):
            active = run.method.paths(step)[0].active
            each = [sum(active[part * layers // 4 : (part + 1) * layers // 4]) for part in range(4)]
            ratios.append(ideal_pipeline_ratio(run.recipe.shape, each, 4, 1, run.micro_batches))
        return sum(ratios) / len(ratios), speed(run).ratio, max(spread(run, stage).busiest(4) for stage in run.method.stages)

    exact = true_and_planned("ds.progressive_subnetwork.sampler=exact")
    balanced = true_and_planned(
        *(f"ds.progressive_subnetwork.{s}" for s in ("balance_groups=4", "path_lengths=4-8", "fixed_layers=[]"))
    )
    for true, planned, _ in (exact, balanced):
        assert planned == pytest.approx(true, rel=0.03)
    assert balanced[2] == 1 and exact[2] > 1.1


def test_activations_are_those_of_the_path_that_gives_a_rank_the_most(project):
    def most(*settings: str) -> list[int]:
        run = project.run("parallel.pipeline=2", "steps=600", *settings, world_size=2)
        return [max(spread(run, stage).of_rank(0, 2)) for stage in run.method.stages]

    assert most() == [2, 3, 4]
    assert most("ds.progressive_subnetwork.sampler=exact")[0] > 2


def test_buffers_are_what_is_copied_to_be_sent(project):
    def memory(*settings: str):
        return rank_memory(project.run(*settings, world_size=2), 0)

    bucket, stage = "ds.zero_optimization.reduce_bucket_size=1000", "ds.zero_optimization.stage={}".format
    none, one = memory(stage(0)), memory(stage(1))
    assert none.buffers == none.parameters * 4, "no bucket is larger than the model"
    assert none.total == none.weights + none.gradients + none.optimizer + max(*none.activations, none.buffers)
    assert one.buffers == 0, "each group is sent as it lies there"
    own_part = one.parameters * 4 / 2
    assert memory(stage(1), bucket).buffers == one.parameters * 4 + own_part, "cut, all of it is copied, and on its way at once"
    assert memory("ds.communication_data_type=bf16").buffers == one.parameters * 2 + own_part
    assert memory("ds.zero_optimization.allgather_bucket_size=1000").buffers == one.parameters * 4
    layer = layer_parameters(project.run())
    outside = one.parameters - 8 * layer
    assert memory(stage(3), bucket).buffers == 4 * max(layer, outside), "a layer's, before the next one's"
    assert memory(stage(3), "ds.zero_optimization.allgather_bucket_size=1000").buffers == fully_sharded.LENT * layer * 4


def test_stage_2_keeps_the_gradients_of_few_layers_where_a_step_is_one_micro_batch(project):
    settings = ("ds.zero_optimization.stage=2", "ds.train_batch_size=4", "ds.progressive_subnetwork.paths_per_step=1")
    memory = [
        rank_memory(project.run(*settings, f"ds.zero_optimization.overlap_comm={o}", world_size=2), 0) for o in ("true", "false")
    ]
    layer = layer_parameters(project.run())
    assert memory[0].gradients - memory[1].gradients == layerwise.ON_THE_WAY * layer * 4
    outside = memory[0].parameters - 8 * layer
    assert memory[1].gradients == memory[1].parameters * 4 / 2 + (layer + outside) * 4


def test_stage_3_has_the_weights_of_two_layers_and_the_gradients_of_one(project):
    one, three = (rank_memory(project.run(f"ds.zero_optimization.stage={n}", world_size=2), 0) for n in (1, 3))
    layer, vectors = layer_parameters(project.run()), 2 * 32
    outside = one.parameters - 8 * layer
    assert three.weights == (outside + 8 * vectors + 2 * (layer - vectors)) * 4
    assert three.gradients == one.parameters * 4 / 2 + (layer + outside) * 4, "whatever the number of micro-batches"
    assert three.optimizer == one.optimizer
