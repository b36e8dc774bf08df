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
TRAIN_OPTIONS = ("run-dir", "resume", "resume-changing", "decay-steps", "stop-at", "profile-steps", "device", "ds-config")
"""Options of `train` itself."""
DECAY_OPTION = "--ds.scheduler.params.decay_num_steps"


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
    parser.add_argument(
        "--decay-steps",
        type=int,
        metavar="N",
        help="end the run N steps after the checkpoint that --resume names, its learning rate decaying; docs/checkpoints.md",
    )
    parser.add_argument(
        "--stop-at", type=int, metavar="STEP", help="save and end there, as if interrupted; 0 saves what the run begins with"
    )
    parser.add_argument(
        "--profile-steps", metavar="FIRST-LAST", help="write a Chrome trace and a table of these steps to RUN/profile/"
    )
    device_argument(parser)


def with_decay(args: argparse.Namespace, pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Return the settings of a run that branches off another for its decay, and the names of those that may differ from it.

    Raises:
        UserError: no checkpoint is named, or it is not of the stable part of a run with WarmupStableDecay.
    """
    count: int | None = args.decay_steps
    if count is None:
        return pairs, ()
    option = f"{COMMAND_LINE}: --decay-steps {count}"
    if count < 1:
        raise UserError(f"{option}: at least 1")
    if args.resume in ("auto", "never"):
        raise UserError(f"{option}: name the checkpoint at which the decay begins, as --resume RUN/checkpoints/step_00001000")
    given = {key for key, _ in pairs}
    if clash := given & {"--steps", "--tokens", DECAY_OPTION}:
        raise UserError(f"{option}: says how long the run is and its decay; leave out {min(clash)}")
    from pretrain.checkpoint.directory import RunDirectory
    from pretrain.checkpoint.find import manifest_of, run_of

    folder, names = Path(args.resume), ("steps", "decay_num_steps")
    saved = [] if args.run_dir is None else RunDirectory(args.run_dir).steps_saved()
    if saved and not folder.is_dir():  # the same command again, after the run that it branched off has removed the checkpoint
        own = run_of(saved[0], manifest_of(saved[0]))
        return [*pairs, ("--steps", str(own.steps)), (DECAY_OPTION, str(count))], names
    if args.run_dir is not None and Path(args.run_dir).resolve() == folder.resolve().parent.parent:
        raise UserError(f"{option}: a decay is a run of its own, which ends; give it another --run-dir than {args.run_dir}")
    manifest = manifest_of(folder)
    theirs = run_of(folder, manifest)
    scheduler = theirs.ds.scheduler
    if scheduler is None or scheduler.params.decay_num_steps is None:
        raise UserError(f"{option}: {folder} is of a run whose schedule is not WarmupStableDecay")
    first, last = max(2, scheduler.params.warmup_num_steps), theirs.steps - scheduler.params.decay_num_steps
    if not first <= manifest.step <= last:
        raise UserError(f"{option}: step {manifest.step} is not of the stable part of its run, which is {first} to {last}")
    return [*pairs, ("--steps", str(manifest.step + count)), (DECAY_OPTION, str(count))], names


def device_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cpu only where torch is a CPU build"
    )


def quiet_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="do not show how far it is")


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
