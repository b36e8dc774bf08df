"""`inspect`: look at what the model will see, or at checkpoints."""

import argparse
from pathlib import Path

from pretrain.cli.arguments import SETTINGS, require_nothing_else
from pretrain.config import read_run
from pretrain.config.command_line import option_pairs
from pretrain.config.strict import COMMAND_LINE
from pretrain.errors import UserError

HELP, EPILOG = "look at what the model will see, or at checkpoints", SETTINGS
OPTIONS = ("step", "out", "ds-config", "short")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("batch", "checkpoint"))
    parser.add_argument(
        "recipe", metavar="RECIPE|RUN", help="of a batch the recipe; of checkpoints the run directory, or a checkpoint's folder"
    )
    parser.add_argument(
        "--ds-config", metavar="FILE.json", help="default: RECIPE.json beside an own recipe, else ds_configs/RECIPE.json"
    )
    parser.add_argument("--short", action="store_true", help="of checkpoints: without the parameters")
    parser.add_argument("--step", type=int, default=1, help="whose batch")
    parser.add_argument(
        "--out", type=Path, default=Path("batch.png"), metavar="FILE.png", help="picture of which position reads which"
    )


def run(args: argparse.Namespace, rest: list[str]) -> int:
    if args.what == "checkpoint":
        require_nothing_else(rest)
        from pretrain.inspect.checkpoint import inspect_checkpoints

        inspect_checkpoints(Path(args.recipe), args.short)
        return 0
    run = read_run(args.recipe, option_pairs(rest, OPTIONS), args.ds_config, None)
    if args.out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"{COMMAND_LINE}: --out {args.out}: a picture is written as .png, .pdf or .svg")
    if args.out.is_dir() or any(parent.exists() and not parent.is_dir() for parent in args.out.parents):
        raise UserError(f"{COMMAND_LINE}: --out {args.out}: cannot be a file; choose another name")
    if not 1 <= args.step <= run.steps:
        raise UserError(f"{COMMAND_LINE}: --step {args.step}: the run has steps 1 to {run.steps}")
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.inspect.batch import inspect_batch

    inspect_batch(run, args.step, args.out)
    return 0
