"""Does a layer of which half of the width runs take half of its time?

    python -m bench.width_speed [--rounds N] [--out DIR] [options of train, as --model.hidden_size 768]

Forward and backward passes through all layers with half of the groups of heads, half of the feed-forward columns, half of both,
and everything, of a model that is cut for it, over those of the model in one piece, divided by the ratio of their operations; 1
is perfect. Rounds interleave them, and change their order and what is drawn; medians of ratios within a round are reported.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from bench.arguments import command
from bench.path_speed import facts, random_batch, start, timed
from pretrain.config import Run
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.methods.parts import RaptrPartsKeys
from pretrain.subnetwork.width import COLUMNS, GROUPS, Blocks, Width

BAR = 1.08
"""Largest ratio of measured to ideal that is good enough."""
BLOCKS = 8
"""Blocks of feed-forward columns."""
KINDS = {
    "half the heads": (True, False),
    "half the columns": (False, True),
    "half of both": (True, True),
    "everything, in blocks": (False, False),
}


def main() -> None:
    def work(run: Run, ranks: Ranks, rounds: int, out: Path) -> None:
        found = measure(run, ranks, rounds)
        if ranks.is_main:
            known = {**facts(run, ranks, run.recipe.model.num_layers, rounds), "command": command("width_speed")}
            write(known, found, out)

    start(__doc__, 16, work)


@dataclass(frozen=True)
class Part:
    """What half of the width took."""

    measured: float
    """Over the time of the model in one piece."""
    ideal: float
    """By operations."""


def measure(run: Run, ranks: Ranks, rounds: int) -> dict[str, Part]:
    """Time all kinds in interleaved rounds, after two that do not count."""
    from pretrain.engine import Engine, build_engine
    from pretrain.engine.micro_batch import MicroBatch

    layers, groups, tensor = run.recipe.model.num_layers, run.recipe.model.groups, run.recipe.parallel.tensor
    keys = RaptrPartsKeys(
        path_lengths=(layers, layers), group_lengths=(groups // 2, groups), ffn_lengths=(BLOCKS // 2, BLOCKS), width_parts=tensor
    )
    in_blocks = replace(run, ds=run.ds.model_copy(update={"progressive_subnetwork": keys}))
    whole, engine = build_engine(run, ranks), build_engine(in_blocks, ranks)
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

    def forward_backward(engine: Engine, through: LayerPath) -> None:
        engine.forward_backward([MicroBatch(batch, through) for batch in batches], scale=1e-6)

    seconds: dict[str, list[float]] = {name: [] for name in ("one piece", *KINDS)}
    for index in range(-2, rounds):
        for name in list(seconds) if index % 2 else list(reversed(seconds)):
            through = path(*KINDS.get(name, (False, False)), index + 3)
            took = timed(partial(forward_backward, engine if name in KINDS else whole, through), ranks.device)
            if index >= 0:
                seconds[name].append(took)
    shape = run.recipe.shape

    def part(name: str) -> Part:
        ideal = shape.training(shape.layers_of(path(*KINDS[name], 1))) / shape.training(layers)
        return Part(median(a / b for a, b in zip(seconds[name], seconds["one piece"])), ideal)

    return {name: part(name) for name in KINDS}


def write(known: dict[str, object], found: dict[str, Part], out: Path) -> None:
    """Table, as a file and on the console."""
    lines = ["# Width speed", "", "```", f"python {known['command']}", "```", ""]
    lines += [*(f"- {key}: {value}" for key, value in known.items() if key != "command"), ""]
    lines += [
        "| what runs of every layer | over the model in one piece | by operations | measured over ideal | at most |",
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
