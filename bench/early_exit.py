"""What the first layers of a model know: how often they agree with the whole, and what self-speculation makes of it.

    python -m bench.early_exit NAME=RUN ... [--layers 3 6 9]

For each run's newest checkpoint: at which share of held-out targets the first n layers have the whole model's likeliest token
(read as in training), and how many passes through all layers transformers' `generate(..., assistant_early_exit=n)` takes a token
of greedy text, from prompts of held-out text that are read causally. Its tokens are checked to be those of plain greedy decoding.
Needs transformers, which the tests need, too.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.arguments import positive
from pretrain.errors import UserError
from pretrain.files import write_whole
from pretrain.place import find_place
from pretrain.ranks.libraries import prepare_libraries
from pretrain.versions import device_name

PROMPT = 32
"""Tokens of a prompt."""


@dataclass(frozen=True)
class Part:
    """The first layers of a model."""

    layers: int
    agreement: float
    passes: float
    """Passes through all layers, a token that was written."""


def measure(run: Path, layers: list[int], prompts: int, tokens: int) -> list[Part]:
    """Measure a run's newest checkpoint.

    Raises:
        UserError: it has fewer layers, or is no decoder.
    """
    from pretrain.config.recipe import Parallel
    from pretrain.data.loader import open_data, streams_of
    from pretrain.evaluate.load import loaded
    from pretrain.export.huggingface import export
    from pretrain.ranks.launch import join
    from pretrain.subnetwork import LayerPath

    with join("cpu", find_place(os.environ), Path.cwd()) as ranks, loaded(run, Parallel(), ranks) as model:
        count = model.run.recipe.model.num_layers
        if max(layers) >= count:
            raise UserError(f"{run}: has {count} layers; --layers must be fewer")
        data = open_data(model.run)
        parts = {str(n): model.run.parts[f"first_{n}"] for n in layers}
        agreement = model.engine.agreement(data.held_out(), LayerPath.full(count), parts)
        data.close()
        text = [stream.tokens for _, stream in streams_of(model.run).values()][0]
        begins = range(0, len(text) - PROMPT, max(1, (len(text) - PROMPT) // prompts))[:prompts]
        asked = [torch.tensor([text[begin : begin + PROMPT].tolist()]) for begin in begins]
    with tempfile.TemporaryDirectory() as home:
        export(run, Path(home) / "hf")
        return [Part(n, agreement[str(n)], _passes(Path(home) / "hf", n, asked, tokens)) for n in layers]


@torch.no_grad()
def _passes(folder: Path, layers: int, prompts: list[torch.Tensor], tokens: int) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    calls = [0]
    model.model.layers[-1].register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    settings = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    passes = 0
    for prompt in prompts:
        mask = torch.ones_like(prompt)
        plain = model.generate(prompt, attention_mask=mask, **settings)
        calls[0] = 0
        sooner = model.generate(prompt, attention_mask=mask, assistant_early_exit=layers, **settings)
        passes += calls[0]
        if not torch.equal(plain, sooner):
            raise RuntimeError(f"{folder}: with the guesses of {layers} layers other tokens are written")
    return passes / (tokens * len(prompts))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="run directories, and what to call them")
    parser.add_argument("--layers", type=positive, nargs="+", default=[3, 6, 9])
    parser.add_argument("--prompts", type=positive, default=20)
    parser.add_argument("--tokens", type=positive, default=48, help="written after each prompt; 48")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIR")
    args = parser.parse_args()
    prepare_libraries("cpu")
    lines = [
        "# What the first layers know",
        "",
        f"`-m bench.early_exit NAME=RUN ... --prompts {args.prompts} --tokens {args.tokens}`, {device_name('cpu')}.",
        "",
        "| method | first layers | agree with the whole | passes through all layers a token |",
        "|---|---|---|---|",
    ]
    for word in args.runs:
        name, is_there, run = word.partition("=")
        if not is_there:
            raise SystemExit(f"error: {word}: write NAME=RUN")
        try:
            parts = measure(Path(run), sorted(set(args.layers)), args.prompts, args.tokens)
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
        lines += [f"| `{name}` | {part.layers} | {part.agreement:.3f} | {part.passes:.2f} |" for part in parts]
        print("\n".join(lines[-len(parts) :]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole(args.out / "early_exit.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
