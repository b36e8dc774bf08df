"""`status`: where runs stand."""

import argparse
from pathlib import Path

from pretrain.cli.arguments import require_nothing_else

HELP = "where runs stand"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    from pretrain.job.status import print_status  # rich takes a while to load

    print_status(args.runs)
    return 0
