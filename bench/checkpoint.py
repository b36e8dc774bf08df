"""How long does training wait for a checkpoint, and how do saving and loading compare with torch.save and torch.load?

    python -m bench.checkpoint [--recipe ul2_124m] [--rounds 5] [--folder DIR] [--out DIR]

Every round saves the same state synchronously and asynchronously, as the training loop does, in turns first, and then with
torch.save to the same disk; each ends when its bytes are on the disk (fsync), ours with their checksums. The stall is the time
that the loop spends in the saver until the checkpoint has its name. Loading ends when the numbers are in the model and the
optimizer; files are in the page cache then. The first round pins and touches the buffer and is left out.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist

from bench.path_speed import HOME
from pretrain.ranks.device import device_type
from pretrain.ranks.libraries import prepare_libraries

prepare_libraries(device_type("auto"))  # before the imports below, which load DeepSpeed

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.manifest import read_manifest
from pretrain.checkpoint.saver import Saver
from pretrain.checkpoint.state import ModelState
from pretrain.config import Run, read_run
from pretrain.config.run import Position
from pretrain.data.identity import TOKENIZER
from pretrain.engine import build_engine
from pretrain.files import to_disk
from pretrain.optim.names import MOMENTS, TENSORS
from pretrain.ranks.groups import make_groups
from pretrain.ranks.process import Ranks
from pretrain.versions import device_name

BAR = 0.15
STEP_SECONDS = 0.1
"""Between two looks at the saver, where a step of training would be."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipe", default="ul2_124m")
    parser.add_argument(
        "--ds-config", metavar="FILE.json", help="default: RECIPE.json beside an own recipe, else ds_configs/RECIPE.json"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: where temporary files are")
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args = parser.parse_args()
    kind = device_type("auto")
    device = torch.device(kind)
    run = read_run(args.recipe, [("--keep-checkpoints", "1")], args.ds_config)
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    make_groups(run.recipe.parallel, run.recipe.seed, device)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        parameters, buffer, rounds = measure(run, Ranks(0, 1, device), Path(folder), args.rounds)
    dist.destroy_process_group()
    write(parameters, buffer, rounds, device_name(kind), args.out)


def measure(run: Run, ranks: Ranks, folder: Path, rounds: int) -> tuple[int, int, list[dict[str, float]]]:
    """Parameters, bytes of host memory that saving takes, and seconds of each round after the first."""
    engine, directory = build_engine(run, ranks), RunDirectory(folder / "run")
    savers = [
        Saver(
            dataclasses.replace(run, recipe=run.recipe.model_copy(update={"save_async": later})),
            engine.optimizer,
            ranks,
            directory,
            {TOKENIZER: ""},
        )
        for later in (False, True)
    ]
    state = savers[0].state
    for shard in engine.optimizer.shards():
        for kind in MOMENTS:
            shard.numbers(kind).normal_()
    vectors = {name: torch.empty(length) for name, length in state.lengths.items()}
    results, step = [], 0
    for number in range(rounds + 1):
        seconds = {}
        for name, saver in list(zip(("sync", "async"), savers))[
            :: 1 if number % 2 else -1
        ]:  # whoever comes first finds the disk busier
            step += 1
            *spent, seconds[name] = _saving(saver, Position(step, step))
            if saver is savers[1]:
                seconds["stall"] = sum(spent)
        checkpoint = directory.checkpoint(step)
        buffer = savers[1]._buffer
        assert buffer is not None, "something has been saved"
        for vector, part in zip(vectors.values(), buffer.split([len(v) for v in vectors.values()])):
            vector.copy_(part)
        theirs = folder / "theirs.pt"
        seconds["torch.save"] = _timed(lambda: _save_with_torch(vectors, theirs))
        seconds["load"] = _timed(lambda: _load(state, checkpoint))
        seconds["torch.load"] = _timed(lambda: _load_with_torch(theirs, state, step))
        print(
            "  ".join(f"{name} {value:.2f} s" for name, value in seconds.items()),
            "(not counted)" if number == 0 else "",
            flush=True,
        )
        results += [seconds] if number else []
    return sum(map(prod, state.shapes.values())), 4 * sum(state.lengths.values()), results


def _saving(saver: Saver, position: Position) -> Iterator[float]:
    """Seconds of every call that the loop makes; at the end, those until the checkpoint is there."""
    started = time.perf_counter()
    yield _timed(lambda: saver.begin(position, 0.0))
    while saver._pending is not None:
        time.sleep(STEP_SECONDS)
        yield _timed(saver.check)
    yield time.perf_counter() - started


def _save_with_torch(vectors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save(vectors, file)
    to_disk(file)


def _load(state: ModelState, checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    state.load(checkpoint, manifest)
    state.loaded(manifest)


def _load_with_torch(file: Path, state: ModelState, step: int) -> None:
    vectors = torch.load(file, weights_only=True)
    for placed in state.kept:
        for kind in TENSORS:
            placed.shard.numbers(kind).copy_(vectors[f"{kind}/{placed.shard.name}"])
    state.optimizer.restored(step, (step,) * len(state.optimizer.updates))


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        action()
    return time.perf_counter() - started


def write(parameters: int, buffer: int, rounds: list[dict[str, float]], hardware: str, out: Path) -> None:
    """A table, as file and on the console."""
    ratios = {
        "stall of an asynchronous save over a synchronous one": [r["stall"] / r["sync"] for r in rounds],
        "synchronous save over torch.save": [r["sync"] / r["torch.save"] for r in rounds],
        "load over torch.load": [r["load"] / r["torch.load"] for r in rounds],
    }
    stall = statistics.median(ratios["stall of an asynchronous save over a synchronous one"])
    lines = ["# Checkpoints", "", f"- date: {date.today().isoformat()}", f"- hardware: {hardware}"]
    lines += [
        f"- state: {parameters / 1e6:.0f} M parameters, {3 * 4 * parameters / 1e9:.2f} GB",
        f"- host memory for saving: {buffer / 2**20:.0f} MiB",
        "",
    ]
    lines += ["| | median | least | most |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |" for name, values in ratios.items()
    ]
    lines += ["", f"{len(rounds)} rounds. Stall at most {BAR} of a synchronous save: {'met' if stall <= BAR else 'NOT MET'}.", ""]
    print("\n".join(lines))
    out.mkdir(parents=True, exist_ok=True)
    name = "checkpoint_cpu" if "cores" in hardware else "checkpoint_gpu"
    (out / f"{name}.md").write_text("\n".join(lines))
    (out / f"{name}.json").write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
