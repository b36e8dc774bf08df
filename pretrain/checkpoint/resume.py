"""Which checkpoint to go on from, and going on from it."""

from pathlib import Path

from pretrain.checkpoint.changes import require_allowed
from pretrain.checkpoint.directory import RunDirectory, prune_leftovers
from pretrain.checkpoint.manifest import Manifest, damage, read_manifest
from pretrain.checkpoint.saver import Saver
from pretrain.config import Run
from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.recipe import Recipe
from pretrain.config.run import Position
from pretrain.config.strict import parse
from pretrain.errors import UserError
from pretrain.files import write_whole
from pretrain.ranks.process import Ranks

TAKEN = ".resumed_from"
"""Which checkpoint `--resume PATH` named last, so that the same command, queued again, does not begin there again."""


def resume(run: Run, saver: Saver, choice: str = "auto", changing: tuple[str, ...] = ()) -> Position:
    """Load what `--resume` asks for; returns where training goes on, the start if there is nothing to load.

    Args:
        choice: auto, never, or a checkpoint's folder.
        changing: settings that may differ from the checkpoint's.

    Raises:
        UserError: a checkpoint that was asked for is not good, none of several is, or it is of another run.
    """
    ranks, directory = saver.ranks, saver.directory
    ranks.on_main(lambda: prune_leftovers(directory))
    if choice not in ("auto", "never") and ranks.on_main(lambda: _taken(directory) == choice and bool(directory.steps_saved())):
        choice = "auto"  # the same command again: it goes on from what it has saved since
    found = None if choice == "never" else _newest_good(directory, ranks) if choice == "auto" else _asked_for(Path(choice), ranks)
    if found is None:
        ranks.on_main(lambda: directory.describe(run, ranks.device.type))
        return Position()
    folder, manifest = found
    ranks.on_main(lambda: require_allowed(run, run_of(folder, manifest), changing, str(folder)))
    if manifest.tokenizer_sha256 != saver.tokenizer_sha256 and "tokenizer" not in changing:
        raise UserError(
            f"{folder}: its data was made with another tokenizer than {run.recipe.data.tokenizer} has now; restore it, or pass"
            " --resume-changing tokenizer"
        )
    if ranks.is_main:
        there = "" if manifest.layout == run.layout() else ", which was written on another layout"
        print(f"resuming after step {manifest.step} from {folder}{there}", flush=True)
    with ranks.all_or_none():
        saver.state.load(folder, manifest)
    saver.state.loaded(manifest.step)

    def take_over() -> None:
        directory.describe(run, ranks.device.type)  # as it goes on
        directory.abandon_after(manifest.step)
        if choice != "auto":
            write_whole(directory.path / TAKEN, choice + "\n")

    ranks.on_main(take_over)
    return Position(manifest.step, manifest.samples, folder)


def _taken(directory: RunDirectory) -> str | None:
    """The checkpoint that a person chose when the run went on last, if anyone did."""
    file = directory.path / TAKEN
    return file.read_text().strip() if file.exists() else None


def _newest_good(directory: RunDirectory, ranks: Ranks) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose every byte is as it was written; tells which newer ones it passed over and why."""
    candidates = ranks.on_main(directory.steps_saved)
    for folder in reversed(candidates):
        try:
            return folder, _verified(folder, ranks)
        except UserError as problem:
            if ranks.is_main:
                print(f"passing over {problem}", flush=True)
    if candidates:
        raise UserError(
            f"{directory.checkpoints}: none of {len(candidates)} checkpoints is good; start afresh with another --run-dir"
        )
    return None


def _asked_for(folder: Path, ranks: Ranks) -> tuple[Path, Manifest]:
    if not ranks.on_main(folder.is_dir):
        raise UserError(f"--resume {folder}: neither auto nor never nor a checkpoint's folder")
    if ranks.on_main((folder / "checkpoints").is_dir):
        raise UserError(
            f"--resume {folder}: is a run directory; name one of its checkpoints, as {folder}/checkpoints/step_00000200"
        )
    return folder, _verified(folder, ranks)


def _verified(folder: Path, ranks: Ranks) -> Manifest:
    """The manifest of a checkpoint that is good; its files are read by all ranks in turns.

    Raises:
        UserError: says what is wrong with it.
    """

    def read() -> Manifest:
        try:
            return read_manifest(folder)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None

    manifest = ranks.on_main(read)
    with ranks.all_or_none():
        if problem := damage(folder, manifest, slice(ranks.rank, None, ranks.world_size)):
            raise UserError(f"{folder}: {problem}")
    return manifest


def run_of(folder: Path, manifest: Manifest) -> Run:
    """The run that wrote a checkpoint, of one process.

    Raises:
        UserError: this program does not know its settings.
    """
    recipe = parse(Recipe, manifest.recipe, f"{folder}, its recipe")
    return Run(
        folder.name, recipe, parse(DeepSpeedConfig, manifest.ds_config, f"{folder}, its ds_config"), str(folder), str(folder)
    )
