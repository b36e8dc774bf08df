"""`evaluate`: how well a model does at tasks, from a checkpoint, alone or under torchrun on any layout."""

import argparse
import json
import os
from pathlib import Path

from pretrain.cli.arguments import require_nothing_else
from pretrain.errors import UserError
from pretrain.files import write_whole
from pretrain.place import find_place
from tokenizer.pieces import MODES

HELP = "how well a model does at tasks"
METRICS = ("accuracy", "greedy", "bits_per_byte")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run directory, or a checkpoint's folder")
    parser.add_argument("--list", action="store_true", help="say which tasks there are")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="all, unless given")
    parser.add_argument("--documents", type=int, default=500, help="of each task; 500")
    parser.add_argument("--shots", type=int, default=0, help="answered examples before each document; 0")
    parser.add_argument("--seed", type=int, default=1, help="of the documents; 1")
    parser.add_argument("--attention", choices=("prefix", "causal"), help="how contexts are read; as in training, unless given")
    parser.add_argument("--mode", choices=(*MODES, "none"), help="token before each context; as in training, unless given")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON line for each task")
    for name in ("tensor", "pipeline", "virtual"):
        parser.add_argument(f"--parallel.{name}", dest=name, type=int, default=1, metavar="RANKS")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    place = find_place(os.environ)
    os.environ.update(place.environment)
    from pretrain.ranks.device import device_type
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries(device_type(args.device))
    from pretrain.evaluate.tasks import TASKS

    if args.list:
        for name, task in TASKS.items():
            print(f"{name:<24} {task.about}; chance {task.chance:.0%}; generated, no data needed")
        return 0
    _require_sensible(args, list(TASKS))
    from pretrain.config.recipe import Parallel
    from pretrain.evaluate.load import loaded
    from pretrain.evaluate.tasks import Asking, as_trained, measure
    from pretrain.ranks.launch import join

    layout, rows = Parallel(tensor=args.tensor, pipeline=args.pipeline, virtual=args.virtual), []
    with join(args.device, place, Path.cwd()) as ranks, loaded(args.run, layout, ranks) as model:
        data, precision = model.run.recipe.data, "bf16" if model.run.ds.bf16.enabled else "fp32"
        attention, mode = as_trained(data)
        if args.mode is not None:
            mode = None if args.mode == "none" else args.mode
        asking = Asking(args.documents, args.seed, args.shots, args.attention or attention, mode)
        told = {"checkpoint": str(model.folder), "step": model.step, "precision": precision, **vars(asking)}
        for name in dict.fromkeys(args.tasks or TASKS):
            found = measure(model.engine, model.tokenizer, name, asking, data.sequence_length)
            metrics = {"accuracy": vars(found.accuracy), "greedy": vars(found.greedy), "bits_per_byte": vars(found.bits)}
            rows.append({"task": name, **told, "chance": TASKS[name].chance, "skipped": found.skipped, **metrics})
        if ranks.is_main:
            _show(rows, f"{model.folder}, {precision}, {asking.attention} attention, mode {mode}, {asking.shots} shots")
            if args.out is not None:
                write_whole(args.out, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return 0


def _require_sensible(args: argparse.Namespace, known: list[str]) -> None:
    if args.run is None:
        raise UserError("evaluate: name a run directory or a checkpoint, before --tasks; --list says which tasks there are")
    for name in args.tasks or ():
        if name not in known:
            raise UserError(f"--tasks {name}: known are {', '.join(known)}")
    for name, value, least in (
        ("documents", args.documents, 1),
        ("shots", args.shots, 0),
        ("parallel.tensor", args.tensor, 1),
        ("parallel.pipeline", args.pipeline, 1),
        ("parallel.virtual", args.virtual, 1),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: at least {least}")
    if args.out is not None and (args.out.is_dir() or not args.out.absolute().parent.is_dir()):
        raise UserError(f"--out {args.out}: name a file in a folder that is there")


def _show(rows: list[dict], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for column in ("task", "accuracy", "± 95 %", "chance", "greedy", "± 95 %", "bits a byte", "± 95 %", "documents", "too long"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in rows:
        right, greedy, bits = ([_short(row[name]["mean"]), _half(row[name]["error"])] for name in METRICS)
        counts = str(row["accuracy"]["documents"]), str(row["skipped"])
        table.add_row(row["task"], *right, _short(row["chance"]), *greedy, *bits, *counts)
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=130)).print(table)


def _half(error: float | None) -> str:
    """Half of the interval that a standard error gives."""
    return "–" if error is None else _short(1.96 * error)


def _short(number: float) -> str:
    return f"{number:.3f}"
