"""Is a step as fast as transformers' on the same work, and what does half the layers buy beside it?

    python -m bench.peer [--hidden 384 768] [--threads 1 2] [--rounds N] [options of train]

transformers' LlamaForCausalLM of the same shape and size, on the same tokens with the same AdamW and clipping, eager and
compiled, against the engine with all layers and with half of them, eager and compiled. One process; rounds interleave the
contestants and change their order, ratios are taken within a round, and medians over rounds are reported. Each width and number
of threads is measured in a process of its own. Needs transformers, which the tests need, too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import torch

from bench.arguments import command
from bench.path_speed import random_batch
from pretrain.config import Run, read_run
from pretrain.config.command_line import option_pairs
from pretrain.data.batch import Batch
from pretrain.place import find_place
from pretrain.ranks.launch import join, launch
from pretrain.ranks.libraries import prepare_libraries
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath
from pretrain.versions import device_name

HOME = Path(__file__).parent
SHAPES = {
    384: ["--model.num_layers", "12", "--ds.progressive_subnetwork.path_lengths", "6"],
    768: ["--model.num_layers", "4", "--ds.progressive_subnetwork.path_lengths", "2", "--model.hidden_size", "768",
          "--model.ffn_hidden_size", "2560", "--model.num_attention_heads", "12"],
}  # fmt: skip
"""By hidden size: deep enough that half of the layers is half of a step, small enough for two CPU cores."""
COMMON = ["--ds.train_batch_size", "8", "--data.objective", "causal"]
BARS = {"engine, compiled": 1.00, "engine, compiled, half the layers": 0.54}
"""Largest time over the faster of transformers' two."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--hidden", type=int, choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HOME / "results")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.one:
        print(json.dumps(measure(args.hidden[0], args.threads[0], args.rounds, rest)))
        return
    cases = []
    for hidden in args.hidden:
        for threads in args.threads:
            words = ["--one", "--hidden", str(hidden), "--threads", str(threads), "--rounds", str(args.rounds), *rest]
            done = subprocess.run([sys.executable, "-m", "bench.peer", *words], stdout=subprocess.PIPE, text=True)
            if done.returncode != 0:
                sys.exit(done.returncode)
            cases.append(json.loads(done.stdout.splitlines()[-1]))
            print("\n".join(lines(cases[-1])))
    write(cases, args.out)


def measure(hidden: int, threads: int, rounds: int, options: Sequence[str]) -> dict:
    """Seconds of every round's steps, by contestant, and facts."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    place = find_place(os.environ)
    os.environ.update(place.environment)
    words = [word for option in (*COMMON, *SHAPES[hidden], *options) for word in option.split("=", 1)]
    given = dict(zip(words[::2], words[1::2]))  # of one that is there twice the last one counts
    pairs = option_pairs([word for pair in given.items() for word in pair])
    run = read_run(str(HOME / "path_speed.yaml"), pairs, str(HOME / "path_speed.json"), 1)
    prepare_libraries("cpu")
    with join("cpu", place, HOME) as ranks, launch(run.recipe, ranks):
        torch.set_num_threads(threads)
        batches = [causal(random_batch(run, index)) for index in range(run.micro_batches)]
        steps = contestants(run, ranks, batches)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for index in range(-2, rounds):
            for name in list(steps) if index % 2 else list(reversed(steps)):
                started = time.perf_counter()
                steps[name]()
                if index >= 0:
                    seconds[name].append(time.perf_counter() - started)
    tokens = run.batch * run.recipe.data.sequence_length
    return {"hidden": hidden, "layers": run.recipe.model.num_layers, "threads": threads, "tokens": tokens, "seconds": seconds}


def causal(batch: Batch) -> Batch:
    """The same tokens as one example a sample, every one of which is a target."""
    whole = batch.segments * 0
    return replace(batch, segments=whole, prefix=whole.astype(bool), targets=~whole.astype(bool))


def contestants(run: Run, ranks: Ranks, batches: Sequence[Batch]) -> dict[str, Callable[[], object]]:
    """A step of each."""
    from pretrain.engine import build_engine

    layers = run.recipe.model.num_layers
    paths = {"": LayerPath.full(layers), ", half the layers": run.method.paths(1)[0]}
    steps: dict[str, Callable[[], object]] = {
        "transformers": peer(run, batches, compiles=False),
        "transformers, compiled": peer(run, batches, compiles=True),
    }
    for name, compiles in (("engine", "none"), ("engine, compiled", "layers")):
        ours = build_engine(replace(run, recipe=run.recipe.model_copy(update={"compile": compiles})), ranks)
        for suffix, path in paths.items():
            count = iter(range(1, 10_000))
            steps[name + suffix] = lambda ours=ours, path=path, count=count: ours.step(next(count), batches, [path])  # type: ignore[misc]
    return steps


def peer(run: Run, batches: Sequence[Batch], compiles: bool) -> Callable[[], object]:
    """A step of transformers' Llama: micro-batches, clipping and AdamW as the engine has them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    m, params = run.recipe.model, run.ds.optimizer.params
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=m.padded_vocab_size, hidden_size=m.hidden_size, intermediate_size=m.ffn_hidden_size,
            num_hidden_layers=m.num_layers, num_attention_heads=m.num_attention_heads, tie_word_embeddings=m.tied_embeddings,
            max_position_embeddings=run.recipe.data.sequence_length, rms_norm_eps=m.norm_epsilon, use_cache=False,
        )
    ).train()  # fmt: skip
    model.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=params.lr, betas=params.betas, weight_decay=params.weight_decay, fused=True
    )
    forward = torch.compile(model, dynamic=False) if compiles else model
    tokens = [torch.from_numpy(batch.tokens) for batch in batches]

    def step() -> float:
        loss = 0.0
        for inputs in tokens:
            found = forward(input_ids=inputs, labels=inputs).loss / len(tokens)
            found.backward()
            loss += float(found.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.ds.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def lines(case: dict) -> list[str]:
    """A table of one width and number of threads."""
    seconds = case["seconds"]
    best = min(("transformers", "transformers, compiled"), key=lambda name: median(seconds[name]))
    found = [f"## Hidden {case['hidden']}, {case['layers']} layers, threads: {case['threads']}", ""]
    found += [f"| | tokens/s | time over {best} | at most |", "|---|---|---|---|"]
    for name, times in seconds.items():
        ratio = median(ours / theirs for ours, theirs in zip(times, seconds[best]))
        found.append(f"| {name} | {case['tokens'] / median(times):,.0f} | {ratio:.2f} | {BARS.get(name, '')} |")
    return [*found, ""]


def write(cases: Sequence[dict], out: Path) -> None:
    """Numbers and tables."""
    out.mkdir(parents=True, exist_ok=True)
    facts = [
        f"- date: {date.today().isoformat()}",
        f"- device: {device_name('cpu')}",
        f"- torch: {torch.__version__}",
        f"- command: {command('peer')}",
    ]
    text = ["# Beside transformers' Llama", "", *facts, "", *(line for case in cases for line in lines(case))]
    (out / "peer.json").write_text(json.dumps(cases, indent=1) + "\n")
    (out / "peer.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
