"""What a step sends between replicas, from the layers that the run's own paths will use. docs/communication.md says when."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pretrain.config import Run
from pretrain.plan.balance import some_steps
from pretrain.plan.memory import FP32, layer_parameters, parameters
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
    return _mean_union(run, stage, {range(len(run.method.paths(stage.first_step))): 1})


def active_in_micro_batch(run: Run, stage: Stage) -> float:
    """Return how many layers the replicas together use in one micro-batch, mean over micro-batches and some steps."""
    count = len(run.method.paths(stage.first_step))
    taken = (
        frozenset(run.path_index(micro_batch, replica, count) for replica in range(run.data_parallel))
        for micro_batch in range(run.micro_batches)
    )
    return _mean_union(run, stage, Counter(taken))


def _mean_union(run: Run, stage: Stage, taken: Mapping[Collection[int], int]) -> float:
    """Mean number of layers that paths use together; `taken` says which paths, by their indices, and how often."""
    steps = list(some_steps(stage))
    used = 0
    for step in steps:
        paths = run.method.paths(step)
        for indices, times in taken.items():
            used += times * len({layer for index in indices for layer in paths[index].layers})
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
        passes = once * own * layer * active_in_micro_batch(run, stage) / layers * run.micro_batches
        return Traffic(passes * sent, 2 * passes * weight, outside * sent, outside * weight)
    active = once * own * layer * active_layers(run, stage) / layers
    return Traffic(active * sent, active * weight, outside * sent, outside * weight)
