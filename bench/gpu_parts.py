"""The parts of bench.gpu: each makes rows of what it measured, and what is wanted of it."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.gpu_common import Part, Row, engine_of, last_line, model_sizes, seconds_of
from bench.gpu_numbers import fp8, losses, replay, resume

RECIPES = ("ul2_tiny", "gpt_tiny", "bert_tiny", "ul2_124m", "gpt_124m", "bert_base", "ul2_1.6b")


def run_part(name: str, device: str, out: Path) -> None:
    """Write a part's rows into a file, a line each, as they come."""
    for row in PARTS[name].rows(device):
        with out.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def smoke(device: str) -> Iterator[Row]:
    """Three steps of every recipe, with its own settings."""
    for recipe in RECIPES if device == "cuda" else RECIPES[:3]:
        words = ["--one-recipe", recipe, device]
        done = subprocess.run([sys.executable, "-m", "bench.gpu_parts", *words], capture_output=True, text=True, timeout=100)
        failed = done.returncode != 0
        yield Row(recipe, last_line(done.stderr if failed else done.stdout), failed=failed)


def one_recipe(recipe: str, device: str) -> str:
    """Three steps of a recipe with two samples; their losses and the most memory."""
    import torch

    with engine_of(recipe, device, 2, 1, "--compile", "none") as (engine, run, batches):
        losses = [engine.step(step, batches, run.method.paths(step)).loss for step in (1, 2, 3)]
        peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device == "cuda" else ""
    return f"losses {', '.join(f'{loss:.3f}' for loss in losses)}{peak}"


def attention(device: str) -> Iterator[Row]:
    """Flex attention with its block tables against sdpa with a dense mask, 8 x 2048 positions, 18 heads of 128, bf16."""
    import numpy as np
    import torch

    from pretrain.model.attention import CoreAttention, block_mask, dense_mask
    from pretrain.model.blocks import block_tables

    count, length, heads = (8, 2048, 18) if device == "cuda" else (1, 256, 2)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    place = np.arange(length)
    segments, prefix = np.tile(place // 384, (count, 1)).astype(np.int32), np.tile(place % 384 < 192, (count, 1))
    tables = {name: torch.from_numpy(array).to(device) for name, array in block_tables(segments, prefix).items()}
    of = (torch.from_numpy(segments).to(device), torch.from_numpy(prefix).to(device))
    core = CoreAttention.__new__(CoreAttention)
    torch.nn.Module.__init__(core)
    torch.manual_seed(0)
    trains = device == "cuda"  # flex has no backward pass on a CPU
    inputs = [torch.randn(length, count, heads, 128, device=device, dtype=dtype).requires_grad_(trains) for _ in range(3)]
    results = {}
    for name, mask in (("sdpa", dense_mask(*of, dtype)), ("flex", block_mask(*of, tables))):

        def once(mask: object = mask) -> list[torch.Tensor]:
            if not trains:
                with torch.no_grad():
                    return [core(*inputs, mask)]
            out = core(*inputs, mask)
            return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

        results[name] = once()
        yield Row(f"{name}, ms", 1000 * seconds_of(once, device))
    for what, ours, theirs in zip(("output", "gradient of q", "of k", "of v"), results["flex"], results["sdpa"]):
        far = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        yield Row(f"distance of flex from sdpa, {what}", far, most=1e-2)


def speed(device: str) -> Iterator[Row]:
    """Steps of large recipes: all layers and half, eager and compiled; MFU counts active operations."""
    for recipe in model_sizes(device):
        for compiles in ("layers", "none"):
            words = [sys.executable, "-m", "bench.gpu_parts", "--timed", recipe, device, compiles]
            done = subprocess.run(words, capture_output=True, text=True, timeout=170)
            if done.returncode != 0:
                yield Row(f"{recipe}, compile {compiles}", last_line(done.stderr), failed=True)
                continue
            for row in json.loads(done.stdout.splitlines()[-1]):
                yield Row(**row)


def timed(recipe: str, device: str, compiles: str) -> list[dict]:
    """Rows of one recipe, compiled or not."""
    import torch

    from pretrain.plan.hardware import GPUS
    from pretrain.plan.memory import rank_memory
    from pretrain.subnetwork import LayerPath

    batch, micro = model_sizes(device)[recipe]
    rows = []
    with engine_of(recipe, device, batch, micro, "--compile", compiles) as (engine, run, batches):
        layers, shape, count = run.recipe.model.num_layers, run.recipe.shape, iter(range(1, 1000))
        half = LayerPath(tuple(n % 2 == 0 for n in range(layers)), (1.0,) * layers)
        seconds, name = {}, f"{recipe}, compile {compiles}"
        for what, path in (("all layers", LayerPath.full(layers)), ("half the layers", half)):
            started = time.perf_counter()
            engine.step(next(count), batches, [path])
            rows.append(Row(f"{name}: first step, {what}, s", time.perf_counter() - started))

            def step(path: LayerPath = path) -> object:
                return engine.step(next(count), batches, [path])

            seconds[what] = seconds_of(step, device)
            operations = shape.training(path.length, run.tokens_per_step)
            rows.append(Row(f"{name}: {what}, tokens/s", run.tokens_per_step / seconds[what]))
            rows.append(Row(f"{name}: {what}, TFLOP/s", operations / seconds[what] / 1e12))
            if (peak := peak_tflops(device, GPUS)) is not None:
                least = {"ul2_124m": 0.38, "ul2_1.6b": 0.48}[recipe] if (what, compiles) == ("all layers", "layers") else None
                rows.append(Row(f"{name}: {what}, MFU", operations / seconds[what] / 1e12 / peak, least=least))
        if compiles == "layers":  # a layer's, and two passes over logits
            rows.append(Row(f"{name}: graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"], most=3))
        ideal = shape.training(half.length) / shape.training(layers)
        most = 1.08 if compiles == "layers" else None
        rows.append(
            Row(f"{name}: half over all, over ideal", seconds["half the layers"] / seconds["all layers"] / ideal, most=most)
        )
        if device == "cuda":
            peak_gib, planned = torch.cuda.max_memory_allocated() / 2**30, rank_memory(run, 0).total / 2**30
            rows.append(Row(f"{name}: peak memory over plan's", peak_gib / planned, most=1.1))
    return [asdict(row) for row in rows]


def peak_tflops(device: str, gpus: dict) -> float | None:
    """In bf16, of the GPU that is here; None for one that `plan` does not know."""
    import torch

    if device != "cuda":
        return None
    here = torch.cuda.get_device_name().lower().replace(" ", "")
    return next((gpu.bf16_tflops for name, gpu in gpus.items() if name.split("-")[0] in here), None)


def checkpoint(device: str) -> Iterator[Row]:
    """What a save takes from training: the copy to the CPU. Checksums and the disk have a thread of their own."""
    from pretrain.checkpoint.directory import RunDirectory
    from pretrain.checkpoint.saver import Saver
    from pretrain.config.run import Position
    from pretrain.data.identity import TOKENIZER
    from pretrain.subnetwork import LayerPath

    recipe, (batch, micro) = next(iter(model_sizes(device).items()))
    waits, writes = [], []
    with engine_of(recipe, device, batch, micro) as (engine, run, batches), tempfile.TemporaryDirectory() as folder:
        with Saver(run, engine.optimizer, engine.ranks, RunDirectory(Path(folder)), {TOKENIZER: "none"}) as saver:
            for step in (1, 2, 3, 4):
                result = engine.step(step, batches, [LayerPath.full(run.recipe.model.num_layers)])
                began = time.perf_counter()
                saver.begin(run.position(Position(), step), result.lr)
                waits.append(time.perf_counter() - began)
                saver.finish()
                writes.append(time.perf_counter() - began)
            size = 4 * sum(saver.state.lengths.values())  # fp32
    yield Row(f"{recipe}: state, GiB", size / 2**30)
    yield Row(f"{recipe}: training waits for the first save, memory made, s", waits[0])
    yield Row(f"{recipe}: for a later one, s", median(waits[1:]))
    yield Row(f"{recipe}: that is GB/s", size / median(waits[1:]) / 1e9)
    yield Row(f"{recipe}: until it is on the disk, s", median(writes[1:]))


def where_time_goes(device: str) -> Iterator[Row]:
    """A compiled step with all layers by kind of kernel, as shares of the device's time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from pretrain.subnetwork import LayerPath

    recipe, (batch, micro) = next(iter(model_sizes(device).items()))
    with engine_of(recipe, device, batch, micro, "--compile", "layers" if device == "cuda" else "none") as (engine, run, batches):
        whole = LayerPath.full(run.recipe.model.num_layers)
        for step in (1, 2):
            engine.step(step, batches, [whole])
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * (device == "cuda"))]) as found:
            engine.step(3, batches, [whole])
            if device == "cuda":
                torch.cuda.synchronize()
    time_of = (lambda event: event.self_device_time_total) if device == "cuda" else (lambda event: event.self_cpu_time_total)
    events = sorted(found.key_averages(), key=time_of, reverse=True)
    total = sum(map(time_of, events))
    for event in events[:12]:
        yield Row(event.key[:80].replace("|", "/"), f"{100 * time_of(event) / total:.1f} %, {event.count} times")


PARTS = {
    "smoke": Part("Three steps of every recipe, with two samples each.", 120, smoke),
    "losses": Part("Twenty steps of the quick start's model against the CPU's.", 180, losses),
    "resume": Part("A run that was stopped and resumed against one that was not, with `deterministic`.", 180, resume),
    "replay": Part("Updates that a sleeping layer missed, against as many steps of the fused AdamW.", 40, replay),
    "attention": Part("Flex attention with its block tables against sdpa with a dense mask.", 60, attention),
    "speed": Part("Steps with all layers and with half of them; MFU counts active operations.", 300, speed),
    "checkpoint": Part("What a save takes from training.", 90, checkpoint),
    "where_time_goes": Part("A compiled step with all layers, by kernel.", 90, where_time_goes),
    "fp8": Part("FP8 against bf16: twenty losses of the quick start's model, and a step of the largest recipe.", 100, fp8),
}


def _alone() -> None:
    """What a part starts in a process of its own, so that memory and compiled code begin anew."""
    kind, recipe, device, *rest = sys.argv[1:]
    print(one_recipe(recipe, device) if kind == "--one-recipe" else json.dumps(timed(recipe, device, *rest)))


if __name__ == "__main__":
    _alone()
