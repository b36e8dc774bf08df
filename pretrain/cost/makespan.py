"""How long a pipeline's schedule takes when chunks take as long as their operations: fill, drain and imbalance included.

Simulates Megatron-Core's own orders, 1F1B (arXiv 2104.04473, section 2.2.1) and interleaved 1F1B (section 2.2.2). Communication
is free, so the result is a bound that a perfect machine would reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pretrain.cost.flops import Shape


@dataclass(frozen=True)
class Operation:
    """One chunk's forward or backward pass of one micro-batch."""

    forward: bool
    micro_batch: int
    chunk: int


def orders(ranks: int, chunks: int, micro_batches: int) -> list[list[Operation]]:
    """What each pipeline rank does, in order: warm-up forwards, then one forward one backward, then the rest."""
    total = micro_batches * chunks

    def nth(n: int, forward: bool) -> Operation:
        group, within = divmod(n, ranks * chunks)
        chunk = within // ranks
        return Operation(forward, group * ranks + within % ranks, chunk if forward else chunks - 1 - chunk)

    if chunks == 1:
        nth = lambda n, forward: Operation(forward, n, 0)  # noqa: E731  any number of micro-batches
    result = []
    for rank in range(ranks):
        warm_up = ranks - rank - 1 if chunks == 1 else (ranks - rank - 1) * 2 + (chunks - 1) * ranks
        warm_up = min(warm_up, total)
        order = [nth(n, True) for n in range(warm_up)]
        for n in range(total - warm_up):
            order += [nth(warm_up + n, True), nth(n, False)]
        order += [nth(n, False) for n in range(total - warm_up, total)]
        result.append(order)
    return result


def makespan(costs: Sequence[Sequence[float]], micro_batches: int, backward: float = 2.0) -> float:
    """Time from the first forward to the last backward.

    Args:
        costs: `[rank][chunk]`, time of a forward pass. Chunk c of rank r is part c * ranks + r of the model.
        backward: time of a backward pass, in forwards; 3 when layers are recomputed.
    """
    ranks, chunks = len(costs), len(costs[0])
    todo = [list(reversed(order)) for order in orders(ranks, chunks, micro_batches)]
    done: dict[tuple[bool, int, int], float] = {}
    free = [0.0] * ranks
    while any(todo):
        before = len(done)
        for rank in range(ranks):
            while todo[rank]:
                op = todo[rank][-1]
                part = op.chunk * ranks + rank
                needs = _needs(op, part, ranks * chunks)
                if needs is not None and needs not in done:
                    break
                start = max(free[rank], done.get(needs, 0.0) if needs else 0.0)
                free[rank] = start + costs[rank][op.chunk] * (1.0 if op.forward else backward)
                done[op.forward, op.micro_batch, part] = free[rank]
                todo[rank].pop()
        assert len(done) > before, "the schedule waits for itself"
    return max(free)


def _needs(op: Operation, part: int, parts: int) -> tuple[bool, int, int] | None:
    if op.forward:
        return (True, op.micro_batch, part - 1) if part else None
    return (False, op.micro_batch, part + 1) if part < parts - 1 else (True, op.micro_batch, part)


def active_by_part(active: Sequence[float], parts: int) -> tuple[float, ...]:
    """Active layers of each part of the model, in order, when it is cut into `parts` of equally many layers.

    Args:
        active: of each layer whether it is active, or which share of its operations runs.
    """
    size = len(active) // parts
    return tuple(sum(active[part * size : (part + 1) * size]) for part in range(parts))


def chunk_costs(shape: Shape, ranks: int, chunks: int, active: Sequence[float] | float) -> list[list[float]]:
    """Forward operations a token of each chunk, `[rank][chunk]`.

    Args:
        active: active layers of each part of the model in order, or their number in all, spread evenly.
    """
    parts = ranks * chunks
    each = [active / parts] * parts if isinstance(active, (int, float, Fraction)) else list(active)
    costs = [float(n) * shape.layer() for n in each]
    costs[0] += shape.hidden
    costs[-1] += shape.outside() - shape.hidden
    return [[costs[chunk * ranks + rank] for chunk in range(chunks)] for rank in range(ranks)]


def ideal_pipeline_ratio(
    shape: Shape, active: Sequence[float] | float, ranks: int, chunks: int, micro_batches: int, backward: float = 2.0
) -> float:
    """Ideal step time with `active` layers, as `chunk_costs` takes them, over that with all; one rank gives the ratio of
    operations."""
    few = makespan(chunk_costs(shape, ranks, chunks, active), micro_batches, backward)
    return few / makespan(chunk_costs(shape, ranks, chunks, shape.layers), micro_batches, backward)
