"""`evaluate`: how well a model does at tasks, from a checkpoint, alone or under torchrun on any layout."""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain import progress
from pretrain.cli.arguments import quiet_argument, require_nothing_else
from pretrain.errors import UserError
from pretrain.place import find_place
from tokenizer.pieces import MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from pretrain.evaluate.catalogue import Task
    from pretrain.evaluate.contamination import Overlap
    from pretrain.evaluate.load import Loaded
    from pretrain.evaluate.measure import Asking
    from pretrain.evaluate.rows import Difference, EvalRow
    from pretrain.ranks.process import Ranks

HELP = "how well a model does at tasks"
COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_per_byte": "per byte",
    "greedy": "greedy",
    "bits_per_byte": "bits a byte",
    "exact_match": "exact match",
    "f1": "F1",
}
"""Metrics, and what they are called on a screen."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run directory, or a checkpoint's folder")
    parser.add_argument("--list", action="store_true", help="say which tasks there are, and where people get their data")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tiny, small, paper, names, or files (.yaml); tiny")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the tasks' data; docs/tasks.md")
    parser.add_argument("--limit", type=int, metavar="N", help="most documents of a task, drawn by --seed")
    parser.add_argument("--shots", type=int, default=0, help="answered examples before each document; 0")
    parser.add_argument("--seed", type=int, default=1, help="of documents and examples; 1")
    parser.add_argument("--attention", choices=("prefix", "causal"), help="how contexts are read; as in training, unless given")
    parser.add_argument("--mode", choices=(*MODES, "none"), help="token before each context; as in training, unless given")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write a row for each task, and FILE.npz with all scores")
    parser.add_argument("--contamination", action="store_true", help="look documents up in the text that the run trained on")
    parser.add_argument("--against", type=Path, metavar="FILE.jsonl", help="what --out wrote of another: show differences")
    quiet_argument(parser)
    for name in ("tensor", "pipeline", "virtual"):
        parser.add_argument(f"--parallel.{name}", dest=name, type=int, default=1, metavar="RANKS")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    place = find_place(os.environ)
    os.environ.update(place.environment)
    from pretrain.ranks.device import device_type
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries(device_type(args.device))
    from pretrain.evaluate.catalogue import catalogue, choose, lacking

    known = catalogue(None, args.data)
    if args.list:
        _list(args)
        return 0
    _require_sensible(args)
    choose([word for word in args.tasks or () if not word.startswith("held_out")], known, args.data)  # before a model is built
    from pretrain.config.recipe import Parallel
    from pretrain.evaluate.ask import ask, with_seen
    from pretrain.evaluate.load import loaded
    from pretrain.evaluate.measure import Asking, as_trained
    from pretrain.evaluate.rows import EvalRow, differences, read_written, scores_file, write_rows
    from pretrain.ranks.launch import join

    layout = Parallel(tensor=args.tensor, pipeline=args.pipeline, virtual=args.virtual)
    with ExitStack() as stack:
        ranks = stack.enter_context(join(args.device, place, Path.cwd()))
        other = None if args.against is None else ranks.on_main(lambda: read_written(args.against))  # before it takes long
        model = stack.enter_context(loaded(args.run, layout, ranks))
        attention, mode = as_trained(model.run.recipe.data)
        if args.mode is not None:
            mode = None if args.mode == "none" else args.mode
        asking = Asking(args.limit, args.seed, args.shots, args.attention or attention, mode)
        with ranks.all_or_none():
            known = catalogue(model.run, args.data)
            tasks = choose(args.tasks or ["tiny"], known, args.data)
        if ranks.is_main and (missing := lacking(args.tasks or ["tiny"], known)):
            print(f"without data, so left out: {', '.join(missing)}; --list says where to get it", flush=True)
        if not tasks:
            raise UserError(f"--tasks {' '.join(args.tasks)}: there is no data for any of it; --list says where to get it")
        seen = _seen(model, tasks, asking, ranks) if args.contamination else {}
        part = None if args.out is None else args.out.with_name(f"part_{args.out.name}")
        rows, outcomes = list[EvalRow](), {}
        for number, task in enumerate(tasks, start=1):
            try:
                with progress.titled(f"{task.name}, {number} of {len(tasks)}"):
                    row, outcome = ask(model, task, asking, ranks)
            except UserError as error:
                raise UserError(f"{error}; rows of the tasks before it are in {part}" if rows and part else str(error)) from None
            if task.name in seen and outcome is not None:
                row = with_seen(row, outcome, seen[task.name])
            rows.append(row)
            if outcome is not None:
                outcomes[task.name] = outcome
            if part is not None:
                ranks.on_main(lambda: write_rows(part, rows, outcomes))  # so that nothing is lost if a later task fails
        if part is not None:
            ranks.on_main(lambda: (scores_file(part).replace(scores_file(args.out)), part.replace(args.out)))
        if ranks.is_main:
            examples = ", ".join(dict.fromkeys(row.examples for row in rows if row.examples))
            shots = f"{args.shots} shots{f' of {examples}' if examples else ''}"
            _show(rows, f"{model.folder}, {rows[0].precision}, {asking.attention} attention, mode {mode}, {shots}")
        if other is not None and outcomes:
            found = ranks.on_main(lambda: differences(rows, outcomes, other))
            if ranks.is_main:
                _show_differences(found, args.against)
        if not outcomes:
            raise UserError(
                f"evaluate: every document of {', '.join(task.name for task in tasks)} is longer than the model's"
                f" {model.run.recipe.data.sequence_length} positions; take fewer --shots, or other tasks"
            )
    return 0


def _seen(model: "Loaded", tasks: "Sequence[Task]", asking: "Asking", ranks: "Ranks") -> "dict[str, Overlap]":
    """Look the documents of all tasks up in the training text."""
    from pretrain.data.loader import streams_of
    from pretrain.evaluate.catalogue import FromData
    from pretrain.evaluate.contamination import Search

    def texts() -> dict[str, dict[int, str]]:
        return {task.name: task.questions.texts(asking) for task in tasks if isinstance(task.questions, FromData)}

    with ranks.all_or_none():
        streams = [train for train, _ in streams_of(model.run).values()]
        search = Search(texts() if ranks.is_main else {}, streams, model.tokenizer)
    while ranks.on_main(search.go_on):  # a little at a time: whoever waits for too long is given up
        pass
    return ranks.on_main(lambda: {task: search.found(task) for task in search.tasks})


def _require_sensible(args: argparse.Namespace) -> None:
    if args.run is None:
        raise UserError("evaluate: name a run directory or a checkpoint, before --tasks; --list says which tasks there are")
    for name, value, least in (
        ("limit", args.limit, 1),
        ("shots", args.shots, 0),
        ("parallel.tensor", args.tensor, 1),
        ("parallel.pipeline", args.pipeline, 1),
        ("parallel.virtual", args.virtual, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: at least {least}")
    if args.out is not None and (args.out.is_dir() or not args.out.absolute().parent.is_dir()):
        raise UserError(f"--out {args.out}: name a file in a folder that is there")
    if args.out is not None and not os.access(args.out.absolute().parent, os.W_OK):
        raise UserError(f"--out {args.out}: nothing can be written into that folder")
    if args.against is not None and not args.against.is_file():
        raise UserError(f"--against {args.against}: no such file; --out writes one")
    if None not in (args.out, args.against) and args.out.resolve() == args.against.resolve():
        raise UserError(f"--out {args.out}: would take the place of what --against compares with; name another file")
    if args.out is not None and args.out.suffix != ".jsonl":
        raise UserError(f"--out {args.out}: rows are JSON lines; name a file that ends in .jsonl")


def _list(args: argparse.Namespace) -> None:
    from pretrain.checkpoint.find import newest_of, run_of
    from pretrain.evaluate.catalogue import catalogue, file_task, lack_of

    data: Path | None = args.data
    tasks = catalogue(None if args.run is None else run_of(*newest_of(args.run)), data)
    for word in args.tasks or ():
        if word.endswith((".yaml", ".yml")):
            tasks[word] = file_task(Path(word).stem, Path(word), data)
    for task in tasks.values():
        tiers = " ".join(task.tiers) or "in no tier"
        chance = "" if task.chance is None else f"; {task.metric}, chance {task.chance:.0%}"
        print(f"{task.name} ({tiers}): {task.about}{chance}")
        print(f"    {f'in {task.file}. ' if task.file else ''}{task.origin}" if task.questions else f"    {lack_of(task, data)}")


def _show(rows: "list[EvalRow]", title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", caption="half of the 95 % interval, then the mean")
    shown = [name for name in COLUMNS if any(name in row.metrics for row in rows)]
    looked = any(row.seen for row in rows)
    for column in ("task", "chance", *(COLUMNS[name] for name in shown), "documents", "too long", *["seen"] * looked):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=column == "task")
    for row in rows:
        cells = [_cell(row, name) for name in shown]
        chance = "–" if row.chance is None else f"{row.chance:.3f}"
        seen = [] if not looked else ["–" if row.seen is None else str(row.seen.documents)]
        table.add_row(row.task, chance, *cells, str(row.documents), str(row.skipped), *seen)
    _print(table)


def _show_differences(found: "list[Difference]", other: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"minus {other}, of these two checkpoints"), title_justify="left", title_style="bold")
    for column in ("task", "metric", "difference", "95 %"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", no_wrap=True)
    for one in found:
        half = one.half_width
        between = "–" if half is None else f"{one.mean - half:+.3f} to {one.mean + half:+.3f}"
        table.add_row(one.task, COLUMNS[one.metric], f"{one.mean:+.3f}", between)
    _print(table)


def _print(table: "Table") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=130)).print(table)


def _cell(row: "EvalRow", metric: str) -> str:
    """How little is known of a number comes before the number."""
    if metric not in row.metrics:
        return "–"
    half = row.half_width(metric)
    return f"{'' if half is None else f'± {half:.3f}  '}{row.metrics[metric].mean:.3f}"
