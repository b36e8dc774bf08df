"""Which checkpoints there are, and the newest good one among them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.manifest import MANIFEST, Manifest, damage, read_manifest
from pretrain.config import Run
from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.recipe import Recipe
from pretrain.config.run import as_recorded
from pretrain.config.strict import parse
from pretrain.errors import UserError

T = TypeVar("T")


def checkpoints_of(path: Path) -> list[Path]:
    """Return the checkpoints of a run directory, the oldest first; or the one that `path` is.

    Raises:
        UserError: there is none.
    """
    if (path / MANIFEST).is_file():
        return [path]
    folders = RunDirectory(path.parent if path.name == "checkpoints" else path).steps_saved()
    if not folders:
        raise UserError(f"{path}: holds no checkpoint; give a run directory, or a folder as RUN/checkpoints/step_00000200")
    return folders


def newest_good(folders: Sequence[Path], read: Callable[[Path], T], skip: Callable[[str], None]) -> tuple[Path, T] | None:
    """Return the newest checkpoint that `read` accepts, with what it returned; None if it accepts none.

    Args:
        folders: the oldest first.
        read: returns what is wanted of a checkpoint, or raises UserError and says what is wrong with it.
        skip: is told what is wrong with every one that was skipped.
    """
    for folder in reversed(folders):
        try:
            return folder, read(folder)
        except UserError as problem:
            skip(str(problem))
    return None


def newest_of(path: Path) -> tuple[Path, Manifest]:
    """Return the newest good checkpoint of a run directory, or the one that `path` is, read to the last byte; reports which newer
    ones it skipped and why.

    Raises:
        UserError: there is none; says what is wrong with each.
    """
    problems: list[str] = []
    found = newest_good(checkpoints_of(path), verified, problems.append)
    if found is None:
        raise UserError(f"no good checkpoint: {'; '.join(problems)}")
    for problem in problems:
        print(f"skipping {problem}", flush=True)
    return found


def require_whole(run: Run, folder: Path, manifest: Manifest) -> None:
    """Refuse a model that is still growing.

    Raises:
        UserError: it has not all of its layers.
    """
    there = run.method.whole(manifest.step).length
    if there < run.recipe.model.num_layers:
        raise UserError(
            f"{folder}: has {there} of its {run.recipe.model.num_layers} layers so far; use a checkpoint of the last stage,"
            f" which begins at step {run.method.stages[-1].first_step}"
        )


def verified(folder: Path, manifest: Manifest | None = None, share: slice = slice(None)) -> Manifest:
    """Return the manifest of a checkpoint after reading its files to the last byte.

    Args:
        manifest: the checkpoint's, if it has been read.
        share: of the files, so that ranks can divide the reading among them.

    Raises:
        UserError: the checkpoint is damaged; says how.
    """
    manifest = manifest or manifest_of(folder)
    if problem := damage(folder, manifest, share):
        raise UserError(f"{folder}: {problem}")
    return manifest


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises:
        UserError: there is none, or it is damaged; names the folder.
    """
    try:
        return read_manifest(folder)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def run_of(folder: Path, manifest: Manifest) -> Run:
    """Return the run that wrote a checkpoint, of one process.

    Raises:
        UserError: this program does not know its settings.
    """
    recipe = parse(Recipe, manifest.recipe, f"{folder}, its recipe")
    ds = parse(DeepSpeedConfig, as_recorded(manifest.ds_config), f"{folder}, its ds_config")
    return Run(folder.name, recipe, ds, str(folder), str(folder))
