"""What a step sends between replicas, from the layers that the run's own paths will use. docs/communication.md says when."""

from dataclasses import dataclass

from pretrain.config import Run
from pretrain.plan.balance import some_steps
from pretrain.plan.memory import FP32, layer_parameters, parameters
from pretrain.subnetwork.schedule import Stage


@dataclass(frozen=True)
class Traffic:
    """Bytes that one GPU sends in a step to other replicas, in a ring: the most that a pipeline rank has to send."""

    sums: float
    """Gradients, to be summed."""
    gathers: float
    """New weights, to all replicas."""

    @property
    def total(self) -> float:
        return self.sums + self.gathers


def active_layers(run: Run, stage: Stage) -> float:
    """Return how many layers a step of the stage uses in all its paths together, mean over some steps."""
    steps = list(some_steps(stage))
    used = (
        sum(any(path.active[layer] for path in run.method.paths(step)) for layer in range(run.recipe.model.num_layers))
        for step in steps
    )
    return sum(used) / len(steps)


def traffic(run: Run, stage: Stage) -> Traffic:
    """Return what a step of the stage sends.

    Stage 0 all-reduces all gradients, and stage 3 gathers all weights twice, whatever a step runs.
    """
    replicas, zero, layers = run.data_parallel, run.ds.zero_optimization, run.recipe.model.num_layers
    weight = 2 if run.ds.bf16.enabled else FP32
    own, layer = layers // run.recipe.parallel.pipeline, layer_parameters(run)
    everything = max(parameters(run, rank) for rank in range(run.recipe.parallel.pipeline))
    active = everything - own * layer + own * layer * active_layers(run, stage) / layers
    once = (replicas - 1) / replicas
    if zero.stage == 0:
        return Traffic(2 * once * everything * FP32, 0.0)
    if zero.stage == 3:
        return Traffic(once * active * weight * run.micro_batches, once * 2 * everything * weight)
    sent = 2 if run.ds.communication_data_type == "bf16" else FP32
    return Traffic((1 if zero.reduce_scatter else 2) * once * active * sent, once * active * weight)
