"""Which checkpoint to resume from, and resuming from it."""

from collections.abc import Callable
from pathlib import Path

from pretrain.checkpoint.changes import require_allowed
from pretrain.checkpoint.directory import RunDirectory, prune_leftovers
from pretrain.checkpoint.find import manifest_of, newest_good, run_of, verified
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.saver import Saver
from pretrain.config import Run
from pretrain.config.run import Position
from pretrain.data.identity import TOKENIZER
from pretrain.errors import UserError
from pretrain.files import write_whole
from pretrain.ranks.process import Ranks

RESUMED_FROM = ".resumed_from"
"""Which checkpoint `--resume PATH` named last, so that the same command, queued again, does not begin there again."""


def resume(
    run: Run, saver: Saver, choice: str = "auto", changing: tuple[str, ...] = (), begin: Callable[[], None] = lambda: None
) -> Position:
    """Load what `--resume` asks for; returns where training resumes, the start if there is nothing to load.

    Args:
        begin: is called if there is nothing to load.
        choice: auto, never, or a checkpoint's folder.
        changing: settings that may differ from the checkpoint's.

    Raises:
        UserError: a checkpoint that was asked for is not good, none of several is, or it is of another run.
    """
    ranks, directory = saver.ranks, saver.directory
    ranks.on_main(lambda: prune_leftovers(directory))
    if choice not in ("auto", "never") and ranks.on_main(
        lambda: _resumed_from(directory) == choice and bool(directory.steps_saved())
    ):
        choice = "auto"  # the same command again: it resumes from what it has saved since
    found = None if choice == "never" else _newest_good(directory, ranks) if choice == "auto" else _asked_for(Path(choice), ranks)
    if found is None:
        begin()
        ranks.on_main(lambda: directory.describe(run, ranks.device.type))
        return Position()
    folder, manifest = found
    replaced = [name for name, checksum in (manifest.data or {}).items() if saver.data.get(name, checksum) != checksum]
    ranks.on_main(lambda: require_allowed(run, run_of(folder, manifest), changing, str(folder), replaced))
    if manifest.tokenizer_sha256 != saver.data[TOKENIZER] and "tokenizer" not in changing:
        raise UserError(
            f"{folder}: its data was made with another tokenizer than {run.recipe.data.tokenizer} has now; restore it, or pass"
            " --resume-changing tokenizer"
        )
    if ranks.is_main:
        there = "" if manifest.layout == run.layout() else ", which was written on another layout"
        print(f"resuming after step {manifest.step} from {folder}{there}", flush=True)
    with ranks.all_or_none():
        saver.state.load(folder, manifest)
    saver.state.loaded(manifest)

    def take_over() -> None:
        directory.describe(run, ranks.device.type)  # as it resumes
        directory.abandon_after(manifest.step)
        if choice != "auto":
            write_whole(directory.path / RESUMED_FROM, choice + "\n")

    ranks.on_main(take_over)
    return Position(manifest.step, manifest.samples, folder)


def _resumed_from(directory: RunDirectory) -> str | None:
    """Return the checkpoint that a person chose when the run was resumed last, if anyone did."""
    file = directory.path / RESUMED_FROM
    return file.read_text().strip() if file.exists() else None


def _newest_good(directory: RunDirectory, ranks: Ranks) -> tuple[Path, Manifest] | None:
    """Return the newest checkpoint whose every byte is as it was written; reports which newer ones it skipped and why."""

    def skip(problem: str) -> None:
        if ranks.is_main:
            print(f"skipping {problem}", flush=True)

    candidates = ranks.on_main(directory.steps_saved)
    found = newest_good(candidates, lambda folder: _verified(folder, ranks), skip)
    if found is None and candidates:
        raise UserError(
            f"{directory.checkpoints}: none of {len(candidates)} checkpoints is good; start afresh with another --run-dir"
        )
    return found


def _asked_for(folder: Path, ranks: Ranks) -> tuple[Path, Manifest]:
    if not ranks.on_main(folder.is_dir):
        raise UserError(f"--resume {folder}: expected auto, never or a checkpoint folder")
    if ranks.on_main((folder / "checkpoints").is_dir):
        raise UserError(
            f"--resume {folder}: is a run directory; name one of its checkpoints, as {folder}/checkpoints/step_00000200"
        )
    return folder, _verified(folder, ranks)


def _verified(folder: Path, ranks: Ranks) -> Manifest:
    """Return the manifest of a checkpoint that is good; its files are read by all ranks in turns.

    Raises:
        UserError: says what is wrong with it.
    """
    manifest = ranks.on_main(lambda: manifest_of(folder))
    with ranks.all_or_none():
        verified(folder, manifest, slice(ranks.rank, None, ranks.world_size))
    return manifest
