"""Time and money of a run on a cluster, and which layouts are worth a try."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pretrain.config import Run
from pretrain.config.checks import check
from pretrain.cost.flops import savings
from pretrain.cost.makespan import chunk_costs
from pretrain.errors import UserError
from pretrain.plan.balance import full_time, stage_time
from pretrain.plan.hardware import GPUS, Gpu
from pretrain.plan.memory import GIB, rank_memory
from pretrain.plan.roofline import estimated_mfu
from pretrain.progress import bar

USABLE = 0.9
"""Share of a GPU's memory that a plan may fill; the rest is the allocator's, NCCL's and the driver's."""

MOST_CHUNKS = 4
"""Chunks of a pipeline rank that are worth a try: each sends its activations on, which is not counted here."""


@dataclass(frozen=True)
class Cluster:
    """What `plan` knows about the machines."""

    nodes: int
    gpus_per_node: int
    gpu_name: str = "h100"
    given_mfu: float | None = None
    """Share of peak speed that all layers reach, the pipeline's bubble included; None to estimate it."""
    price_per_gpu_hour: float | None = None

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.gpu_name]


@dataclass(frozen=True)
class Speed:
    """Ideal times of a layout: operations and the schedule alone, communication free."""

    ratio: float
    """Step time over the run with paths, over that with all layers."""
    bubble: float
    """Share of the busiest rank's step with all layers in which it waits."""
    busiest: float
    """Share of the replica's operations that its busiest pipeline rank does."""


def speed(run: Run) -> Speed:
    """Work out speed from paths as the run will draw them; on one pipeline rank, where only their mean length matters, from
    that."""
    p, shape = run.recipe.parallel, run.recipe.shape
    full = full_time(run)
    if p.pipeline == 1:
        ratio = savings(run.method, shape).model_flops
    else:
        ratio = sum(stage_time(run, stage) * stage.steps for stage in run.method.stages) / run.steps / full
    busy = [sum(rank) for rank in chunk_costs(shape, p.pipeline, p.virtual, shape.layers)]
    return Speed(ratio, 1 - max(busy) * run.micro_batches * (1 + run.backward_cost) / full, max(busy) / sum(busy))


def mfu(run: Run, cluster: Cluster) -> float:
    """Share of peak speed that a run's steps with all layers reach: as given, or the roofline's, less what a pipeline waits."""
    if cluster.given_mfu is not None:
        return cluster.given_mfu
    pace = speed(run)
    return estimated_mfu(run, cluster.gpu) * (1 - pace.bubble) / (pace.busiest * run.recipe.parallel.pipeline)


def hours(run: Run, cluster: Cluster) -> tuple[float, float]:
    """Hours with all layers in every step, and with the run's method, at the cluster's MFU."""
    operations = run.recipe.shape.training(run.recipe.model.num_layers, run.tokens_per_step * run.steps)
    full = operations / (cluster.gpus * cluster.gpu.tflops(run.ds.bf16.enabled) * 1e12 * mfu(run, cluster)) / 3600
    return full, full * speed(run).ratio


@dataclass(frozen=True)
class Suggestion:
    """A layout that can run."""

    run: Run
    memory_gib: float
    fits: bool
    seconds: float
    """Ideal time of a step with the run's method, on an imagined GPU of one operation a second: only to compare."""


def suggest(run: Run, cluster: Cluster) -> list[Suggestion]:
    """Valid layouts on the cluster, the best first.

    Those that fit come first, then the shortest ideal step; where two are equal, fewer tensor and pipeline ranks and fewer
    chunks, because what is not counted here, communication, is least where the model is split least.
    """
    candidates, found = list(_valid(run, cluster)), []
    with bar("layouts", len(candidates), "layouts") as shown:
        for candidate in candidates:
            found.append(_judge(candidate, cluster))
            shown.add()

    def order(s: Suggestion) -> tuple:
        p = s.run.recipe.parallel
        return not s.fits, round(s.seconds, 3), p.model_ranks, p.tensor, p.virtual

    return sorted(found, key=order)


def fits(memory_gib: float, cluster: Cluster) -> bool:
    """Is there room for it, and for what no plan sees?"""
    return memory_gib <= USABLE * cluster.gpu.memory_gib


def _valid(run: Run, cluster: Cluster) -> Iterator[Run]:
    """Tensor ranks stay within a node, where the links are fast, so their number divides it.

    Sequence parallelism, where it is valid, communicates as much as plain tensor parallelism and keeps less: that alone is tried.
    """
    for tensor in _divisors(cluster.gpus_per_node):
        for pipeline in _divisors(cluster.gpus // tensor):
            for virtual in range(1, MOST_CHUNKS + 1):
                for sequence in (True, False):
                    layout = {"tensor": tensor, "pipeline": pipeline, "virtual": virtual, "sequence": sequence}
                    parallel = run.recipe.parallel.model_copy(update=layout)
                    candidate = replace(run, recipe=run.recipe.model_copy(update={"parallel": parallel}), world_size=cluster.gpus)
                    try:
                        check(candidate)
                    except UserError:
                        continue
                    yield candidate
                    break


def why_not_plain(run: Run) -> str:
    """What speaks against replicas of the whole model on each GPU; only the layout is varied here, never batch, zero stage or
    recomputation."""
    plain = replace(run, recipe=run.recipe.model_copy(update={"parallel": type(run.recipe.parallel)()}))
    try:
        check(plain)
    except UserError as error:
        return str(error)
    return "nothing"


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _judge(run: Run, cluster: Cluster) -> Suggestion:
    p, shape = run.recipe.parallel, run.recipe.shape
    memory = max(rank_memory(run, rank).total for rank in range(p.pipeline)) / GIB
    seconds = full_time(run) * speed(run).ratio * run.micro_batch * run.recipe.data.sequence_length / p.tensor
    normal = shape.training(shape.layers, run.tokens_per_step) / run.world_size
    return Suggestion(run, memory, fits(memory, cluster), seconds / normal)
