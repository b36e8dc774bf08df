"""How fast are batches made, and how much of a step is that?

    python -m bench.data [--rounds N] [--out DIR]

One core makes packed UL2 batches of 2,048 positions (seven denoisers), beside two peers on the same tokens: a plain numpy loop
over T5-style span masks, one example of 512 tokens at a time and no packing, and Megatron-Core's own T5 dataset. Counted are
positions that hold something, a second. Rounds interleave the contestants. Then `ul2_tiny` is trained for some steps, for the
share of a step that waits for its batch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from bench.path_speed import HOME
from pretrain.data.objectives.causal import Causal
from pretrain.data.objectives.denoisers import MIXTURES
from pretrain.data.objectives.mlm import MaskedWords
from pretrain.data.objectives.ul2 import Mixture, Special
from pretrain.data.packing import PackedSamples
from pretrain.data.tokens import TokenStream, open_tokens
from pretrain.versions import device_name

VOCABULARY, RESERVED, DOCUMENTS, LENGTH, TEXT = 32_000, 400, 8_000, 2048, 512
SPECIAL = Special(pad=0, eos=1, modes={"[NLU]": 2, "[NLG]": 3, "[S2S]": 4}, sentinels=np.arange(10, 110))
BAR = 3e6
"""Positions a second on a core."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40, help="of ul2_tiny")
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # Megatron-Core's dataset asks for it
    with tempfile.TemporaryDirectory() as folder:
        stream = random_tokens(Path(folder) / "tokens")
        contestants = {
            "ul2, packed": ours(PackedSamples(stream, Mixture(MIXTURES["ul2"], SPECIAL, TEXT), LENGTH, 0)),
            "60-20-20, packed": ours(PackedSamples(stream, Mixture(MIXTURES["60-20-20"], SPECIAL, TEXT), LENGTH, 0)),
            "causal, packed": ours(PackedSamples(stream, Causal(0, 1), LENGTH, 0)),
            "mlm, packed": ours(
                PackedSamples(stream, MaskedWords(0, 5, 6, 7, 0.15, TEXT - 2, (RESERVED, VOCABULARY)), LENGTH, 0)
            ),
            "numpy loop, T5 spans, not packed": numpy_loop(stream),
            "Megatron-Core T5MaskedWordPieceDataset": megatron(Path(folder) / "tokens"),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        filled: dict[str, float] = {}
        for index in range(-1, args.rounds):
            for name in list(contestants) if index % 2 else reversed(contestants):
                started = time.process_time()
                held, places = contestants[name](index + 1)
                if index >= 0:
                    rates[name].append(held / (time.process_time() - started))
                    filled[name] = held / places
    share = waiting_share(args.steps)
    facts = {
        "date": date.today().isoformat(),
        "cpu": device_name("cpu"),
        "rounds": args.rounds,
        "tokens": len(stream),
        "documents": DOCUMENTS,
    }
    facts[f"share of a step of ul2_tiny that waits for its batch, median of {args.steps} steps"] = f"{100 * share:.2f} %"
    write(facts, rates, filled, args.out)


Contestant = Callable[[int], tuple[int, int]]
"""Makes some batches of a round; returns how many positions hold something, and how many there are."""


def random_tokens(prefix: Path) -> TokenStream:
    """Zipf's frequencies in documents of log-normal lengths, about 900 tokens on average, as in web text."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    draws = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for length in np.exp(draws.normal(6.3, 1.0, DOCUMENTS)).astype(int) + 20:
        ids = RESERVED + np.minimum(draws.zipf(1.2, length), VOCABULARY - RESERVED) - 1
        builder.add_document(ids, [length])
    builder.finalize(f"{prefix}.idx")
    return open_tokens(prefix, VOCABULARY, "")


def ours(samples: PackedSamples, batches: int = 16, size: int = 8) -> Contestant:
    def make(turn: int) -> tuple[int, int]:
        held = 0
        for index in range(batches):
            first = (turn * batches + index) * size
            held += int((samples.batch(list(range(first, first + size))).segments >= 0).sum())
        return held, batches * size * LENGTH

    return make


def numpy_loop(stream: TokenStream, examples: int = 64) -> Contestant:
    """Span masks as T5's code draws them (arXiv 1910.10683, random_spans_noise_mask), an example at a time, padded."""
    denoisers = [d for d in MIXTURES["ul2"] if d.kind == "span"]

    def parts(draws: np.random.Generator, total: int, count: int) -> np.ndarray:
        first = np.zeros(total, int)
        first[1:] = draws.permutation(np.arange(total - 1) < count - 1)
        return np.bincount(np.cumsum(first))

    def make(turn: int) -> tuple[int, int]:
        draws, held = np.random.default_rng(turn), 0
        for index in range(examples):
            denoiser = denoisers[index % len(denoisers)]
            begin = int(draws.integers(0, len(stream) - TEXT))
            text = np.asarray(stream.tokens[begin : begin + TEXT], dtype=np.int64)
            noise = round(TEXT * denoiser.rate)
            count = max(round(noise / denoiser.mean_span), 1)
            lengths = np.stack([parts(draws, TEXT - noise, count), parts(draws, noise, count)], 1).ravel()
            hidden = np.repeat(np.tile([False, True], count), lengths)
            prefix, target, sentinel, was = [SPECIAL.modes[denoiser.mode or "[NLU]"]], [], 0, False
            for token, hide in zip(text.tolist(), hidden.tolist()):
                if hide and not was:
                    prefix.append(int(SPECIAL.sentinels[sentinel]))
                    target.append(int(SPECIAL.sentinels[sentinel]))
                    sentinel += 1
                (target if hide else prefix).append(token)
                was = hide
            sample = np.zeros(2 * TEXT, np.int64)
            sample[: len(prefix) + len(target)] = prefix + target
            held += len(prefix) + len(target)
        return held, examples * 2 * TEXT

    return make


def megatron(prefix: Path, examples: int = 64) -> Contestant:
    """Megatron-Core 0.16's T5 dataset as its users set it up: 15 %, geometric spans, encoder 512, decoder 128."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.t5_dataset import T5MaskedWordPieceDataset, T5MaskedWordPieceDatasetConfig
    from megatron.core.datasets.utils import Split

    words = {RESERVED + n: f"w{n}" for n in range(VOCABULARY - RESERVED)}
    tokenizer = SimpleNamespace(
        additional_special_tokens_ids=SPECIAL.sentinels.tolist(),
        bos=8,
        eos=1,
        pad=0,
        cls=5,
        sep=6,
        mask=7,
        inv_vocab=words,
        vocab_size=VOCABULARY,
        unique_identifiers={"class": "numbers"},
    )
    config = T5MaskedWordPieceDatasetConfig(
        random_seed=0,
        sequence_length=TEXT,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=str(prefix.parent),
        tokenizer=tokenizer,
        sequence_length_decoder=TEXT,
        masking_probability=0.15,
        short_sequence_probability=0.0,
        masking_max_ngram=10,
        masking_do_full_word=False,
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=True,
    )
    tokens = IndexedDataset(str(prefix))
    dataset = T5MaskedWordPieceDataset(tokens, str(prefix), np.arange(DOCUMENTS, dtype=np.int32), 100_000, Split.train, config)

    def make(turn: int) -> tuple[int, int]:
        held = 0
        for index in range(examples):
            sample = dataset[(turn * examples + index) % len(dataset)]
            held += int(sample["enc_mask"].sum() + sample["dec_mask"].sum())
        return held, examples * 2 * TEXT

    return make


def waiting_share(steps: int) -> float:
    """Median share of a step, the first few left out, in which `train` waits for its batch."""
    with tempfile.TemporaryDirectory() as folder:
        train = [
            sys.executable,
            "-m",
            "pretrain",
            "train",
            "ul2_tiny",
            "--steps",
            str(steps),
            "--run-dir",
            f"{folder}/run",
            "--device",
            "cpu",
        ]
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return median(row["data_seconds"] / row["step_seconds"] for row in rows[5:] if "data_seconds" in row)


def write(facts: dict, rates: dict[str, list[float]], filled: dict[str, float], out: Path) -> None:
    """Table and numbers, as files and on the console."""
    own = median(rates["ul2, packed"])
    lines = ["# Making batches", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += ["| on one core | million positions a second | over UL2, packed | positions filled |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {median(values) / 1e6:.2f} | {median(values) / own:.2f} | {100 * filled[name]:.1f} % |"
        for name, values in rates.items()
    ]
    met = "met" if own >= BAR and filled["ul2, packed"] >= 0.98 else "NOT MET"
    lines += [
        "",
        (
            f"Bar: {BAR / 1e6:g} for UL2, packed, with 98 % filled: {met}. Medians over rounds, in CPU time; bench/data.py says"
            " how it is measured."
        ),
        "",
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "data_cpu.json").write_text(
        json.dumps({"facts": facts, "positions_per_second": rates, "filled": filled}, indent=1) + "\n"
    )
    (out / "data_cpu.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
