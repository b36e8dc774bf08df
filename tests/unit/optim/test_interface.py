"""What a step runs is known on every rank without a message."""

from pretrain.config.run import Batching
from pretrain.optim.interface import Ran
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.units import Units


def path(*active: int) -> LayerPath:
    return LayerPath.through([layer in active for layer in range(4)])


def test_a_layer_is_last_run_where_any_replica_runs_it():
    """Two replicas of four micro-batches: 8 samples, of which the first half takes the first path."""
    batching = Batching(batch_size=8, micro_batch_size=1, replicas=2)
    ran = Ran.of([path(0, 1), path(0, 3)], Units(4), batching, replica=0)
    assert (ran.last_micro_batch, ran.here, ran.units) == ((3, 1, None, 3), (4, 2, 0, 2), (0, 1, 3))


def test_one_path_runs_in_every_micro_batch():
    ran = Ran.of([path(1, 2)], Units(4), Batching(4, 1, 1), replica=0)
    assert (ran.last_micro_batch, ran.here) == ((None, 3, 3, None), (0, 4, 4, 0))


def test_it_is_what_the_micro_batches_say(project):
    run = project.run("ds.progressive_subnetwork.paths_per_step=4", "ds.train_micro_batch_size_per_gpu=1", world_size=2)
    for step in (1, 9, 17):
        paths = run.method.paths(step)
        last, here = [None] * 8, ([0] * 8, [0] * 8)
        for micro_batch in range(run.micro_batches):
            for replica in range(2):
                taken = paths[run.path_index(micro_batch, replica, len(paths))]
                last = [micro_batch if active else before for active, before in zip(taken.active, last)]
                for layer in range(8):
                    here[replica][layer] += taken.active[layer]
        for replica in range(2):
            ran = Ran.of(paths, run.method.units, run.batching, replica)
            assert (ran.last_micro_batch, ran.here) == (tuple(last), tuple(here[replica]))
