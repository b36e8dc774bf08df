"""How long a step takes when replicas send over links of a known rate, some of it while they compute."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pretrain.config import Run
from pretrain.config.checks import check
from pretrain.cost.flops import expected_cost, savings
from pretrain.errors import UserError
from pretrain.plan.balance import full_time, stage_time
from pretrain.plan.cost import Cluster, mfu, speed
from pretrain.plan.wire import Traffic, traffic
from pretrain.subnetwork.methods import FullKeys
from pretrain.subnetwork.schedule import Stage

GBIT = 1e9 / 8
"""Bytes."""
BENDS_AT = 0.1
"""Share of a run in which links are waited for, from which on its curve is said to bend."""


@dataclass(frozen=True)
class Links:
    """Rates in Gbit/s in one direction."""

    node: float
    """From one node to others, all its network cards together."""
    gpu: float
    """From one GPU to others of its node."""

    def bytes_per_second(self, run: Run, cluster: Cluster) -> float:
        """Return the rate at which the slowest GPU sends to its replicas in a ring.

        Tensor ranks are neighbours, then come replicas. Rings that leave a node share its link.
        """
        tensor, replicas, pipeline = run.recipe.parallel.tensor, run.data_parallel, run.recipe.parallel.pipeline
        leaving = [0] * cluster.nodes
        for stage in range(pipeline):
            for first in range(stage * tensor * replicas, stage * tensor * replicas + tensor):
                nodes = {(first + tensor * replica) // cluster.gpus_per_node for replica in range(replicas)}
                for node in nodes if len(nodes) > 1 else ():
                    leaving[node] += 1
        return min(self.gpu, self.node / max(leaving) if any(leaving) else self.gpu) * GBIT


@dataclass(frozen=True)
class Work:
    """Seconds of one rank's step, nothing sent."""

    seconds: float
    """The whole step."""
    forward: float
    """First micro-batch's forward pass through the rank's active layers, all together."""
    backward: float
    """Last micro-batch's backward pass through them."""
    layers: float
    """How many they are."""
    per_byte: float = 0.0
    """Seconds that sending a byte takes from computing, whatever the link: adding, copying, a network's own code. It shows where
    processors send; NCCL's share of a GPU is left out."""


def step_seconds(work: Work, sent: Traffic, rate: float, micro_batches: int, stage: int, overlaps: bool) -> float:
    """Return the seconds of a step that sends `sent` over a link of `rate` bytes a second, one message after the other.

    Args:
        stage: ZeRO's.
        overlaps: whether sums go while the backward pass goes on.
    """
    if sent.total == 0:
        return work.seconds
    slots = max(1, round(work.layers))
    after = sent.outside_sums / rate + sent.total * work.per_byte
    if stage == 0:
        return work.seconds + sent.total * (1 / rate + work.per_byte)
    if stage == 3:
        return _passes(work, sent, rate, micro_batches, slots, overlaps) + after
    clock = link = sent.outside_gathers / rate  # the embedding is needed first
    for _ in range(slots):
        link += sent.gathers / slots / rate
        clock = max(clock, link) + work.forward / slots
    clock += max(0.0, work.seconds - work.forward - work.backward)
    for _ in range(slots):
        clock += work.backward / slots
        if overlaps:
            link = max(link, clock) + sent.sums / slots / rate
    if not overlaps:
        link = clock + sent.sums / rate
    return max(clock, link) + after


def _passes(work: Work, sent: Traffic, rate: float, micro_batches: int, slots: int, overlaps: bool) -> float:
    """Stage 3: a layer's weights come while the one before computes; its gradients go while the next ones do."""
    gather = sent.gathers / (2 * micro_batches * slots) / rate
    reduce = sent.sums / (micro_batches * slots) / rate
    other = max(0.0, work.seconds / micro_batches - work.forward - work.backward) / 2
    clock = link = sent.outside_gathers / rate
    for _ in range(micro_batches):
        for seconds, sums in ((work.forward / slots, 0.0), (work.backward / slots, reduce)):
            clock += other
            link = arrives = max(link, clock) + gather
            for slot in range(slots):
                began = max(clock, arrives)
                if slot < slots - 1:
                    link = arrives = max(link, clock) + gather
                clock = began + seconds
                if sums:
                    link = max(link, clock) + sums
                    clock = clock if overlaps else link
    return max(clock, link)


@dataclass(frozen=True)
class Pace:
    """Seconds of the steps of one kind."""

    computing: float
    sent: Traffic
    whole: float
    """With what is sent, as far as it is waited for."""


@dataclass(frozen=True)
class Forecast:
    """A run on a cluster with links."""

    full: Pace
    """A step with all layers."""
    stages: tuple[Pace, ...]
    """A step of each stage of the method."""
    share: tuple[float, ...]
    """How large a part of the run's steps each stage has."""

    @property
    def seconds(self) -> float:
        """Mean step of the run."""
        return sum(pace.whole * share for pace, share in zip(self.stages, self.share))

    @property
    def speedup(self) -> float:
        """Over all layers in every step."""
        return self.full.whole / self.seconds

    @property
    def waits(self) -> float:
        """Share of the run's time in which the link is waited for."""
        return 1 - sum(pace.computing * share for pace, share in zip(self.stages, self.share)) / self.seconds


def forecast(run: Run, cluster: Cluster, links: Links) -> Forecast:
    """Work out steps from the run's own paths. The cluster's MFU is that of computing, what replicas send left out."""
    everything = replace(run, ds=run.ds.model_copy(update={"progressive_subnetwork": FullKeys(method="full")}))
    stages = run.method.stages
    return Forecast(
        _pace(everything, everything.method.stages[0], cluster, links),
        tuple(_pace(run, stage, cluster, links) for stage in stages),
        tuple(stage.steps / run.steps for stage in stages),
    )


def _pace(run: Run, stage: Stage, cluster: Cluster, links: Links) -> Pace:
    p, shape = run.recipe.parallel, run.recipe.shape
    tflops = cluster.gpu.tflops(run.ds.bf16.enabled) * 1e12 * mfu(run, cluster)
    passes = 3 / (1 + run.backward_cost)  # an MFU counts no operation twice, and recomputation does
    full = shape.training(shape.layers, run.tokens_per_step) / (cluster.gpus * tflops)
    ratio = savings(run.method, shape, [stage]).model_flops if p.pipeline == 1 else stage_time(run, stage) / full_time(run)
    layers = float(expected_cost(run.method, stage, run.recipe.shape)) / p.pipeline
    forward = passes * layers * shape.layer() * run.micro_batch * run.recipe.data.sequence_length / (p.tensor * tflops)
    work = Work(full * ratio, forward, forward * run.backward_cost, layers)
    sent = traffic(run, stage)
    zero = run.ds.zero_optimization
    whole = step_seconds(work, sent, links.bytes_per_second(run, cluster), run.micro_batches, zero.stage, zero.overlap_comm)
    return Pace(work.seconds, sent, whole)


def scaled(run: Run, cluster: Cluster, most: int) -> Iterator[tuple[Cluster, Run | None]]:
    """The run on one node, two, four and so on to `most` GPUs, its batch as it is; None where it cannot run so.

    With fewer micro-batches a pipeline waits more while it fills and drains: an MFU that was given falls by as much.
    """
    nodes, busy = 1, 1 - speed(run).bubble
    while nodes * cluster.gpus_per_node <= most:
        larger = replace(cluster, nodes=nodes)
        grown = replace(run, world_size=larger.gpus)
        try:
            check(grown)
            given = cluster.given_mfu
            yield replace(larger, given_mfu=given and given * (1 - speed(grown).bubble) / busy), grown
        except UserError:
            yield larger, None
        nodes *= 2
