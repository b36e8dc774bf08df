"""Does a layer that is left out matter less the deeper the network is?

    python -m bench.theory.stability [--depths 4 8 16 32 64] [--seeds 3] [--steps 200] [--jobs 2] [--out DIR]

The paper's abstract gives residual connections and norms as the reason why the loss is stable from stage to stage. At a stage's
end paths become a layer or more longer, so what counts is the loss without a random layer minus the loss with all. It is measured
on held-out text at initialisation and after training, with and without residual connections, with norms before, after and
nowhere, at several depths; a power of the depth is fitted to its mean size, |difference|, with a 95 % interval. An exponent of -1
is the 1 / L of a layer that does its L-th part, -1/2 that of L independent ones at random.

Rows of finished networks are kept (theory_stability.rows.jsonl): the same command goes on where it was ended.
"""

import argparse
import json
import math
import textwrap
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import linregress
from scipy.stats import t as student

from bench.arguments import command, positive
from bench.theory.network import SYMBOLS, Kind, Language, Network, spread, train
from pretrain.files import write_whole
from pretrain.versions import device_name

KINDS = [Kind(residual, norm) for residual in (True, False) for norm in ("pre", "post", "none")]
HIDDEN, HEADS, LENGTH, SAMPLES, HELD_OUT, RATE = 64, 4, 64, 16, 32, 2e-3
LAYERS = 16
"""How many layers of a network are left out, one at a time."""
WHEN = ("at initialisation", "after training")


@dataclass(frozen=True)
class Row:
    """One network, before or after training."""

    kind: str
    depth: int
    seed: int
    steps: int
    when: str
    loss: float
    difference: float
    """Mean loss without a layer, minus that with all."""
    size: float
    """Mean of its absolute value."""

    def line(self) -> str:
        """Return it as a line of JSON, which has no number that is none: null stands for it."""
        known = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in vars(self).items()}
        return json.dumps(known) + "\n"

    @classmethod
    def read(cls, line: str) -> "Row":
        known: dict[str, Any] = {key: math.nan if value is None else value for key, value in json.loads(line).items()}
        return cls(**known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=positive, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--jobs", type=positive, default=2, help="networks at a time, a thread each")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "theory_stability.rows.jsonl"
    rows = [Row.read(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row.kind, row.depth, row.seed, row.steps) for row in rows}
    wanted = [(kind, depth, seed, args.steps) for depth in args.depths for seed in range(args.seeds) for kind in KINDS]
    with ProcessPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(measure, *one) for one in wanted if (one[0].name, *one[1:]) not in done]
        for job in as_completed(jobs):
            rows += job.result()
            with file.open("a") as out:
                out.writelines(row.line() for row in job.result())
    chosen = [row for row in rows if row.depth in args.depths and row.seed < args.seeds and row.steps == args.steps]
    write(chosen, args.out)


def measure(kind: Kind, depth: int, seed: int, steps: int) -> list[Row]:
    """Return a row of a network before training, and one after."""
    torch.set_num_threads(1)
    network = Network(kind, depth, HIDDEN, HEADS, LENGTH, seed)
    held_out = Language(10_000).text(HELD_OUT, LENGTH + 1)
    rows = []
    for when in WHEN:
        if when == WHEN[1]:
            train(network, Language(seed), steps, SAMPLES, LENGTH, RATE)
        loss, differences = without_each(network, held_out)
        rows.append(Row(kind.name, depth, seed, steps, when, loss, fmean(differences), fmean(map(abs, differences))))
    return rows


@torch.no_grad()
def without_each(network: Network, text: torch.Tensor) -> tuple[float, list[float]]:
    """Return the loss with all layers, and what it is more without one of them, for some of them."""
    whole = network.loss(text).item()
    return whole, [network.loss(text, {layer}).item() - whole for layer in spread(len(network.layers), LAYERS)]


def exponent(depths: Sequence[int], sizes: Sequence[float]) -> tuple[float, float] | None:
    """Fit size = a depth^b; returns b and half of its 95 % interval, None where a size is 0 or not finite."""
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    fit = linregress(np.log(depths), np.log(sizes))
    return float(fit.slope), float(student.ppf(0.975, len(sizes) - 2) * fit.stderr)


def write(rows: Sequence[Row], out: Path) -> None:
    """Table and picture."""
    depths = sorted({row.depth for row in rows})
    lines = ["# Leaving out one layer", "", "```", f"python {command('theory.stability')}", "```", ""]
    lines += [f"- date: {datetime.now(UTC):%Y-%m-%d}", f"- device: {device_name('cpu')}", f"- torch: {torch.__version__}"]
    lines += [f"- {SETTING}", ""]
    for when in WHEN:
        lines += [f"## {when[0].upper()}{when[1:]}", ""]
        head = [
            "network",
            *(f"{depth} layers" for depth in depths),
            "exponent of the depth",
            f"loss, {depths[0]} to {depths[-1]} layers",
        ]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for kind in KINDS:
            own = [row for row in rows if (row.kind, row.when) == (kind.name, when)]
            by_depth = {depth: [row for row in own if row.depth == depth] for depth in depths}
            found = exponent([row.depth for row in own], [row.size for row in own])
            losses = [fmean(row.loss for row in by_depth[depth]) for depth in (depths[0], depths[-1])]
            cells = [
                kind.name,
                *(f"{fmean(row.size for row in by_depth[depth]):.2g}" for depth in depths),
                "–" if found is None else f"{found[0]:+.2f} ± {found[1]:.2f}",
                f"{losses[0]:.3g} to {losses[1]:.3g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += ["![Size of the difference against depth](theory_stability.png)", ""]
    lines += [textwrap.fill(f"{NOTE} bench/theory/stability.py says how it is measured.", 130), ""]
    draw(rows, depths, out / "theory_stability.png")
    write_whole(out / "theory_stability.md", "\n".join(lines))
    print("\n".join(lines))


def draw(rows: Sequence[Row], depths: Sequence[int], file: Path) -> None:
    """Sizes against depth, on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, when in zip(axes, WHEN):
        for kind in KINDS:
            own = [row for row in rows if (row.kind, row.when) == (kind.name, when)]
            sizes = [fmean(row.size for row in own if row.depth == depth) for depth in depths]
            axis.plot(depths, sizes, "o-" if kind.residual else "s--", label=kind.name)
        axis.set(title=when, xlabel="layers", xscale="log", yscale="log")
        axis.set_xticks(depths, [str(depth) for depth in depths])
    axes[0].set_ylabel("|loss without one layer - loss with all|, nats")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


SETTING = (
    f"hidden {HIDDEN}, {HEADS} heads, {LENGTH} positions, {SAMPLES} samples a step;"
    f" up to {LAYERS} layers are left out, one at a time"
)
NOTE = (
    "Mean size of the difference in nats, and the exponent that fits it best, with its 95 % interval. A network that knows"
    f" nothing has a loss of {math.log(SYMBOLS):.2f} or more: there a small difference says nothing of stability."
)


if __name__ == "__main__":
    main()
