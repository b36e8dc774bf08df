"""Tasks that are scored while a run trains, for a share of its operations."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.config.run import Run
from pretrain.data.batch import Batch
from pretrain.engine import Engine
from pretrain.errors import UserError
from pretrain.evaluate.catalogue import FromData, Task, catalogue, choose
from pretrain.evaluate.measure import Asking, Posed, as_trained, measure
from pretrain.results import TaskMean
from pretrain.subnetwork import LayerPath
from tokenizer.pieces import Tokenizer

BACKWARD = 2
"""Operations of a backward pass, in forwards: a step takes three times what scoring its samples would."""


@dataclass(frozen=True)
class TasksInTraining:
    """What a run is asked, made ready once."""

    posed: Mapping[str, tuple[Task, Sequence[Posed]]]
    both_ways: bool
    length: int
    """Positions of a sample."""

    @classmethod
    def open(cls, run: Run, tokenizer: Tokenizer) -> "TasksInTraining":
        """Format documents, as many of each task as the run's share of operations allows; none if no tasks are asked for.

        Raises:
            UserError: a task or its data is missing, or the share is too small for one document.
        """
        recipe, length = run.recipe, run.recipe.data.sequence_length
        if not recipe.eval_tasks:
            return cls({}, False, length)
        if recipe.data.objective == "mlm":
            raise UserError(f"recipe {run.name}: eval_tasks: a model that fills in masks gives no likelihood of a continuation")
        folder = None if recipe.eval_tasks_data is None else Path(recipe.eval_tasks_data)
        known = catalogue(run, folder, f"recipe {run.name}: eval_tasks_data")
        tasks = [
            task for task in choose(recipe.eval_tasks, known, folder, f"recipe {run.name}: eval_tasks") if not _is_written(task)
        ]
        if not tasks:
            raise UserError(
                f"recipe {run.name}: eval_tasks {' '.join(recipe.eval_tasks)}: nothing of it can be scored in training"
            )
        attention, mode = as_trained(recipe.data)
        asking = Asking(None, 1, 0, attention, mode)
        positions = _positions(run) // len(tasks)
        posed = {}
        for task in tasks:
            assert task.questions is not None, "chosen tasks have data"
            found, skipped = task.questions.posed(asking, tokenizer, length)
            posed[task.name] = (task, _within(found, positions))
            if not posed[task.name][1]:
                why = f"all {skipped} documents are too long" if not found else "eval_tasks_share is too small for a document"
                raise UserError(f"recipe {run.name}: eval_tasks: {task.name}: {why}")
        return cls(posed, attention == "prefix", length)

    def measure(self, engine: Engine, path: LayerPath) -> tuple[dict[str, dict[str, TaskMean]], float]:
        """Score all tasks through a path, on all ranks; returns metrics by task, the quoted one first, and seconds."""
        begin, found = time.perf_counter(), {}
        for name, (task, posed) in self.posed.items():
            # Contexts are not shared: samples are then as training's are, and nothing is compiled or allocated for them alone.
            outcome = measure(_Through(engine, path, self.length), posed, 0, self.both_ways, task.average, shares=False)
            names = sorted(outcome.values, key=lambda metric: metric != task.metric)
            means = {metric: outcome.metric(metric) for metric in names}
            found[name] = {metric: TaskMean(mean.mean, mean.error) for metric, mean in means.items()}
        return found, time.perf_counter() - begin


@dataclass(frozen=True)
class _Through:
    """An engine that scores through a path: a growing model has not all of its layers yet."""

    engine: Engine
    path: LayerPath
    length: int

    @property
    def sample_lengths(self) -> list[int]:
        return [self.length]

    def score(self, samples: Batch) -> tuple[np.ndarray, np.ndarray]:
        return self.engine.score(samples, self.path)


def _is_written(task: Task) -> bool:
    return isinstance(task.questions, FromData) and task.questions.are_written


def _positions(run: Run) -> int:
    """Return how many positions may be scored at a time."""
    steps = run.recipe.eval_tasks_every or run.steps
    return int(run.recipe.eval_tasks_share * (1 + BACKWARD) * steps * run.tokens_per_step)


def _within(posed: Sequence[Posed], positions: int) -> Sequence[Posed]:
    """Return the first documents, spread evenly, that take so many positions together at most."""
    taken = np.cumsum([sum(request.positions for request in one.requests) for one in posed])
    count = int(np.searchsorted(taken, positions, side="right"))
    if count >= len(posed):
        return posed
    spread = [posed[index * len(posed) // count] for index in range(count)] if count else []
    while spread and sum(request.positions for one in spread for request in one.requests) > positions:
        spread.pop()
    return spread
