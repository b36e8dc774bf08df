"""`report`: one page that compares runs."""

import argparse
import math
from pathlib import Path

from rich.console import Console

from pretrain.cli.arguments import require_nothing_else
from pretrain.config.strict import COMMAND_LINE
from pretrain.errors import UserError

HELP = "one page that compares runs"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="studies, files of rows, or run directories")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="folder for index.html and the pictures")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="that the others are compared with; default: the study's; full; the first"
    )
    parser.add_argument(
        "--half-width",
        type=float,
        metavar="NATS",
        help="print how many seeds give differences from the baseline a 95 %% interval of this to either side",
    )


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.study.gather import gather, gather_evals
    from pretrain.study.page import baseline_of, write_page
    from pretrain.study.power import needs, needs_table
    from pretrain.study.statistics import grouped

    wanted = args.half_width
    if wanted is not None and not (math.isfinite(wanted) and wanted > 0):
        raise UserError(f"{COMMAND_LINE}: --half-width {wanted:g}: give nats above 0, as 0.03")
    rows, baseline = gather(args.runs)
    if args.baseline is None and baseline not in {row.method for row in rows}:
        if baseline is not None:
            print(f"no run of the study's baseline, {baseline}, is done yet")
        baseline = None
    print(write_page(rows, args.out, args.baseline or baseline, gather_evals(args.runs)))
    for groups in grouped(rows).values() if wanted is not None else ():
        Console(width=120, highlight=False).print(
            needs_table(needs(groups, baseline_of(groups, args.baseline or baseline), wanted), wanted)
        )
    return 0
