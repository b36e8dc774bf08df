"""Do skipped layers buy the time that their operations promise?

    python -m bench.path_speed [--rounds N] [--out DIR] [options of train, as --model.hidden_size 512]
    torchrun --standalone --nproc-per-node 2 -m bench.path_speed --parallel.pipeline 2

Two questions. The forward and backward pass with half the layers, over that with all of them, divided by the
ideal: the ratio of their operations, on a pipeline that of the schedule's makespans; 1 is perfect. On a pipeline also with
uniform paths (sampler exact), to show what balance buys: another path in every round, with an ideal of its own, so that their
mean is reported. And, in one process, a whole step of the engine over a bare loop with the same Megatron-Core schedule and
PyTorch's AdamW: what all the rest costs. Rounds interleave the contestants and change their order, so that the machine's drift
falls on all alike; ratios are taken within a round, and the median over rounds is reported where nothing but noise differs
between them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
import torch.distributed as dist

from bench.arguments import command, positive
from pretrain.config import Run, read_run
from pretrain.config.command_line import option_pairs
from pretrain.cost.makespan import active_by_part, ideal_pipeline_ratio
from pretrain.data.batch import Batch
from pretrain.errors import UserError
from pretrain.place import find_place
from pretrain.ranks.device import device_type
from pretrain.ranks.launch import join, launch
from pretrain.ranks.libraries import prepare_libraries
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath, draw
from pretrain.subnetwork.methods.raptr import Raptr
from pretrain.versions import device_name

HOME = Path(__file__).parent


def main() -> None:
    def work(run: Run, ranks: Ranks, rounds: int, out: Path) -> None:
        result = measure(run, ranks, rounds)
        if ranks.is_main:
            write(result, out)

    start(__doc__, 24, work)


def start(description: str | None, rounds: int, work: Callable[[Run, Ranks, int, Path], None]) -> None:
    """Do the work of a bench on path_speed's recipe, with options of the command line.

    Args:
        rounds: unless others are asked for.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=positive, metavar="N", default=rounds)
    parser.add_argument("--out", type=Path, default=HOME / "results")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    args, rest = parser.parse_known_args()
    place = find_place(os.environ)
    os.environ.update(place.environment)
    try:
        run = read_run(str(HOME / "path_speed.yaml"), option_pairs(rest), str(HOME / "path_speed.json"), place.world_size)
    except UserError as error:
        sys.exit(f"error: {error}")
    prepare_libraries(device_type(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    with join(args.device, place, args.out) as ranks, launch(run.recipe, ranks):
        work(run, ranks, args.rounds, args.out)


@dataclass(frozen=True)
class Result:
    """Facts of the measurement and, for each contestant, seconds of every round."""

    facts: dict[str, object]
    seconds: dict[str, list[float]]
    ideal: float
    """Time of half the layers over that of all, if chunks took as long as their operations."""
    bar: float
    """Largest ratio of measured to ideal that is good enough."""
    uniform_ideal: list[float]
    """The same for the uniform path of every round; empty without pipeline ranks."""

    def ratio(self, over: str, under: str) -> float:
        return median(a / b for a, b in zip(self.seconds[over], self.seconds[under]))

    @property
    def rows(self) -> list[tuple[str, float, float | None]]:
        """(what, measured, bar)"""
        half = self.ratio("half", "all")
        rows = [
            ("forward and backward, half the layers over all", half, None),
            ("the same by operations (ideal)", self.ideal, None),
            ("measured over ideal", half / self.ideal, self.bar),
            ("whole step, half the layers over all", self.ratio("engine half", "engine"), None),
            ("measured over ideal", self.ratio("engine half", "engine") / self.ideal, self.bar),
        ]
        rest = [
            median(a - b for a, b in zip(self.seconds[f"engine{of}"], self.seconds[of.strip() or "all"])) for of in (" half", "")
        ]
        if "half, uniform" not in self.seconds:
            rows.append(("all but forward and backward (optimizer, replicas), half the layers over all", rest[0] / rest[1], 1.0))
        else:
            uniform = [a / b for a, b in zip(self.seconds["half, uniform"], self.seconds["all"])]
            rows.append(("uniform paths (exact), mean over paths: half the layers over all", mean(uniform), None))
            rows.append(("the same by operations (ideal)", mean(self.uniform_ideal), None))
            rows.append(("uniform over balanced paths, measured", mean(uniform) / half, None))
        if "bare" in self.seconds:
            rows.append(("whole step, engine over bare loop, all layers", self.ratio("engine", "bare"), 1.05))
        return rows


def measure(run: Run, ranks: Ranks, rounds: int) -> Result:
    """Time the contestants in interleaved rounds, after two rounds that do not count."""
    from bench.bare_loop import bare_loop
    from pretrain.engine import build_engine
    from pretrain.engine.micro_batch import MicroBatch

    layers, half = run.recipe.model.num_layers, run.method.stages[0].path_length
    layout, engine = run.recipe.parallel, build_engine(run, ranks)
    bare = bare_loop(run, ranks) if ranks.world_size == 1 else None
    assert isinstance(run.method, Raptr)
    uniform = [replace(scheme, sampler="exact") for scheme in run.method.schemes.values()][0]
    batches = [random_batch(run, index) for index in range(run.micro_batches)]
    whole = LayerPath.full(layers)
    drawn: list[int] = []

    def forward_backward(path: LayerPath) -> None:
        engine.forward_backward([MicroBatch(batch, path) for batch in batches], scale=1e-6)

    def contestants() -> dict[str, Callable[[], object]]:
        step = len(drawn) + 1
        drawn.append(step)
        (path,) = run.method.paths(step % run.steps + 1)
        calls: dict[str, Callable[[], object]] = {
            "all": lambda: forward_backward(whole),
            "half": lambda: forward_backward(path),
            "engine": lambda: engine.step(step, batches, [whole]),
            "engine half": lambda: engine.step(step, batches, [path]),
        }
        if layout.pipeline > 1:
            calls["half, uniform"] = lambda: forward_backward(draw(uniform, step, 0))
        if bare is not None:
            calls["bare"] = lambda: bare(batches)
        return calls

    def ideal_of(path: LayerPath) -> float:
        """Time of the schedule with this path over that with all layers."""
        active = active_by_part(path.active, layout.pipeline * layout.virtual)
        return ideal_pipeline_ratio(
            run.recipe.shape, active, layout.pipeline, layout.virtual, run.micro_batches, run.backward_cost
        )

    seconds: dict[str, list[float]] = {name: [] for name in contestants()}
    uniform_ideal = []
    for index in range(-2, rounds):
        turn = contestants()
        names = list(turn) if index % 2 else list(reversed(turn))
        for name in names:
            took = timed(turn[name], ranks.device)
            engine.model.zero_grad(set_to_none=True)
            if index >= 0:
                seconds[name].append(took)
        if index >= 0 and layout.pipeline > 1:
            uniform_ideal.append(ideal_of(draw(uniform, drawn[-1], 0)))
    ideal = ideal_pipeline_ratio(run.recipe.shape, half, layout.pipeline, layout.virtual, run.micro_batches, run.backward_cost)
    return Result(facts(run, ranks, half, rounds), seconds, ideal, 1.08 if layout.pipeline > 1 else 1.05, uniform_ideal)


def random_batch(run: Run, seed: int, targets: float | None = None) -> Batch:
    """Random tokens, two examples a sample, each of a prefix and its continuation.

    Args:
        targets: share of the positions; the recipe's if None, so that what is counted is what runs.
    """
    targets = run.recipe.shape.targets if targets is None else targets
    length = run.recipe.data.sequence_length
    batch = Batch.empty(run.micro_batch, length, 0)
    draws = np.random.default_rng(seed)
    batch.tokens[:] = draws.integers(0, run.recipe.model.vocab_size, batch.tokens.shape)
    batch.labels[:] = np.roll(batch.tokens, -1, axis=1)
    place = np.arange(length)
    batch.segments[:] = place * 2 // length
    batch.prefix[:] = place % (length // 2) < round(length / 2 * (1 - targets))
    batch.targets[:] = ~batch.prefix
    batch.kinds[:] = 0
    return batch


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds until the last rank is through."""
    dist.barrier()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
    return time.perf_counter() - start


def facts(run: Run, ranks: Ranks, half: int, rounds: int) -> dict[str, object]:
    model = run.recipe.model
    on_gpu = ranks.device.type == "cuda"
    return {
        "date": date.today().isoformat(),
        "command": (command("path_speed") + f" in {ranks.world_size} process{'es' * (ranks.world_size > 1)}"),
        "device": device_name("cuda") if on_gpu else f"{device_name('cpu')}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "processes": ranks.world_size,
        "layout": layout_name(run),
        "layers": f"{half} of {model.num_layers}",
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "vocabulary": model.padded_vocab_size,
        "sequence_length": run.recipe.data.sequence_length,
        "batch": f"{run.batch} in micro-batches of {run.micro_batch}",
        "precision": run.precision,
        "zero_stage": run.ds.zero_optimization.stage,
        "rounds": rounds,
    }


def layout_name(run: Run) -> str:
    """`TP2`, `PP2`, `DP2` or a product of them, with what else is not the default; `one` for one process."""
    p, stage = run.recipe.parallel, run.ds.zero_optimization.stage
    sizes = (("TP", p.tensor), ("PP", p.pipeline), ("V", p.virtual), ("DP", run.data_parallel))
    name = "x".join(f"{name}{size}" for name, size in sizes if size > 1) or "one"
    extra = {
        "sp": p.sequence,
        f"zero{stage}": stage != 1,
        "bf16": run.ds.bf16.enabled,
        "recompute": run.recipe.model.recompute == "layer",
    }
    return "_".join([name, *(word for word, used in extra.items() if used)])


def write(result: Result, out: Path) -> None:
    """Table and plot, as files and on the console."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    device = "gpu" if "threads" not in str(result.facts["device"]) else "cpu"
    name = f"path_speed_{device}_{result.facts['layout']}"
    (out / f"{name}.json").write_text(json.dumps(vars(result), indent=1) + "\n")
    lines = ["# Path speed", "", *(f"- {key}: {value}" for key, value in result.facts.items()), ""]
    lines += ["| ratio | measured | at most |", "|---|---|---|"]
    lines += [f"| {what} | {value:.3f} | {bar or ''} |" for what, value, bar in result.rows]
    lines += ["", "Medians of ratios within a round; bench/path_speed.py says how it is measured.", ""]
    (out / f"{name}.md").write_text("\n".join(lines))
    figure, axes = plt.subplots(figsize=(8, 4), dpi=120, layout="constrained")
    pairs = {
        "forward and backward:\nhalf over all layers": ("half", "all"),
        "the same, uniform paths": ("half, uniform", "all"),
        "whole step:\nhalf over all layers": ("engine half", "engine"),
        "whole step:\nengine over bare loop": ("engine", "bare"),
    }
    shown = {text: pair for text, pair in pairs.items() if set(pair) <= result.seconds.keys()}
    data = [[a / b for a, b in zip(result.seconds[over], result.seconds[under])] for over, under in shown.values()]
    axes.boxplot(data, tick_labels=list(shown))
    axes.plot([0.7, 2.3], [result.ideal] * 2, "--", color="#D55E00", label="ideal, by operations")
    axes.set_ylabel("ratio of times")
    axes.set_ylim(0, None)
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.2, axis="y")
    figure.savefig(out / f"{name}.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
