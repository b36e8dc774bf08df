"""What `plan` says a step sends; tests/system/test_lazy.py counts what is sent."""

import pytest

from pretrain.plan.memory import layer_parameters, parameters
from pretrain.plan.wire import active_layers, traffic

BLOCK = "ds.progressive_subnetwork"


def test_sums_and_gathers_follow_the_layers_of_each_stage(project):
    run = project.run(f"{BLOCK}.paths_per_step=1", "ds.bf16.enabled=true", world_size=2)
    layer, outside = layer_parameters(run), parameters(run, 0) - 8 * layer_parameters(run)
    assert [active_layers(run, stage) for stage in run.method.stages] == [4, 6, 8]
    for stage, active in zip(run.method.stages, (4, 6, 8)):
        sent = traffic(run, stage)
        assert (sent.sums, sent.gathers) == ((outside + active * layer) * 4 / 2, (outside + active * layer) * 2 / 2)


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


def test_stages_0_and_3_send_all_layers_always(project):
    for zero in (0, 3):
        run = project.run(f"ds.zero_optimization.stage={zero}", f"{BLOCK}.paths_per_step=1", world_size=2)
        first, last = (traffic(run, stage) for stage in (run.method.stages[0], run.method.stages[-1]))
        assert first.gathers == last.gathers and (zero == 3) == (first.sums < last.sums)
