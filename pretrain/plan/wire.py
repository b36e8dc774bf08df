"""What a step sends between replicas, from the layers that the run's own paths will use. docs/communication.md says when."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pretrain.config import Run
from pretrain.plan.balance import some_steps
from pretrain.plan.memory import FP32, layer_parameters, parameters, unit_parameters
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.schedule import Stage


@dataclass(frozen=True)
class Traffic:
    """Bytes that one GPU sends in a step to other replicas, in a ring: of layers the mean over pipeline ranks, of what is outside
    them the most."""

    sums: float
    """Gradients of layers, to be summed."""
    gathers: float
    """New weights of layers, to all replicas."""
    outside_sums: float
    """Gradients of what is outside layers and runs in every step."""
    outside_gathers: float

    @property
    def total(self) -> float:
        return self.sums + self.gathers + self.outside_sums + self.outside_gathers


def active_layers(run: Run, stage: Stage) -> float:
    """Return how many layers a step of the stage uses in all its paths together, mean over some steps."""
    return _mean_union(run, stage, _whole_steps(run, stage), _layers)


def active_in_micro_batch(run: Run, stage: Stage) -> float:
    """Return how many layers the replicas together use in one micro-batch, mean over micro-batches and some steps."""
    return _mean_union(run, stage, _micro_batches(run, stage), _layers)


Taken = Mapping[Collection[int], int]
"""Which paths of a step are used together, by their indices, and how often."""


def _whole_steps(run: Run, stage: Stage) -> Taken:
    return {range(len(run.method.paths(stage.first_step))): 1}


def _micro_batches(run: Run, stage: Stage) -> Taken:
    count = len(run.method.paths(stage.first_step))
    return Counter(
        frozenset(run.path_index(micro_batch, replica, count) for replica in range(run.data_parallel))
        for micro_batch in range(run.micro_batches)
    )


def _layers(run: Run, paths: Sequence[LayerPath]) -> float:
    """Number of layers that paths use together."""
    return len({layer for path in paths for layer in path.layers})


def _parameters(run: Run, paths: Sequence[LayerPath]) -> float:
    """Parameters on each GPU, if it had all layers, of what paths use together."""
    units, sizes = run.method.units, unit_parameters(run)
    kinds = [0] + [1] * units.groups + [2] * units.columns
    return sum(sizes[kinds[unit % units.in_layer]] for unit in {unit for path in paths for unit in units.of_path(path)})


def _mean_union(run: Run, stage: Stage, taken: Taken, measure: Callable[[Run, Sequence[LayerPath]], float]) -> float:
    """Mean measure of what paths use together."""
    steps = list(some_steps(stage))
    used = 0.0
    for step in steps:
        paths = run.method.paths(step)
        for indices, times in taken.items():
            used += times * measure(run, [paths[index] for index in indices])
    return used / (len(steps) * sum(taken.values()))


def traffic(run: Run, stage: Stage) -> Traffic:
    """Return what a step of the stage sends.

    Stage 0 all-reduces all gradients, whatever a step runs. Stage 3 sums and gathers in each micro-batch.
    """
    replicas, zero, layers = run.data_parallel, run.ds.zero_optimization, run.recipe.model.num_layers
    weight = 2 if run.ds.bf16.enabled else FP32
    own, layer = layers // run.recipe.parallel.pipeline, layer_parameters(run)
    once = (replicas - 1) / replicas
    outside = once * (max(parameters(run, rank) for rank in range(run.recipe.parallel.pipeline)) - own * layer)
    if zero.stage == 0:
        return Traffic(2 * once * own * layer * FP32, 0.0, 2 * outside * FP32, 0.0)
    sent = (2 if run.ds.communication_data_type == "bf16" else FP32) * (1 if zero.reduce_scatter else 2)
    if zero.stage == 3:
        passes = once * own / layers * _mean_union(run, stage, _micro_batches(run, stage), _parameters) * run.micro_batches
        return Traffic(passes * sent, 2 * passes * weight, outside * sent, outside * weight)
    active = once * own / layers * _mean_union(run, stage, _whole_steps(run, stage), _parameters)
    return Traffic(active * sent, active * weight, outside * sent, outside * weight)
