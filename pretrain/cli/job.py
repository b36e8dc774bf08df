"""`job`: what slurm/common.sh says and asks at the start and the end of a job."""

import argparse
import os
from pathlib import Path

from pretrain.cli.arguments import require_nothing_else
from pretrain.job import log

HELP = "for slurm/common.sh: the start or the end of a job"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("start", "end"))
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--code", type=int, default=0, help="of the launcher")
    parser.add_argument("--signal", choices=("USR1", "TERM"), action="append", default=[], help="that the batch script received")
    parser.add_argument(
        "--most-failures",
        type=int,
        default=3,
        metavar="N",
        help="starts in a row without a new checkpoint, after which the job gives up",
    )


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    if args.what == "start":
        decision = log.started(args.run, dict(os.environ), args.most_failures)
        return 0 if decision is None else log.EXIT_CODES[decision.exit_code]
    decision = log.ended(args.run, dict(os.environ), args.code, tuple(args.signal), args.most_failures)
    return log.QUEUE_AGAIN if decision.requeue else log.EXIT_CODES[decision.exit_code]
