"""What `plan` says a step sends; tests/system/test_lazy.py counts what is sent."""

from collections import Counter

import pytest

from pretrain.engine import build_engine
from pretrain.plan.memory import layer_parameters, parameters, unit_parameters
from pretrain.plan.wire import active_in_micro_batch, active_layers, traffic

BLOCK = "ds.progressive_subnetwork"


def test_sums_and_gathers_follow_the_layers_of_each_stage(project):
    run = project.run(f"{BLOCK}.paths_per_step=1", "ds.bf16.enabled=true", world_size=2)
    layer, outside = layer_parameters(run), parameters(run, 0) - 8 * layer_parameters(run)
    assert [active_layers(run, stage) for stage in run.method.stages] == [4, 6, 8]
    for stage, active in zip(run.method.stages, (4, 6, 8)):
        sent = traffic(run, stage)
        assert (sent.sums, sent.gathers) == (active * layer * 4 / 2, active * layer * 2 / 2)
        assert (sent.outside_sums, sent.outside_gathers) == (outside * 4 / 2, outside * 2 / 2)


def test_several_paths_use_more_layers_together(project):
    def used(paths: int) -> float:
        run = project.run(f"{BLOCK}.paths_per_step={paths}", "ds.train_batch_size=16", "steps=600", world_size=2)
        return active_layers(run, run.method.stages[0]) / 8

    one, two, eight = used(1), used(2), used(8)
    assert one == 0.5 and 0.6 < two < 0.8 and eight > 0.95  # 0.70 and 0.99 of 12 layers


@pytest.mark.parametrize(
    "settings, factor",
    [(["ds.zero_optimization.reduce_scatter=false"], 2), (["ds.communication_data_type=bf16"], 0.5), ([], 1)],
)
def test_keys_of_the_json_change_the_sums(project, settings, factor):
    plain, other = project.run(world_size=4), project.run(*settings, world_size=4)
    stage = plain.method.stages[0]
    assert traffic(other, stage).sums == factor * traffic(plain, stage).sums
    assert traffic(other, stage).gathers == traffic(plain, stage).gathers


def test_stage_0_sends_all_layers_always(project):
    run = project.run("ds.zero_optimization.stage=0", f"{BLOCK}.paths_per_step=1", world_size=2)
    first, last = (traffic(run, stage) for stage in (run.method.stages[0], run.method.stages[-1]))
    assert first == last and first.gathers == 0 and first.total == 2 * parameters(run, 0) * 4 / 2


def test_stage_3_sends_in_every_micro_batch(project):
    run = project.run("ds.zero_optimization.stage=3", "ds.bf16.enabled=true", f"{BLOCK}.paths_per_step=1", world_size=2)
    layer, micro_batches = layer_parameters(run), run.micro_batches
    for stage, active in zip(run.method.stages, (4, 6, 8)):
        sent = traffic(run, stage)
        assert micro_batches == 2
        assert sent.sums == micro_batches * active * layer * 4 / 2
        assert sent.gathers == micro_batches * 2 * active * layer * 2 / 2


def test_stage_3_sends_what_some_replica_runs_in_a_micro_batch(project):
    """Of four paths two replicas take two in each of two micro-batches; of two paths one."""

    def used(paths: int) -> float:
        settings = (f"{BLOCK}.paths_per_step={paths}", "ds.train_batch_size=8", "steps=600", "ds.zero_optimization.stage=3")
        run = project.run(*settings, world_size=2)
        return active_in_micro_batch(run, run.method.stages[0])

    assert used(2) == 4 and 4.5 < used(4) < 7


def test_micro_batches_that_take_the_same_paths_count_each(project):
    """Ten samples on two paths: of five micro-batches two take the first path, two the second, one in the middle both."""
    settings = (f"{BLOCK}.paths_per_step=2", "ds.train_batch_size=10", "ds.train_micro_batch_size_per_gpu=1", "steps=600")
    run = project.run(*settings, "ds.zero_optimization.stage=3", world_size=2)
    stage = run.method.stages[0]
    assert active_in_micro_batch(run, stage) == pytest.approx((4 * 4 + active_layers(run, stage)) / 5)


PARTS = f"{BLOCK}={{method: raptr_parts, path_lengths: 4-8, group_lengths: 1-4, ffn_lengths: 2-6}}"


@pytest.mark.parametrize(
    "settings", [(), ("model.biases=true", "model.feed_forward=gelu"), ("model.biases=qkv", "model.qk_norm=true")]
)
def test_parts_of_layers_have_the_parameters_that_the_optimizer_has_of_them(project, ranks, settings):
    run = project.run(PARTS, *settings)
    found = Counter()
    for group in build_engine(run, ranks).optimizer.groups:
        if group.unit is not None:
            found[group.unit] += sum(parameter.numel() for parameter in group.members.values())
    own, of_heads, of_columns = unit_parameters(run)
    assert [found[unit] for unit in range(1 + 4 + 6)] == [own, *[of_heads] * 4, *[of_columns] * 6]


def test_what_parts_send_follows_the_parts_that_run(project):
    """A quarter of the heads and a third of the columns of half the layers, and all of the last stage."""
    run = project.run(PARTS, world_size=2)
    own, of_heads, of_columns = unit_parameters(run)
    first, last = (traffic(run, stage).sums for stage in run.method.stages)
    assert first == pytest.approx(4 * (own + of_heads + 2 * of_columns) * 4 / 2)
    assert last == pytest.approx(8 * layer_parameters(run) * 4 / 2)
