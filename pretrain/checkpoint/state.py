"""Save and resume: the engine's whole state, on the layout that wrote it."""

import json
import shutil
from pathlib import Path

import torch.distributed as dist

from pretrain.checkpoint.directory import MANIFEST, RunDirectory, damage, differences, newest_good, provenance, prune, seal
from pretrain.config import Run
from pretrain.config.strict import one_line
from pretrain.errors import TrainingStopped, UserError, lost_a_peer
from pretrain.parallel.engine import Engine

STATE = "state"
"""Subfolder with DeepSpeed's files: weights, masters, moments."""


def save(run: Run, engine: Engine, directory: RunDirectory, step: int) -> None:
    """Write checkpoint `step`.

    Raises:
        TrainingStopped: it could not be written; nothing that looks like a checkpoint is left, older ones stay.
    """
    folder = directory.checkpoint(step)
    unfinished = folder.with_suffix(".unfinished")
    main = engine.ranks.is_main
    try:
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        dist.barrier()
        engine.deepspeed.save_checkpoint(str(unfinished), tag=STATE, save_latest=False)
        dist.barrier()
        if main:
            seal(unfinished, folder, {"step": step, "layout": layout(run), "identity": run.identity(), "versions": provenance()})
            prune(directory, run.recipe.keep_checkpoints)
        dist.barrier()
    except (OSError, RuntimeError) as error:
        if lost_a_peer(error):
            raise TrainingStopped.on_this_rank(f"checkpoint {folder}: another rank could not write its part, and tells why") from error
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
        kept = newest_good(directory, tell=lambda _: None)
        rest = f"the newest good one is {kept}" if kept else "there is no older one"
        free = shutil.disk_usage(directory.path).free / 2**20
        why = f"{one_line(error)}; {free:.0f} MiB free there"
        raise TrainingStopped.on_this_rank(f"checkpoint {folder} could not be completed ({why}); {rest}") from error


def resume(run: Run, engine: Engine, directory: RunDirectory, choice: str) -> int:
    """Load what `--resume` asks for; returns the step after which training goes on, 0 for the start.

    Raises:
        UserError: a checkpoint that was asked for by path is not good, or was written on another layout.
    """
    found = engine.ranks.on_main(lambda: _choose(run, directory, choice))
    engine.ranks.on_main(lambda: directory.describe(run))  # as it goes on: the layout may be another one than at first
    if found is None:
        return 0
    folder, step = found
    engine.ranks.together(lambda: _load(engine, folder))
    if engine.ranks.is_main:
        directory.abandon_after(step)
    return step


def _load(engine: Engine, folder: Path) -> None:
    """DeepSpeed says nothing where it finds nothing."""
    loaded, _ = engine.deepspeed.load_checkpoint(str(folder), tag=STATE)
    if loaded is None:
        raise UserError(f"{folder}: this rank sees no files of it; the run directory must be on a file system that all nodes share")


def _choose(run: Run, directory: RunDirectory, choice: str) -> tuple[Path, int] | None:
    """The checkpoint to load and its step; None to start afresh."""
    if choice == "never":
        return None
    folder = newest_good(directory, print) if choice == "auto" else Path(choice)
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(f"--resume {choice}: neither auto nor never nor a checkpoint's folder")
    problem = damage(folder) if choice != "auto" else None
    if problem:
        raise UserError(f"--resume {folder}: {problem}")
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["layout"] != layout(run):
        raise UserError(f"{folder}: written on layout {manifest['layout']}, this run has {layout(run)}; use the same")
    different = differences(run.identity(), manifest["identity"])
    if different:
        raise UserError(f"{folder}: written by another run: {different}; start afresh without --resume")
    print(f"resuming after step {manifest['step']} from {folder}", flush=True)
    return folder, manifest["step"]


def layout(run: Run) -> dict:
    """What a checkpoint of DeepSpeed's depends on."""
    return {
        **run.recipe.parallel.model_dump(),
        "data": run.data_parallel,
        "zero_stage": run.ds.zero_optimization.stage,
        "bf16": run.ds.bf16.enabled,
    }
