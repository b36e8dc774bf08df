"""How much does a layer that is left out change what a linear residual network says, and how far below the bound is its loss?

    python -m bench.theory.linear [--depths 4 8 16 32 64 128] [--seeds 3] [--steps 200] [--out DIR]

The network is y_l = y_(l-1) + W_l y_(l-1), each entry of W_l normal with variance 1 / width; what it says is the direction of
y_L. The loss is half the squared distance to a teacher's direction, which another direction d away changes by d at most: that is
the bound. What d is to be expected at initialisation follows from squared norms, as branches of random weights are orthogonal to
what they are added to, in matrices that are far wider than the network is deep (`expected`):

- with norms before branches, |y_l|^2 = 1 + l; leaving out layer l of L takes a branch of squared norm 1 from there on, and every
  later layer adds the cosine of both streams to their product: about 1 / sqrt(l), 2 / sqrt(L) as a mean over layers
- without norms |y_l|^2 = 2^l, and any layer left out moves the direction by sqrt(2 - sqrt(2)), whatever the depth
- without norms and with weights over sqrt(L), 1 / sqrt(L)
- without residual connections sqrt(2): two directions that have nothing to do with each other

It is held against networks at initialisation, and after training on the teacher, on samples that were not trained on.
"""

import argparse
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from bench.arguments import command, positive
from bench.theory.stability import WHEN, exponent
from pretrain.files import write_whole
from pretrain.versions import device_name

WIDTH, SAMPLES, HELD_OUT, RATE = 64, 128, 512, 1e-3
KINDS = ("norms", "no norms", "no norms, weights over sqrt(L)", "no residual connections")


@dataclass(frozen=True)
class Row:
    """One network, before or after training; means over layers and samples."""

    kind: str
    depth: int
    seed: int
    when: str
    loss: float
    change: float
    """Distance between the directions with all layers and without one: the bound on the loss's change."""
    gap: float
    """Size of the loss's change."""
    expected: float
    """What `change` should be at initialisation."""


class Linear(nn.Module):
    """A linear residual network of one of KINDS."""

    def __init__(self, kind: str, depth: int, seed: int) -> None:
        super().__init__()
        size = 1 / math.sqrt(WIDTH * (depth if kind == KINDS[2] else 1))
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH, generator=generator) * size for _ in range(depth))

    def forward(self, x: Tensor, without: int | None = None) -> Tensor:
        """Return directions, [n, width]; x is [n, width]."""
        for number, weight in enumerate(self.weights):
            if number != without:
                branch = (nn.functional.rms_norm(x, (WIDTH,)) if self.kind == KINDS[0] else x) @ weight.T
                x = branch if self.kind == KINDS[3] else x + branch
        return nn.functional.normalize(x, dim=-1)


def expected(kind: str, depth: int, layer: int) -> float:
    """Return the distance between the directions with all layers and without layer 1 .. depth, at initialisation."""
    if kind == KINDS[0]:
        product = float(layer)  # of both streams behind the layer, of squared norms layer + 1 and layer
        for at in range(layer, depth):
            product += product / math.sqrt(at * (at + 1))  # a later layer adds the directions' cosine
        cosine = product / math.sqrt(depth * (depth + 1))
    elif kind == KINDS[3]:
        cosine = 0.0
    else:
        cosine = 1 / math.sqrt(1 + (1 if kind == KINDS[1] else 1 / depth))
    return math.sqrt(2 - 2 * cosine)


class Teacher:
    """Directions of a random linear map."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(10_000 + seed)
        self.map = torch.randn(WIDTH, WIDTH, generator=self.generator) / math.sqrt(WIDTH)

    def samples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs, whose entries have variance 1, and what is to be said."""
        x = torch.randn(count, WIDTH, generator=self.generator)
        return x, nn.functional.normalize(x @ self.map.T, dim=-1)


def loss_of(said: Tensor, right: Tensor) -> Tensor:
    """Half the mean squared distance of directions."""
    return 1 - (said * right).sum(-1).mean()


def measure(kind: str, depth: int, seed: int, steps: int) -> list[Row]:
    """Return a row of a network before training, and one after."""
    network, teacher = Linear(kind, depth, seed), Teacher(seed)
    held_out = teacher.samples(HELD_OUT)
    layers = range(depth)
    wanted = fmean(expected(kind, depth, layer + 1) for layer in layers)
    rows = []
    for when in WHEN:
        if when == WHEN[1]:
            adam = torch.optim.Adam(network.parameters(), RATE)
            for _ in range(steps):
                x, right = teacher.samples(SAMPLES)
                adam.zero_grad()
                loss_of(network(x), right).backward()
                adam.step()
        with torch.no_grad():
            x, right = held_out
            whole = network(x)
            loss, parts = loss_of(whole, right).item(), [network(x, layer) for layer in layers]
            change = fmean((whole - part).norm(dim=-1).mean().item() for part in parts)
            gap = fmean(abs(loss_of(part, right).item() - loss) for part in parts)
        rows.append(Row(kind, depth, seed, when, loss, change, gap, wanted))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=positive, nargs="+", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for kind in KINDS
        for depth in args.depths
        for seed in range(args.seeds)
        for row in measure(kind, depth, seed, args.steps)
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    write(rows, args.out)


def fitted(rows: Sequence[Row], what: str) -> str:
    """Say which power of the depth fits, with its 95 % interval."""
    found = exponent([row.depth for row in rows], [getattr(row, what) for row in rows])
    return "–" if found is None else f"{found[0]:+.2f} ± {found[1]:.2f}"


def share_of_bound(rows: Sequence[Row]) -> str:
    """Say how much of its bound the loss's change is, on average; nothing where training has ruined a network."""
    known = [row.gap / row.change for row in rows if row.change > 0]
    return f"{fmean(known):.2f}" if len(known) == len(rows) else "–"


def write(rows: Sequence[Row], out: Path) -> None:
    """Rows, table and picture."""
    write_whole(out / "theory_linear.rows.jsonl", "".join(json.dumps(vars(row)) + "\n" for row in rows))
    depths = sorted({row.depth for row in rows})
    lines = ["# Leaving out one layer of a linear residual network", "", "```", f"python {command('theory.linear')}", "```", ""]
    lines += [f"- date: {datetime.now(UTC):%Y-%m-%d}", f"- device: {device_name('cpu')}", f"- torch: {torch.__version__}"]
    lines += [f"- width {WIDTH}, {depths[0]} to {depths[-1]} layers, each left out, one at a time", ""]
    head = [
        "network",
        "",
        f"change of direction, {depths[0]} and {depths[-1]} layers",
        "measured over expected",
        "exponent of the depth: change",
        "exponent: loss",
        "loss's change over its bound",
    ]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind in KINDS:
        for when in WHEN:
            own = [row for row in rows if (row.kind, row.when) == (kind, when)]
            ends = [fmean(row.change for row in own if row.depth == depth) for depth in (depths[0], depths[-1])]
            ratios = [row.change / row.expected for row in own]
            cells = [
                kind,
                when,
                "{:.3g} and {:.3g}".format(*ends),
                f"{min(ratios):.2f} to {max(ratios):.2f}" if when == WHEN[0] else "",
                fitted(own, "change"),
                fitted(own, "gap"),
                share_of_bound(own),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "![Change of direction against depth](theory_linear.png)", ""]
    lines += [textwrap.fill("Exponents with 95 % intervals. bench/theory/linear.py says what is expected and why.", 130), ""]
    draw(rows, depths, out / "theory_linear.png")
    write_whole(out / "theory_linear.md", "\n".join(lines))
    print("\n".join(lines))


def draw(rows: Sequence[Row], depths: Sequence[int], file: Path) -> None:
    """The change of direction and of the loss, on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, when in zip(axes, WHEN):
        for number, kind in enumerate(KINDS):
            own = [[row for row in rows if (row.kind, row.when, row.depth) == (kind, when, depth)] for depth in depths]
            axis.plot(depths, [fmean(row.change for row in of) for of in own], "o-", color=f"C{number}", label=kind)
            axis.plot(depths, [fmean(row.gap for row in of) for of in own], "s:", color=f"C{number}", markersize=3)
            if when == WHEN[0]:
                axis.plot(depths, [fmean(row.expected for row in of) for of in own], "k--", linewidth=0.8)
        axis.set(title=when, xlabel="layers", xscale="log", yscale="log")
        axis.set_xticks(depths, [str(depth) for depth in depths])
    axes[0].set_ylabel("change of direction (dotted: of the loss; dashed: expected)")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
