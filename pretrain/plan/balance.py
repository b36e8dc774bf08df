"""How evenly paths spread over pipeline ranks, from paths as the run will draw them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pretrain.config import Run
from pretrain.cost.flops import Shape
from pretrain.cost.makespan import active_by_part, chunk_costs, makespan
from pretrain.subnetwork.schedule import Stage

STEPS = 24
"""Steps of a stage whose paths are looked at, evenly spaced over it."""


@dataclass(frozen=True)
class Spread:
    """Active layers in some steps of a stage: for each looked-at path, of every part of the model in order."""

    parts: tuple[tuple[float, ...], ...]

    def of_rank(self, rank: int, ranks: int) -> list[float]:
        """Active layers of a pipeline rank, for each path."""
        return [sum(parts[rank::ranks]) for parts in self.parts]

    def busiest(self, ranks: int) -> float:
        """Active layers of the busiest pipeline rank over the mean of all, on average over the paths."""
        ratios = [
            max(sum(parts[rank::ranks]) for rank in range(ranks)) * ranks / sum(parts) for parts in self.parts if sum(parts)
        ]
        return sum(ratios) / len(ratios)


def spread(run: Run, stage: Stage) -> Spread:
    """Look at the first path of each step. With several paths a step, micro-batches even out a part of what is seen here."""
    parts = run.recipe.parallel.pipeline * run.recipe.parallel.virtual
    return Spread(tuple(active_by_part(run.method.paths(step)[0].active, parts) for step in some_steps(stage)))


def some_steps(stage: Stage) -> Iterator[int]:
    """Steps of a stage that stand for all of them."""
    count = min(STEPS, stage.steps)
    return (stage.first_step + index * stage.steps // count for index in range(count))


def stage_time(run: Run, stage: Stage) -> float:
    """Mean time of the schedule of a step of `stage`, in operations a token of one rank, communication free."""
    p, shape = run.recipe.parallel, run.recipe.shape
    paths = [run.method.paths(step)[0] for step in some_steps(stage)]
    return sum(_time(run, active_by_part(shape.shares(path), p.pipeline * p.virtual)) for path in paths) / len(paths)


def full_time(run: Run) -> float:
    """The same with all layers."""
    p = run.recipe.parallel
    parts = p.pipeline * p.virtual
    return _time(run, (run.recipe.model.num_layers // parts,) * parts)


def _time(run: Run, active: tuple[float, ...]) -> float:
    p = run.recipe.parallel
    return _makespan(run.recipe.shape, p.pipeline, p.virtual, active, run.micro_batches, run.backward_cost)


@lru_cache(maxsize=10_000)
def _makespan(shape: Shape, ranks: int, chunks: int, active: tuple[float, ...], micro_batches: int, backward: float) -> float:
    return makespan(chunk_costs(shape, ranks, chunks, active), micro_batches, backward)
