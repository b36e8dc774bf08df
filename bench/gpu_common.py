"""What the parts of bench.gpu share: rows of its page, an engine in this process, a clock."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pretrain.config import read_run

ONE_REPLICA = ["--ds.train_batch_size", "{batch}", "--ds.train_micro_batch_size_per_gpu", "{micro}"]


@dataclass(frozen=True)
class Row:
    """A line of the page."""

    what: str
    value: float | str
    most: float | None = None
    least: float | None = None
    failed: bool = False

    @property
    def good(self) -> bool:
        if isinstance(self.value, str):
            return not self.failed
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def shown(self) -> str:
        return self.value if isinstance(self.value, str) else f"{self.value:.4g}"

    @property
    def wanted(self) -> str:
        bounds = {"at most": self.most, "at least": self.least}
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)


@dataclass(frozen=True)
class Part:
    words: str
    """What it is about, in a sentence of the page."""
    most_seconds: float
    rows: Callable[[str], Iterator[Row]]


def model_sizes(device: str) -> dict[str, tuple[int, int]]:
    """Recipes that are timed, with the samples of a step and of a micro-batch."""
    return {"ul2_124m": (32, 16), "ul2_1.6b": (16, 8)} if device == "cuda" else {"ul2_tiny": (4, 2)}


@contextmanager
def engine_of(recipe: str, device: str, batch: int, micro: int, *options: str, targets: float | None = None) -> Iterator[tuple]:
    """(engine, run, random batches) of a recipe in one process; `targets` as for `random_batch`."""
    from bench.path_speed import random_batch
    from pretrain.config.command_line import option_pairs
    from pretrain.place import find_place
    from pretrain.ranks.launch import join, launch
    from pretrain.ranks.libraries import prepare_libraries

    place = find_place(os.environ)
    os.environ.update(place.environment)
    words = [word.format(batch=batch, micro=micro) for word in ONE_REPLICA]
    run = read_run(recipe, option_pairs([*words, "--ds.progressive_subnetwork.paths_per_step", "1", *options]), None, 1)
    prepare_libraries("cuda" if device == "cuda" else "cpu")
    with tempfile.TemporaryDirectory() as folder, join(device, place, Path(folder)) as ranks, launch(run.recipe, ranks):  # type: ignore[arg-type]
        from pretrain.engine import build_engine

        yield build_engine(run, ranks), run, [random_batch(run, index, targets) for index in range(run.micro_batches)]


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["ended without a word"])[-1][:200].replace("|", "/")


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Median of some calls, after one that does not count."""
    import torch

    times = []
    for _ in range(6):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:])
