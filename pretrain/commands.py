"""python -m pretrain train | plan | inspect | status | verify | export | compare | report [options]"""

import argparse
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pretrain.config.checks import check
from pretrain.config.command_line import all_settings, option_pairs
from pretrain.config.run import Run, parse_run, read_run
from pretrain.config.strict import COMMAND_LINE, one_line
from pretrain.errors import TrainingStopped, UserError, lost_a_peer
from pretrain.job.events import failures_told, tell_job
from pretrain.place import find_place

TRAIN_OPTIONS = ("run-dir", "resume", "resume-changing", "stop-at", "device", "ds-config")
PLAN_OPTIONS = ("nodes", "gpus-per-node", "gpu", "mfu", "price-per-gpu-hour", "suggest", "target-speedup", *TRAIN_OPTIONS)
COMPARE_OPTIONS = ("runs", "jobs", "slurm", "device")
INSPECT_OPTIONS = ("step", "out", "ds-config")
DEFAULT_GPU, DEFAULT_MFU = "h100", 0.4
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES}
"""What a file system says that cannot be written to; it is the user's to mend, and a traceback helps nobody."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it ended well, 2 for a mistake of the user's, 1 for a run that could not go on."""
    parser = _parser()
    try:
        args, rest = parser.parse_known_args(argv)
        if args.command is None:
            parser.print_help()
            return 2
        if getattr(args, "explain", False):
            print("\n".join(f"{key:<55} {text}" for key, text in all_settings()))
            return 0
        if args.command in ON_RUNS:
            return ON_RUNS[args.command](args, rest)
        if args.command == "inspect":
            return _inspect(args, rest)
        words = list(sys.argv[1:] if argv is None else argv)
        if args.recipe and words.index(args.command) + 1 != words.index(args.recipe):
            raise UserError(
                f"{COMMAND_LINE}: the recipe comes first, as in `python -m pretrain {args.command} ul2_tiny --steps 5`"
            )
        if not args.recipe:
            raise UserError(f"{COMMAND_LINE}: which recipe? As in `python -m pretrain {args.command} ul2_tiny`")
        return _train(args, rest) if args.command == "train" else _plan(args, rest)
    except UserError as error:
        _tell(f"error: {error}")
        return 2
    except TrainingStopped as stopped:
        _tell(f"stopped: {stopped}", stopped.everywhere)
        return 1
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except RuntimeError as error:
        if not lost_a_peer(error):
            raise
        _tell(f"stopped: another rank is gone ({one_line(error)}); it, or the launcher, tells why", everywhere=False)
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _tell(f"stopped: {error.filename or 'a file'} cannot be written: {error.strerror}", everywhere=False)
        return 1


def _tell(text: str, everywhere: bool = True) -> None:
    """Once for all ranks where all came to the same conclusion; else each for itself."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not everywhere:
        print(text if rank == "0" else f"rank {rank}: {text}", file=sys.stderr, flush=True)


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    with failures_told(args.run_dir):
        return _train_with_others(args, rest)


def _train_with_others(args: argparse.Namespace, rest: list[str]) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _outlive_no_launcher()
    pairs = option_pairs(rest, TRAIN_OPTIONS)
    place = find_place(os.environ)
    os.environ.update(place.environment)

    def read() -> Run:
        return read_run(args.recipe, pairs, args.ds_config, place.world_size)

    if place.world_size == 1:
        read()  # a mistake is told at once, before torch is imported
    from pretrain.parallel.ranks import device_type, join, prepare_libraries

    prepare_libraries(device_type(args.device))  # before the imports below read the environment
    run_dir = (args.run_dir or Path("runs/new")).absolute()
    with join(args.device, place, run_dir if run_dir.is_dir() else run_dir.parent) as ranks:
        run = ranks.together(read)
        from pretrain.options import TrainOptions
        from pretrain.train import train

        step = train(run, TrainOptions(args.run_dir, args.resume, _names(args.resume_changing), place, args.stop_at), ranks)
        if ranks.is_main and args.run_dir is not None:
            kind = "finished" if step >= run.steps else "saved" if ranks.stopped_by else "ended"
            tell_job(args.run_dir, kind, ranks.stopped_by or "", step=step)
    return 0


def _names(listed: str) -> tuple[str, ...]:
    """Names between commas, as people write options or keys."""
    return tuple(name.strip().removeprefix("--").replace("-", "_") for name in listed.split(",") if name.strip())


def _outlive_no_launcher() -> None:
    """Have the kernel send SIGTERM when torchrun dies, which SIGKILL or SIGUSR1 make it do without a word to its ranks."""
    set_parent_death_signal = 1  # linux/prctl.h, PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))
    if os.getppid() == 1:
        raise TrainingStopped("the launcher is gone")


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong as everything else here does: once, not on every rank."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{COMMAND_LINE}: {message}; `{self.prog} --help` shows what there is")


def _nothing_else(rest: list[str]) -> None:
    if rest:
        raise UserError(f'{COMMAND_LINE}: unexpected "{rest[0]}"; `python -m pretrain --help` shows what there is')


def _verify(args: argparse.Namespace, rest: list[str]) -> int:
    _nothing_else(rest)
    from pretrain.inspect.checkpoint import verify

    return 1 if verify(args.run) else 0


def _export(args: argparse.Namespace, rest: list[str]) -> int:
    _nothing_else(rest)
    from pretrain.parallel.ranks import prepare_libraries

    prepare_libraries("cpu")
    import torch

    from pretrain.export.huggingface import export

    print(f"{args.to}: written from {export(args.run, args.to, getattr(torch, args.dtype))}")
    return 0


def _job(args: argparse.Namespace, rest: list[str]) -> int:
    """What the batch script says and asks."""
    _nothing_else(rest)
    from pretrain.job import log

    if args.what == "start":
        decision = log.started(args.run, dict(os.environ), args.most_failures)
        return 0 if decision is None else log.OVER[decision.exit_code]
    decision = log.ended(args.run, dict(os.environ), args.code, tuple(args.signal), args.most_failures)
    return log.QUEUE_AGAIN if decision.requeue else log.OVER[decision.exit_code]


def _status(args: argparse.Namespace, rest: list[str]) -> int:
    _nothing_else(rest)
    from pretrain.job.status import print_status

    print_status(args.runs)
    return 0


def _compare(args: argparse.Namespace, rest: list[str]) -> int:
    if args.jobs is not None and (args.jobs < 1 or args.slurm is not None):
        raise UserError(
            f"{COMMAND_LINE}: --jobs {args.jobs}: "
            + ("must be at least 1" if args.jobs < 1 else "is for this machine; with --slurm, SLURM decides")
        )
    from pretrain.parallel.ranks import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.study.compare import open_bench
    from pretrain.study.local import run_here
    from pretrain.study.plan import read_study
    from pretrain.study.slurm import submit

    study = read_study(args.study, option_pairs(rest, COMPARE_OPTIONS))
    with open_bench(study, args.runs or Path("runs") / study.name) as bench:
        bench.collect_finished()
        done = len(study.planned) - len(bench.missing)
        print(
            f"{study.name}: {done} of {len(study.planned)} runs are done; rows in {study.rows_file}, runs in"
            f" {bench.runs.absolute()}",
            flush=True,
        )
        if bench.missing and args.slurm is not None:
            submit(bench, args.slurm, args.device)
        elif bench.missing:
            run_here(bench, args.jobs or 1, args.device)
    return 0


def _report(args: argparse.Namespace, rest: list[str]) -> int:
    _nothing_else(rest)
    from pretrain.parallel.ranks import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.study.gather import gather
    from pretrain.study.page import write_page

    rows, baseline = gather(args.runs)
    print(write_page(rows, args.out, args.baseline or baseline))
    return 0


ON_RUNS = {"verify": _verify, "export": _export, "job": _job, "status": _status, "compare": _compare, "report": _report}


def _inspect(args: argparse.Namespace, rest: list[str]) -> int:
    if args.what == "checkpoint":
        _nothing_else(rest)
        from pretrain.inspect.checkpoint import inspect_checkpoints

        inspect_checkpoints(Path(args.recipe))
        return 0
    run = read_run(args.recipe, option_pairs(rest, INSPECT_OPTIONS), args.ds_config, None)
    if args.out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"{COMMAND_LINE}: --out {args.out}: a picture is written as .png, .pdf or .svg")
    if args.out.is_dir() or any(parent.exists() and not parent.is_dir() for parent in args.out.parents):
        raise UserError(f"{COMMAND_LINE}: --out {args.out}: cannot be a file; choose another name")
    if not 1 <= args.step <= run.steps:
        raise UserError(f"{COMMAND_LINE}: --step {args.step}: the run has steps 1 to {run.steps}")
    from pretrain.parallel.ranks import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.inspect.batch import inspect_batch

    inspect_batch(run, args.step, args.out)
    return 0


def _plan(args: argparse.Namespace, rest: list[str]) -> int:
    from pretrain.plan.hardware import GPUS

    if (args.nodes is None) != (args.gpus_per_node is None):
        raise UserError(f"{COMMAND_LINE}: --nodes and --gpus-per-node go together")
    if args.nodes is None and (args.price_per_gpu_hour is not None or args.gpu != DEFAULT_GPU or args.mfu != DEFAULT_MFU):
        raise UserError(f"{COMMAND_LINE}: --gpu, --mfu and --price-per-gpu-hour need --nodes and --gpus-per-node")
    for name, value, least in (
        ("nodes", args.nodes, 1),
        ("gpus-per-node", args.gpus_per_node, 1),
        ("price-per-gpu-hour", args.price_per_gpu_hour, 0),
    ):
        if value is not None and not least <= value < float("inf"):
            raise UserError(f"{COMMAND_LINE}: --{name} {value:g} must be at least {least}")
    if not 0 < args.mfu <= 1:
        raise UserError(f"{COMMAND_LINE}: --mfu {args.mfu:g} must be above 0 and at most 1")
    if args.gpu not in GPUS:
        raise UserError(f"{COMMAND_LINE}: --gpu {args.gpu}: known are {', '.join(GPUS)}")
    if args.suggest and args.nodes is None:
        raise UserError(f"{COMMAND_LINE}: --suggest needs --nodes and --gpus-per-node")
    pairs = option_pairs(rest, PLAN_OPTIONS)
    gpus = None if args.nodes is None else args.nodes * args.gpus_per_node
    run = parse_run(args.recipe, pairs, args.ds_config, gpus)
    try:
        check(run)
        problem = None
    except UserError as error:
        if not args.suggest:
            raise
        problem = error
    from pretrain.parallel.ranks import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.plan.cost import Cluster
    from pretrain.plan.tables import print_plan, print_suggestions

    cluster = None
    if args.nodes is not None:
        cluster = Cluster(args.nodes, args.gpus_per_node, args.gpu, args.mfu, args.price_per_gpu_hour)
    if problem is None:
        print_plan(run, cluster, args.suggest, args.target_speedup)
        return 0
    print(f"this layout cannot run: {problem}\n")
    return 0 if print_suggestions(run, cluster) else 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pretrain", allow_abbrev=False, description=__doc__)
    commands = parser.add_subparsers(dest="command")
    settings = (
        "Any field of the recipe is an option, as --steps or --model.num_layers; any key of the JSON after --ds., as"
        " --ds.zero_optimization.stage."
    )
    for name, text in (("train", "train a recipe, or go on with it"), ("plan", "check everything and show what a run would do")):
        command = commands.add_parser(name, help=text, allow_abbrev=False, epilog=settings)
        command.add_argument("recipe", nargs="?", help="name in pretrain/recipes/, or path to a YAML file")
        command.add_argument("--ds-config", metavar="FILE.json", help="default: ds_configs/RECIPE.json")
        command.add_argument("--explain", action="store_true", help="list every setting of recipe and JSON with its meaning")
        if name == "plan":
            command.add_argument("--nodes", type=int, help="of the cluster, for memory, time and money")
            command.add_argument("--gpus-per-node", type=int)
            command.add_argument("--gpu", default=DEFAULT_GPU, help="a100-40gb, a100-80gb, h100, h200, b200, mi300x")
            command.add_argument(
                "--mfu", type=float, default=DEFAULT_MFU, help=f"share of the GPU's peak that training reaches; {DEFAULT_MFU}"
            )
            command.add_argument("--price-per-gpu-hour", type=float)
            command.add_argument(
                "--target-speedup",
                type=float,
                metavar="FACTOR",
                help="propose path lengths for so many times fewer layer FLOPs, as 1.33",
            )
            command.add_argument("--suggest", action="store_true", help="rank the layouts that can run there")
            command = command.add_argument_group("accepted, so that the words for train can be checked")
        command.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/RECIPE-METHOD-DATETIME")
        command.add_argument(
            "--resume",
            default="auto",
            metavar="auto|never|CHECKPOINT",
            help="auto: the newest good one of the run directory, if any",
        )
        command.add_argument(
            "--resume-changing",
            default="",
            metavar="NAME,...",
            help="settings that may differ from the run so far, as lr,path_lengths",
        )
        command.add_argument("--stop-at", type=int, metavar="STEP", help="save and end there, as if interrupted")
        command.add_argument(
            "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cpu only where torch is a CPU build"
        )
    inspect = commands.add_parser(
        "inspect", help="look at what the model will see, or at checkpoints", allow_abbrev=False, epilog=settings
    )
    inspect.add_argument("what", choices=("batch", "checkpoint"))
    inspect.add_argument(
        "recipe", metavar="RECIPE|RUN", help="of a batch the recipe; of checkpoints the run directory, or a checkpoint's folder"
    )
    inspect.add_argument("--ds-config", metavar="FILE.json", help="default: ds_configs/RECIPE.json")
    inspect.add_argument("--step", type=int, default=1, help="whose batch")
    inspect.add_argument("--out", type=Path, default=Path("batch.png"), metavar="FILE.png", help="picture of who sees whom")
    verify = commands.add_parser("verify", help="read every byte of a run's checkpoints", allow_abbrev=False)
    export = commands.add_parser("export", help="write a folder for Hugging Face's libraries", allow_abbrev=False)
    for command in (verify, export):
        command.add_argument("run", type=Path, metavar="RUN", help="run directory, or a checkpoint's folder")
    status = commands.add_parser("status", help="where runs stand", allow_abbrev=False)
    status.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    compare = commands.add_parser("compare", help="do the runs of a study that are missing", allow_abbrev=False, epilog=settings)
    compare.add_argument("study", type=Path, metavar="STUDY.yaml", help="methods x seeds x sizes; docs/compare.md")
    compare.add_argument("--runs", type=Path, metavar="DIR", help="where its runs lie; default: runs/NAME")
    compare.add_argument("--jobs", type=int, metavar="N", help="runs at a time on this machine; 1")
    compare.add_argument("--slurm", metavar="'SBATCH OPTIONS'", help="submit one array instead; '' for the script's own options")
    compare.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cpu only where torch is a CPU build"
    )
    report = commands.add_parser("report", help="one page that compares runs", allow_abbrev=False)
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="studies, files of rows, or run directories")
    report.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="for index.html and the pictures")
    report.add_argument(
        "--baseline", metavar="METHOD", help="that the others are compared with; default: the study's; full; the first"
    )
    job = commands.add_parser("job", help="for slurm/common.sh: the start or the end of a job", allow_abbrev=False)
    job.add_argument("what", choices=("start", "end"))
    job.add_argument("run", type=Path, metavar="RUN")
    job.add_argument("--code", type=int, default=0, help="of the launcher")
    job.add_argument("--signal", choices=("USR1", "TERM"), action="append", default=[], help="that the batch script got")
    job.add_argument(
        "--most-failures",
        type=int,
        default=3,
        metavar="N",
        help="starts in a row without a new checkpoint, after which the job gives up",
    )
    export.add_argument("--to", type=Path, required=True, metavar="DIR")
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights; masters are float32")
    return parser
