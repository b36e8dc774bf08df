"""`train`: train a recipe, or resume it."""

import argparse
import os
from pathlib import Path

from pretrain.cli.arguments import (
    SETTINGS,
    TRAIN_OPTIONS,
    explained,
    recipe_arguments,
    require_recipe,
    train_arguments,
    with_decay,
)
from pretrain.config import Run, read_run
from pretrain.config.command_line import option_pairs
from pretrain.errors import TrainingStopped, UserError
from pretrain.job.events import EventKind, report_failures, report_to_job
from pretrain.place import find_place
from pretrain.ranks.signals import end_with_parent

HELP, EPILOG = "train a recipe, or resume it", SETTINGS


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    train_arguments(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    if explained(args):
        return 0
    require_recipe(args)
    with report_failures(args.run_dir):
        return _train_with_others(args, rest)


def _train_with_others(args: argparse.Namespace, rest: list[str]) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # SIGKILL or SIGUSR1 make torchrun die without a word to its ranks
        end_with_parent()
        if os.getppid() == 1:
            raise TrainingStopped("the launcher is gone")
    profiled = _steps(args.profile_steps)
    given = option_pairs(rest, TRAIN_OPTIONS)
    place = find_place(os.environ)
    os.environ.update(place.environment)

    def read() -> tuple[Run, tuple[str, ...]]:
        """The run, and settings that may differ from those of the one that it branches off."""
        pairs, branched = with_decay(args, given)
        return read_run(args.recipe, pairs, args.ds_config, place.world_size), branched

    if place.world_size == 1:
        read()  # a mistake is reported at once, before torch is imported
    from pretrain.ranks.device import device_type
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries(device_type(args.device))  # before the imports below read the environment
    from pretrain.options import TrainOptions
    from pretrain.ranks.launch import join
    from pretrain.train import train

    run_dir = (args.run_dir or Path("runs/new")).absolute()
    with join(args.device, place, run_dir if run_dir.is_dir() else run_dir.parent) as ranks:
        with ranks.all_or_none():
            run, branched = read()
        changing = (*_names(args.resume_changing), *branched)
        step = train(run, TrainOptions(args.run_dir, args.resume, changing, place, args.stop_at, profiled), ranks)
        if ranks.is_main and args.run_dir is not None:
            kind: EventKind = "finished" if step >= run.steps else "saved" if ranks.stopped_by else "ended"
            report_to_job(args.run_dir, kind, ranks.stopped_by or "", step=step)
    return 0


def _names(listed: str) -> tuple[str, ...]:
    """Split names between commas, as people write options or keys."""
    return tuple(name.strip().removeprefix("--").replace("-", "_") for name in listed.split(",") if name.strip())


def _steps(named: str | None) -> tuple[int, int] | None:
    """The first and the last step of `20-22`, or of `20` alone."""
    if named is None:
        return None
    first, _, last = (named if "-" in named else f"{named}-{named}").partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile-steps {named}: write the first and the last step, as 20-22")
    return int(first), int(last)
