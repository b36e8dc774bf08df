"""Does a layer of which half of the width runs take half of its time?

    python -m bench.width_speed [--rounds N] [--out DIR] [options of train, as --model.hidden_size 768]

Forward and backward passes through all layers with half of the groups of heads, half of the feed-forward columns, and half of
both, over those with everything, divided by the ratio of their operations; 1 is perfect. Rounds interleave them, and change their
order and what is drawn; medians of ratios within a round are reported.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.arguments import command, positive
from bench.path_speed import HOME, facts, random_batch, timed
from pretrain.config import Run, read_run
from pretrain.config.command_line import option_pairs
from pretrain.errors import UserError
from pretrain.place import find_place
from pretrain.ranks.device import device_type
from pretrain.ranks.launch import join, launch
from pretrain.ranks.libraries import prepare_libraries
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.width import COLUMNS, GROUPS, Blocks, Width

BAR = 1.08
"""Largest ratio of measured to ideal that is good enough."""
BLOCKS = 8
"""Blocks of feed-forward columns."""
KINDS = {"half the heads": (True, False), "half the columns": (False, True), "half of both": (True, True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=positive, metavar="N", default=16)
    parser.add_argument("--out", type=Path, default=HOME / "results")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    args, rest = parser.parse_known_args()
    place = find_place(os.environ)
    os.environ.update(place.environment)
    try:
        run = read_run(str(HOME / "path_speed.yaml"), option_pairs(rest), str(HOME / "path_speed.json"), place.world_size)
    except UserError as error:
        sys.exit(f"error: {error}")
    prepare_libraries(device_type(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    with join(args.device, place, args.out) as ranks, launch(run.recipe, ranks):
        found = measure(run, ranks, args.rounds)
        if ranks.is_main:
            known = {**facts(run, ranks, run.recipe.model.num_layers, args.rounds), "command": command("width_speed")}
            write(known, found, args.out)


@dataclass(frozen=True)
class Part:
    """What half of the width took."""

    measured: float
    """Over the time of everything."""
    ideal: float
    """By operations."""


def measure(run: Run, ranks: Ranks, rounds: int) -> dict[str, Part]:
    """Time all kinds in interleaved rounds, after two that do not count."""
    from pretrain.engine import build_engine
    from pretrain.engine.micro_batch import MicroBatch

    engine, layers, groups = build_engine(run, ranks), run.recipe.model.num_layers, run.recipe.model.groups
    tensor = run.recipe.parallel.tensor
    batches = [random_batch(run, index) for index in range(run.micro_batches)]
    heads, columns = Blocks(groups // 2, groups, tensor, 0), Blocks(BLOCKS // 2, BLOCKS, tensor, 0)

    def path(of_heads: bool, of_columns: bool, step: int) -> LayerPath:
        widths = tuple(
            Width(
                heads.draw(GROUPS, 0, step, 0, layer) if of_heads else None,
                columns.draw(COLUMNS, 0, step, 0, layer) if of_columns else None,
            )
            for layer in range(layers)
        )
        return LayerPath((True,) * layers, (1.0,) * layers, widths if of_heads or of_columns else None)

    def forward_backward(through: LayerPath) -> None:
        engine.forward_backward([MicroBatch(batch, through) for batch in batches], scale=1e-6)

    seconds: dict[str, list[float]] = {name: [] for name in ("everything", *KINDS)}
    for index in range(-2, rounds):
        for name in list(seconds) if index % 2 else list(reversed(seconds)):
            through = path(*KINDS.get(name, (False, False)), index + 3)
            took = timed(partial(forward_backward, through), ranks.device)
            engine.model.zero_grad(set_to_none=True)
            if index >= 0:
                seconds[name].append(took)
    shape = run.recipe.shape

    def part(name: str) -> Part:
        ideal = shape.training(shape.layers_of(path(*KINDS[name], 1))) / shape.training(layers)
        return Part(median(a / b for a, b in zip(seconds[name], seconds["everything"])), ideal)

    return {name: part(name) for name in KINDS}


def write(known: dict[str, object], found: dict[str, Part], out: Path) -> None:
    """Table, as a file and on the console."""
    lines = ["# Width speed", "", "```", f"python {known['command']}", "```", ""]
    lines += [*(f"- {key}: {value}" for key, value in known.items() if key != "command"), ""]
    lines += [
        "| what runs of every layer | over everything | by operations | measured over ideal | at most |",
        "|---|---|---|---|---|",
    ]
    for name, part in found.items():
        lines.append(f"| {name} | {part.measured:.3f} | {part.ideal:.3f} | {part.measured / part.ideal:.3f} | {BAR} |")
    lines += ["", "Medians of ratios within a round, forward and backward; bench/width_speed.py says how it is measured.", ""]
    (out / "width_speed.md").write_text("\n".join(lines))
    rows = {name: vars(part) for name, part in found.items()}
    (out / "width_speed.json").write_text(json.dumps({"facts": known, "rows": rows}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
