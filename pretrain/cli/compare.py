"""`compare`: do the runs of a study that are missing."""

import argparse
from pathlib import Path

from pretrain.cli.arguments import SETTINGS, device_argument
from pretrain.config.command_line import option_pairs
from pretrain.config.strict import COMMAND_LINE
from pretrain.errors import UserError

HELP, EPILOG = "do the runs of a study that are missing", SETTINGS
OPTIONS = ("runs", "jobs", "slurm", "device")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="methods x seeds x sizes; docs/compare.md")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder for its runs; default: runs/NAME")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time on this machine; 1")
    parser.add_argument("--slurm", metavar="'SBATCH OPTIONS'", help="submit one array instead; '' for the script's own options")
    device_argument(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"{COMMAND_LINE}: --jobs {args.jobs}: must be at least 1")
    if args.jobs is not None and args.slurm is not None:
        raise UserError(f"{COMMAND_LINE}: --jobs {args.jobs}: is for this machine; with --slurm, SLURM decides")
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.study.compare import open_bench
    from pretrain.study.evals import asked_of, evaluate_here, require_askable
    from pretrain.study.local import RunsFailed, run_here
    from pretrain.study.plan import read_study
    from pretrain.study.slurm import submit

    study = read_study(args.study, option_pairs(rest, OPTIONS))
    require_askable(study)
    with open_bench(study, args.runs or Path("runs") / study.name) as bench:
        bench.collect_finished()
        done, runs = len(study.planned) - len(bench.missing), bench.runs.absolute()
        print(
            f"{study.name}: {done} of {len(study.planned)} runs are done; rows in {study.rows_file}, runs in {runs}", flush=True
        )
        if args.slurm is not None:
            if bench.missing:
                submit(bench, args.slurm, args.device)
            if waiting := sum(not asked.out.exists() for asked in asked_of(bench)):
                print(f"{waiting} evaluations of runs that have finished are missing; the same command without --slurm does them")
            return 0
        failure = None
        if bench.missing:
            try:
                run_here(bench, args.jobs or 1, args.device)
            except RunsFailed as failed:  # the others are put to tasks all the same
                failure = failed
        evaluate_here(bench, args.jobs or 1, args.device)
        if failure is not None:
            raise failure
    return 0
