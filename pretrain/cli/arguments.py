"""What several commands have in common: arguments, and how mistakes in them are reported."""

import argparse
from pathlib import Path
from typing import NoReturn

from pretrain.config.command_line import all_settings
from pretrain.config.strict import COMMAND_LINE
from pretrain.errors import UserError

SETTINGS = (
    "Any field of the recipe is an option, as --steps or --model.num_layers; any key of the JSON after --ds., as"
    " --ds.zero_optimization.stage."
)
TRAIN_OPTIONS = ("run-dir", "resume", "resume-changing", "stop-at", "profile-steps", "device", "ds-config")
"""Options of `train` itself."""


class Parser(argparse.ArgumentParser):
    """Reports what is wrong as everything else here does: once, not on every rank."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{COMMAND_LINE}: {message}; `{self.prog} --help` lists what there is")


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments by which `train` and `plan` find a run."""
    parser.add_argument("recipe", nargs="?", help="name in pretrain/recipes/, or path to a YAML file")
    parser.add_argument(
        "--ds-config", metavar="FILE.json", help="default: RECIPE.json beside an own recipe, else ds_configs/RECIPE.json"
    )
    parser.add_argument("--explain", action="store_true", help="list every setting of recipe and JSON with its meaning")


def train_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of `train`, which `plan` takes too, so that the words of one can be given to the other."""
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/RECIPE-METHOD-DATETIME")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|CHECKPOINT",
        help="auto: the newest good checkpoint of the run directory, if any",
    )
    parser.add_argument(
        "--resume-changing",
        default="",
        metavar="NAME,...",
        help="settings that may differ from the run so far, as lr,path_lengths",
    )
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="save and end there, as if interrupted")
    parser.add_argument(
        "--profile-steps", metavar="FIRST-LAST", help="write a Chrome trace and a table of these steps to RUN/profile/"
    )
    device_argument(parser)


def device_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cpu only where torch is a CPU build"
    )


def checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, or a checkpoint's folder")


def explained(args: argparse.Namespace) -> bool:
    """List all settings if they were asked for, instead of doing anything else."""
    if args.explain:
        print("\n".join(f"{key:<55} {text}" for key, text in all_settings()))
    return args.explain


def require_recipe(args: argparse.Namespace) -> None:
    """Refuse a command without a recipe, or with options before it, which could be taken for its value.

    Raises:
        UserError: either.
    """
    words = args.words
    if args.recipe and words.index(args.command) + 1 != words.index(args.recipe):
        raise UserError(f"{COMMAND_LINE}: the recipe comes first, as in `python -m pretrain {args.command} ul2_tiny --steps 5`")
    if not args.recipe:
        raise UserError(f"{COMMAND_LINE}: which recipe? As in `python -m pretrain {args.command} ul2_tiny`")


def require_nothing_else(rest: list[str]) -> None:
    """Refuse words that no argument takes.

    Raises:
        UserError: there are some.
    """
    if rest:
        raise UserError(f'{COMMAND_LINE}: unexpected "{rest[0]}"; `python -m pretrain --help` lists what there is')
