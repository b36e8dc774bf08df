"""The run directory: what is in it, whether it is this run's, and which checkpoints it holds.

A checkpoint is a folder `checkpoints/step_00000200`. It gets that name only when every byte of it is on disk, together
with a manifest of sizes and checksums; LATEST is written last.
"""

import errno
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from pretrain.checkpoint.changes import require_allowed
from pretrain.checkpoint.manifest import MANIFEST, Manifest
from pretrain.config import Run
from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.recipe import Recipe
from pretrain.config.run import as_recorded
from pretrain.config.strict import parse, read_json, read_yaml
from pretrain.errors import UserError, reason, with_file
from pretrain.files import remove, to_disk, write_whole
from pretrain.versions import provenance

A_RECORD = (
    "A record, written at every start. Your own recipe and the command line decide; only a job that is queued again reads this."
)
NEVER_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""Error numbers of a folder that was chosen wrongly; a full disk may be emptied."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths and facts of one run directory."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def ds_config(self) -> Path:
        return self.path / "ds_config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}"

    def holds_a_run(self) -> bool:
        """Has a step been trained here? A start that failed before its first step leaves nothing worth keeping."""
        metrics = self.path / "metrics.jsonl"
        return (metrics.exists() and metrics.stat().st_size > 0) or any(self.checkpoints.glob("step_*"))

    def claim(self, run: Run, resume: str, changing: Sequence[str]) -> None:
        """Make the directory this run's, or check that it is.

        Raises:
            UserError: it cannot be written, another process trains in it, or it holds another run, or any run if `resume` is
                "never".
        """
        if self.path.exists() and not (self.path.is_dir() and os.access(self.path, os.W_OK)):
            raise UserError(f"run directory {self.path}: not a folder that can be written to; choose another with --run-dir")
        if self.holds_a_run() and resume == "never":
            raise UserError(f"run directory {self.path}: holds a run; choose another with --run-dir, or --resume auto")
        if self.holds_a_run() and not self.steps_saved():  # else the checkpoint says what run it is of
            self._require_same(run, changing)

    def describe(self, run: Run, device_type: str) -> None:
        """Write down the configuration as run, and what it is run with."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_settings(run, self.recipe, self.ds_config, [f"{run.name}, as run", A_RECORD, *provenance(device_type)])

    def _require_same(self, run: Run, changing: Sequence[str]) -> None:
        recipe = parse(Recipe, read_yaml(self.recipe), str(self.recipe))
        ds = parse(DeepSpeedConfig, as_recorded(read_json(self.ds_config)), str(self.ds_config))
        theirs = Run(run.name, recipe, ds, str(self.recipe), str(self.ds_config))
        require_allowed(run, theirs, changing, f"run directory {self.path}")

    def lock(self, patience: float = 0.0) -> FileLock:
        """Held while a process trains here; the kernel lets go of it when the process dies, over a network some time after.

        Args:
            patience: seconds to wait for it.

        Raises:
            UserError: another process holds it, or the folder cannot be made.
            OSError: one of an earlier start holds it still, or the disk is full: what may be gone on the next try.
        """
        self._require_no_dangling_link()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=patience)
        except Timeout:
            if patience:
                raise OSError(
                    errno.EBUSY, f"a process of an earlier start still trains in it, after {patience:g} s", str(self.path)
                ) from None
            raise UserError(
                f"run directory {self.path}: another process trains in it; wait for it or choose another with --run-dir"
            ) from None
        except OSError as error:
            if error.errno not in NEVER_WRITABLE:
                raise
            raise UserError(f"run directory {self.path}: cannot be written: {reason(error)}") from None
        return lock

    def _require_no_dangling_link(self) -> None:
        """
        Raises:
            UserError: the run directory, its folder of checkpoints or a folder above them is a link to nothing, or a file.
        """
        for place in (*reversed(self.path.absolute().parents), self.path, self.checkpoints):
            if place.is_symlink() and not place.exists():
                raise UserError(
                    f"{place}: is a link to {os.readlink(place)}, which is not there; make that folder, or remove the link"
                )
        if self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise UserError(f"{self.checkpoints}: is a file, where the folder of checkpoints belongs; move it")

    def require_seen(self) -> None:
        """Check that this rank sees the folder that rank 0 has locked; called on every rank.

        Raises:
            UserError: this rank sees another folder than rank 0.
        """
        if not (self.path / ".lock").exists():
            raise UserError(
                f"run directory {self.path}: is not the one that rank 0 sees; choose one on a file system that all nodes share"
            )

    def abandon_after(self, step: int) -> None:
        """Rename checkpoints beyond `step`: training resumes there, and they belong to no run any more."""
        beyond = [folder for folder in self.steps_saved() if step_of(folder) > step]
        for folder in beyond:
            aside = _free_name(folder, "abandoned")
            os.replace(folder, aside)
            print(f"{folder} is renamed to {aside.name}; remove it when it is no longer needed", flush=True)
        if beyond and (left := self.steps_saved()):
            point_to(left[-1])

    def steps_saved(self) -> list[Path]:
        """Folders of checkpoints, whole or damaged, the oldest first."""
        return sorted(self.checkpoints.glob("step_" + "[0-9]" * 8))


def seal(unfinished: Path, folder: Path, manifest: Manifest) -> None:
    """Turn a folder of written files into a checkpoint: manifest, everything to disk, name, LATEST."""
    for name, facts in manifest.files.items():
        file = unfinished / name
        if not file.is_file() or file.stat().st_size != facts.bytes:
            raise OSError(
                errno.EIO, f"rank 0 does not see what another rank wrote, {name}; do all nodes share this file system?", str(file)
            )
    write_whole(unfinished / MANIFEST, manifest.sealed().text() + "\n")
    for part in unfinished.glob("rank_*.json"):
        part.unlink()
    to_disk(unfinished)
    if folder.exists() or folder.is_symlink():
        problem = _remove(folder)
        if folder.exists():
            raise OSError(errno.EEXIST, problem or "it is there again", str(folder))
        if problem is not None:
            print(f"WARNING: {problem}", flush=True)
    os.replace(unfinished, folder)
    to_disk(folder.parent)
    point_to(folder)


def point_to(folder: Path) -> None:
    """Have LATEST name a checkpoint. It is for people and scripts, so that it is no failure if it cannot be written."""
    try:
        write_whole(folder.parent / "LATEST", folder.name + "\n")
    except OSError as error:
        print(
            f"WARNING: {folder.parent / 'LATEST'}: cannot be written ({reason(error)}); {folder.name} is good all the same",
            flush=True,
        )


def _remove(folder: Path) -> str | None:
    """Remove a checkpoint, which is none from the first moment on; return what is left and why, None if nothing is."""
    if folder.is_symlink():
        return remove(folder)
    going = _free_name(folder, "removed")
    try:
        os.replace(folder, going)
    except OSError as error:
        return f"{folder}: cannot be removed ({with_file(error)}); remove it by hand"
    return remove(going)


def prune(directory: RunDirectory, newest: int, every: int | None) -> list[str]:
    """Remove checkpoints but for the newest ones and, where `every` is given, those of steps that it divides.

    Those that were renamed are for people to remove: a disk that could not be read for a moment makes good ones look damaged.

    Returns what could not be removed and why. One that is not to be written to stays whole, under its name: somebody wants it.
    """
    problems: list[str | None] = []
    for folder in directory.steps_saved()[:-newest]:
        if every is None or step_of(folder) % every:
            kept = not folder.is_symlink() and not os.access(folder, os.W_OK)
            problems.append(f"{folder}: is read-only, so it is kept" if kept else _remove(folder))
    return [problem for problem in problems if problem is not None]


def prune_leftovers(directory: RunDirectory) -> None:
    """Remove what killed saves and killed removals left behind. What cannot be removed is out of the way of the next save."""
    unfinished = list(directory.checkpoints.glob("*.unfinished"))
    for folder in [*unfinished, *directory.checkpoints.glob("*.removed*")]:
        problem = remove(folder)
        if problem is not None:
            print(f"WARNING: {problem}", flush=True)
            if folder in unfinished:
                with suppress(OSError):
                    os.replace(folder, _free_name(folder, "removed"))


def step_of(folder: Path) -> int:
    """The step that a checkpoint's name gives."""
    return int(folder.name.removeprefix("step_"))


def _free_name(folder: Path, what: str) -> Path:
    number = 0
    while (name := folder.with_name(f"{folder.name}.{what}{number}")).exists() or name.is_symlink():
        number += 1
    return name


def write_settings(run: Run, recipe: Path, ds_config: Path, header: Sequence[str]) -> None:
    """Everything that a run is asked to do, as files that ask for it again."""
    write_whole(ds_config, dump_json(run.ds.model_dump(mode="json", exclude_none=True)))
    body = yaml.safe_dump({"name": run.name, **run.recipe.model_dump(mode="json", exclude={"name"})}, sort_keys=False)
    write_whole(recipe, "".join(f"# {line}\n" for line in header) + body)


def dump_json(value: object) -> str:
    """JSON as people read it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
