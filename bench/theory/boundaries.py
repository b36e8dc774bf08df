"""Does the loss jump where paths become longer?

    python -m bench.theory.boundaries [--rows STUDY.rows.jsonl] [--baseline METHOD] [--out DIR]

Reads the committed rows of a study: no training. Two jumps at each stage boundary of each method that has stages, both against
the baseline of the same seed, which reads the same text in the same steps:

- of the training loss: the mean over the first steps of the new stage minus that over the last ones of the old, minus the same of
  the baseline. It is a loss of subnetworks, which become larger there, so that it should fall.
- of the held-out loss of all layers, which is the same network on both sides: its change from the last evaluation before the
  boundary to the first one after it, minus the baseline's. Learning goes on in between; what the baseline learns in the same
  steps is what stays without a jump.

Means over seeds, with 95 % intervals of Student's t.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.arguments import command
from bench.theory.degrees import interval
from pretrain.files import write_whole
from pretrain.study.row import Row, read_table

STUDY = Path("bench/studies/ul2_12_layers/study.rows.jsonl")


@dataclass(frozen=True)
class Jump:
    """One boundary of one method; means over seeds and half-widths of their intervals."""

    method: str
    step: int
    layers: tuple[int, int]
    trained: tuple[float, float]
    held_out: tuple[float, float]
    slope: float
    """The baseline's change of held-out loss over the same steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=STUDY)
    parser.add_argument("--baseline", default="full_4e3")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    rows = read_table(args.rows)
    seeds = {row.seed for row in rows if row.method == args.baseline}
    if len(seeds) < 2:
        parser.error(f"--baseline {args.baseline}: {len(seeds)} runs in {args.rows}; intervals need two seeds at least")
    found = jumps(rows, args.baseline)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ["# The loss where paths become longer", "", "```", f"python {command('theory.boundaries')}", "```", ""]
    lines += [f"- date: {datetime.now(UTC):%Y-%m-%d}", f"- rows: {args.rows}", f"- baseline: {args.baseline}", ""]
    lines += [*table(found), ""]
    write_whole(args.out / "theory_boundaries.md", "\n".join(lines))
    print("\n".join(lines))


def jumps(rows: Sequence[Row], baseline: str) -> list[Jump]:
    """Return every boundary of every method that has stages."""
    by_seed = {row.seed: row for row in rows if row.method == baseline}
    found = []
    for method in dict.fromkeys(row.method for row in rows if row.boundaries):
        own = [row for row in rows if row.method == method and row.seed in by_seed]
        for number, boundary in enumerate(own[0].boundaries):
            pairs = [(row, by_seed[row.seed]) for row in own]
            trained = [_trained(row, boundary.step) - _trained(base, boundary.step) for row, base in pairs]
            slopes = [_held_out(base, boundary.step) for _, base in pairs]
            held_out = [_held_out(row, boundary.step) - slope for (row, _), slope in zip(pairs, slopes)]
            layers = boundary.layers_before, boundary.layers_after
            assert all(row.boundaries[number].step == boundary.step for row in own), "one schedule for all seeds"
            slope = sum(slopes) / len(slopes)
            found.append(Jump(method, boundary.step, layers, interval(trained), interval(held_out), slope))
    return found


def _trained(row: Row, first: int) -> float:
    """The training loss after a boundary minus that before: means of the stretches of steps on either side."""
    assert any(last == first - 1 for last, _ in row.training), "a stretch ends where the stage does"
    before = [loss for last, loss in row.training if last < first]
    after = [loss for last, loss in row.training if last >= first]
    return after[0] - before[-1]


def _held_out(row: Row, first: int) -> float:
    """The held-out loss at the first evaluation after a boundary minus that at the last one before."""
    before = [at.loss for at in row.evaluations if at.step < first]
    after = [at.loss for at in row.evaluations if at.step >= first]
    return after[0] - before[-1]


def table(found: Sequence[Jump]) -> list[str]:
    """Lines of Markdown."""
    head = "method", "layers", "first step", "jump of the training loss", "of the held-out loss", "the baseline's change there"
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for jump in found:
        trained, held_out = ("{:+.3f} ± {:.3f}".format(*one) for one in (jump.trained, jump.held_out))
        layers = f"{jump.layers[0]} to {jump.layers[1]}"
        lines.append(f"| `{jump.method}` | {layers} | {jump.step} | {trained} | {held_out} | {jump.slope:+.3f} |")
    return lines


if __name__ == "__main__":
    main()
