"""When does each degree of a polynomial arrive, under paths that grow, that shrink and that do neither?

    python -m bench.theory.degrees [--seeds 6] [--steps 2500] [--jobs 2] [--out DIR]

The paper argues that subnetworks of growing complexity learn what is simple first and what is complex later, and that dropping
ever more layers does the reverse; its example are polynomials. Here a residual network of 12 layers, with norms before its
branches, learns a sum of products of signs, x in {-1, 1}^20: four random products of each degree from 1 to 5, each degree with
the same share of the variance. Paths are those of the program's own methods, one a step. What has been learned of a degree is
told by the whole network's correlation with its products: the error of a degree is 1 where nothing of it is there, and 0 where
all is.

What the paper leaves open, or we chose: width, depth, degrees, number of products, AdamW with a warm-up and a cosine, new samples
in every step. Rows of finished networks are kept (theory_degrees.rows.jsonl): the same command goes on where it was ended.
"""

import argparse
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from bench.arguments import command, positive
from pretrain.files import write_whole
from pretrain.study.statistics import Estimate
from pretrain.subnetwork.methods import Method, ProgressiveSubnetwork
from pretrain.versions import device_name

SIGNS, DEGREES, PRODUCTS = 20, (1, 2, 3, 4, 5), 4
LAYERS, HIDDEN, FFN, SAMPLES, HELD_OUT, RATE, LOOKS = 12, 64, 128, 256, 4096, 2e-3, 50
LEARNED = 0.25
"""An error below which a degree has arrived."""
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "raptr": {"method": "raptr", "path_lengths": "6-8-10-12"},
    "constant": {"method": "constant", "path_lengths": "9"},
    "pld": {"method": "pld", "theta": 0.5},
}
"""All but the first with about three quarters of the layers' operations."""


@dataclass(frozen=True)
class Row:
    """One network's errors over its training."""

    method: str
    seed: int
    steps: int
    looks: list[int]
    """Steps after which it was looked at."""
    layers: list[float]
    """Layers run up to there, over those of all layers in all steps."""
    errors: list[list[float]]
    """`[looks][degrees]`."""

    def arrival(self, degree: int) -> float | None:
        """Return the share of steps after which the error of a degree stays below LEARNED; None if it does not."""
        found = None
        for at, errors in zip(self.looks, self.errors):
            if errors[DEGREES.index(degree)] >= LEARNED:
                found = None
            elif found is None:
                found = at / self.steps
        return found


def distinct(draw: np.random.Generator, degree: int) -> list[np.ndarray]:
    """Draw the signs of each product of a degree, no product twice."""
    found: dict[frozenset[int], np.ndarray] = {}
    while len(found) < PRODUCTS:
        chosen = draw.choice(SIGNS, degree, replace=False)
        found.setdefault(frozenset(chosen.tolist()), chosen)
    return list(found.values())


class Polynomial:
    """A sum of products of signs."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.sets = [distinct(draw, degree) for degree in DEGREES]

    def products(self, x: Tensor) -> Tensor:
        """Return [n, degrees, products] from [n, signs]."""
        return torch.stack([torch.stack([x[:, chosen].prod(1) for chosen in sets], 1) for sets in self.sets], 1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.products(x).sum((1, 2)) / math.sqrt(PRODUCTS)

    def errors(self, found: Tensor, x: Tensor) -> list[float]:
        """Return of each degree the squared distance of the coefficients that are in `found`, [n], over that of none."""
        coefficients = (found[:, None, None] * self.products(x)).mean(0)
        return ((coefficients * math.sqrt(PRODUCTS) - 1) ** 2).mean(1).tolist()


class Residual(nn.Module):
    """x + down(relu(up(norm(x)))), layer after layer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inside, self.out = nn.Linear(SIGNS, HIDDEN), nn.Linear(HIDDEN, 1)
        branch = lambda: nn.Sequential(nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, FFN), nn.ReLU(), nn.Linear(FFN, HIDDEN))  # noqa: E731
        self.layers, self.norm = nn.ModuleList(branch() for _ in range(LAYERS)), nn.RMSNorm(HIDDEN)

    def forward(self, x: Tensor, active: Sequence[bool] = (True,) * LAYERS) -> Tensor:
        """Return [n], from [n, signs]."""
        x = self.inside(x)
        for layer, runs in zip(self.layers, active):
            if runs:
                x = x + layer(x)
        return self.out(self.norm(x))[:, 0]


def method_of(name: str, steps: int, seed: int) -> Method:
    """Return a method of the program."""
    keys = METHODS[name] | ({"gamma": 100 / steps} if name == "pld" else {})
    return TypeAdapter(ProgressiveSubnetwork).validate_python(keys).build(LAYERS, steps, seed)


def signs(draw: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(draw.choice(np.array([-1, 1], np.float32), (count, SIGNS)))


def measure(name: str, seed: int, steps: int) -> Row:
    """Train one network."""
    torch.set_num_threads(1)
    polynomial, network, method = Polynomial(seed), Residual(seed), method_of(name, steps, seed)
    draw, held_out = np.random.default_rng((seed, 1)), signs(np.random.default_rng((seed, 2)), HELD_OUT)
    adamw, row = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.95)), Row(name, seed, steps, [], [], [])
    ran = 0
    for step in range(1, steps + 1):
        x, (path, *_) = signs(draw, SAMPLES), method.paths(step)
        adamw.param_groups[0]["lr"] = RATE * min(1, 20 * step / steps) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        adamw.zero_grad()
        nn.functional.mse_loss(network(x, path.active), polynomial(x)).backward()
        adamw.step()
        ran += path.length
        if step * LOOKS // steps > (step - 1) * LOOKS // steps:
            with torch.no_grad():
                row.errors.append(polynomial.errors(network(held_out), held_out))
            row.looks.append(step)
            row.layers.append(ran / (LAYERS * steps))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=positive, default=6)
    parser.add_argument("--steps", type=positive, default=2500)
    parser.add_argument("--jobs", type=positive, default=2, help="networks at a time, a thread each")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds: intervals need two at least")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "theory_degrees.rows.jsonl"
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row.method, row.seed, row.steps) for row in rows}
    wanted = [(name, seed, args.steps) for seed in range(args.seeds) for name in METHODS]
    with ProcessPoolExecutor(args.jobs) as pool:
        for job in as_completed([pool.submit(measure, *one) for one in wanted if one not in done]):
            rows.append(job.result())
            with file.open("a") as out:
                out.write(json.dumps(asdict(rows[-1])) + "\n")
    write([row for row in rows if row.seed < args.seeds and row.steps == args.steps], args.out)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval."""
    estimate = Estimate.of(values)
    assert estimate.half_width is not None, "of one value there is none"
    return estimate.mean, estimate.half_width


def last_errors(rows: Sequence[Row], method: str, degree: int) -> list[float]:
    """Return errors of a degree at the end, by seed."""
    own = sorted((row for row in rows if row.method == method), key=lambda row: row.seed)
    return [row.errors[-1][DEGREES.index(degree)] for row in own]


def differences(rows: Sequence[Row], method: str, degree: int, baseline: str = "full") -> tuple[float, float]:
    """Return by how much more error of a degree a method ends with than the baseline, paired by seed: mean and half-width."""
    pairs = zip(last_errors(rows, method, degree), last_errors(rows, baseline, degree), strict=True)
    return interval([ours - theirs for ours, theirs in pairs])


def arrivals(rows: Sequence[Row], method: str, degree: int) -> str:
    """Say when a degree arrives: the mean over seeds, of those in which it does."""
    found = [row.arrival(degree) for row in rows if row.method == method]
    there = [at for at in found if at is not None]
    if not there:
        return "never"
    return f"{fmean(there):.2f}" + ("" if len(there) == len(found) else f" ({len(there)} of {len(found)})")


def write(rows: Sequence[Row], out: Path) -> None:
    """Tables and picture."""
    lines = ["# When each degree arrives", "", "```", f"python {command('theory.degrees')}", "```", ""]
    lines += [f"- date: {datetime.now(UTC):%Y-%m-%d}", f"- device: {device_name('cpu')}", f"- torch: {torch.__version__}", ""]
    head = ["method", *(f"degree {degree}" for degree in DEGREES)]
    tables: Mapping[str, Any] = {
        f"Share of the steps after which the error stays below {LEARNED}": lambda name, degree: arrivals(rows, name, degree),
        "Error at the end": lambda name, degree: "{:.3f} ± {:.3f}".format(*interval(last_errors(rows, name, degree))),
        "Error at the end, minus that of full, paired by seed": lambda name, degree: "{:+.3f} ± {:.3f}".format(
            *differences(rows, name, degree)
        ),
    }
    for title, cell in tables.items():
        lines += [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        shown = [name for name in METHODS if name != "full" or "minus" not in title]
        lines += [f"| {' | '.join([name, *(cell(name, degree) for degree in DEGREES)])} |" for name in shown]
        lines.append("")
    ran = ", ".join(f"{name} {fmean(row.layers[-1] for row in rows if row.method == name):.2f}" for name in METHODS)
    note = (
        f"Means over {len({row.seed for row in rows})} seeds, 95 % intervals of Student's t. Share of the layers that ran: {ran}."
    )
    lines += ["![Errors against steps](theory_degrees.png)", ""]
    lines += [textwrap.fill(f"{note} bench/theory/degrees.py says how it is measured.", 130), ""]
    draw_picture(rows, out / "theory_degrees.png")
    write_whole(out / "theory_degrees.md", "\n".join(lines))
    print("\n".join(lines))


def draw_picture(rows: Sequence[Row], file: Path) -> None:
    """Errors of every degree over training, a method each."""
    figure, axes = plt.subplots(1, len(METHODS), figsize=(14, 3.6), sharey=True)
    for axis, name in zip(axes, METHODS):
        own = [row for row in rows if row.method == name]
        for number, degree in enumerate(DEGREES):
            means = np.mean([[errors[number] for errors in row.errors] for row in own], axis=0)
            axis.plot(own[0].looks, means, color=plt.cm.viridis(number / len(DEGREES)), label=f"degree {degree}")
        axis.set(title=name, xlabel="step", yscale="log")
    axes[0].set_ylabel("error of the whole network")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
