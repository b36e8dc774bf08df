"""The parts of bench.gpu that hold numbers against each other: losses, resumed runs, missed updates."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_common import Row, engine_of, last_line, model_sizes, seconds_of

BF16 = ("--ds.bf16.enabled", "true")
FP8 = ("--precision", "fp8")


def losses(device: str) -> Iterator[Row]:
    """Twenty steps of the quick start's model against the same on the CPU, in fp32 and bf16."""
    on_cpu = alone("twenty_losses", "cpu")
    for kind, words, most in (("fp32", (), 1e-3), ("bf16", BF16, 2e-2)):
        yield Row(f"largest distance of 20 losses, {kind}", farthest(alone("twenty_losses", device, *words), on_cpu), most=most)


def fp8(device: str) -> Iterator[Row]:
    """Twenty steps of the quick start's model in FP8 against bf16, and how long a step of the largest recipe takes in each."""
    import torch

    from pretrain.errors import UserError
    from pretrain.ranks.device import require_fp8

    try:
        require_fp8(torch.device(device))
    except UserError as error:
        yield Row("FP8", str(error))
        return
    far = farthest(alone("twenty_losses", device, *BF16, *FP8), alone("twenty_losses", device, *BF16))
    yield Row("largest distance of 20 losses, FP8 and bf16", far, most=0.1)  # 0.046 on a CPU
    recipe = list(model_sizes(device))[-1]
    seconds = [alone("seconds_of_a_step", device, recipe, *BF16, *words) for words in ((), FP8)]
    yield Row(f"{recipe}: a step with all layers, bf16 over FP8", seconds[0] / seconds[1])


def alone(function: str, *words: str) -> Any:
    """Return what a function of this file gives in a process of its own."""
    code = f"import sys, json; from bench.gpu_numbers import {function}; print(json.dumps({function}(*sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{function} {' '.join(words)}: {last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def farthest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest distance of numbers that belong together."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def twenty_losses(device: str, *words: str) -> list[float]:
    """Losses of the quick start's model on random tokens, half of them targets: the same batch in every step is learned by heart,
    the sooner the fewer they are, and rounding grows with it."""
    with engine_of("ul2_tiny", device, 4, 2, *words, targets=0.5) as (engine, run, batches):
        return [engine.step(step, batches, run.method.paths(step)).loss for step in range(1, 21)]


def seconds_of_a_step(device: str, recipe: str, *words: str) -> float:
    """Seconds of a compiled step with all layers."""
    from pretrain.subnetwork import LayerPath

    batch, micro = model_sizes(device)[recipe]
    compiles = "layers" if device == "cuda" else "none"
    with engine_of(recipe, device, batch, micro, "--compile", compiles, *words) as (engine, run, batches):
        steps, whole = iter(range(1, 1000)), LayerPath.full(run.recipe.model.num_layers)
        return seconds_of(lambda: engine.step(next(steps), batches, [whole]), device)


def resume(device: str) -> Iterator[Row]:
    """A run that was stopped and resumed against one that was not, by the command line, with `deterministic`."""
    with tempfile.TemporaryDirectory() as folder:

        def train(name: str, *words: str) -> list[float]:
            command = [sys.executable, "-m", "pretrain", "train", "ul2_tiny", "--run-dir", f"{folder}/{name}", "--steps", "20"]
            command += ["--save-every", "10", "--device", device, "--deterministic", "true", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows = map(json.loads, Path(folder, name, "metrics.jsonl").read_text().splitlines())
            return [row["loss"] for row in rows if "loss" in row]

        whole = train("whole")
        train("broken", "--stop-at", "10")
        again = train("broken")
        yield Row("losses that differ after a resume, of 20", float(sum(a != b for a, b in zip(whole, again))), most=0)


def replay(device: str) -> Iterator[Row]:
    """Missed updates that are made up for, against as many steps of the fused AdamW with a gradient of 0."""
    import torch

    from pretrain.optim.adamw import make_up, tensors_of

    def updated(missed: bool) -> torch.Tensor:
        master = torch.randn(5_000_000, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
        adamw = torch.optim.AdamW([master], lr=1e-3, fused=True)
        master.grad = torch.randn(5_000_000, generator=torch.Generator().manual_seed(1)).to(device)
        adamw.step()
        tensors_of(adamw, master)
        rates = [1e-3 / (n + 1) for n in range(20)]
        if missed:
            make_up(adamw, adamw.param_groups[0], master, rates)
        else:
            for rate in rates:
                adamw.param_groups[0]["lr"], master.grad = rate, torch.zeros_like(master)
                adamw.step()
        return master.detach()

    differ = int((updated(True) != updated(False)).sum())
    yield Row("numbers that differ after 20 missed updates, of 5,000,000", float(differ), most=0)
