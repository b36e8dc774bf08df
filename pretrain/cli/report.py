"""`report`: one page that compares runs."""

import argparse
from pathlib import Path

from pretrain.cli.arguments import require_nothing_else

HELP = "one page that compares runs"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="studies, files of rows, or run directories")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="folder for index.html and the pictures")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="that the others are compared with; default: the study's; full; the first"
    )


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.study.gather import gather, gather_evals
    from pretrain.study.page import write_page

    rows, baseline = gather(args.runs)
    if args.baseline is None and baseline not in {row.method for row in rows}:
        if baseline is not None:
            print(f"no run of the study's baseline, {baseline}, is done yet")
        baseline = None
    print(write_page(rows, args.out, args.baseline or baseline, gather_evals(args.runs)))
    return 0
