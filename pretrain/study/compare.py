"""`compare`: do the runs of a study that are missing, and keep a row of every one that has finished.

RUNS/code is a copy of the code as it was when the study was begun, and all of its runs use it, whatever is edited meanwhile.
RUNS/NAME/ has what a run was asked for, its log, and run/, its run directory. Rows are in a file beside the study. A run whose
settings, data or code are not those that the study's others have is refused, not compared.
"""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pretrain.checkpoint.directory import RunDirectory, dump_json, write_settings
from pretrain.checkpoint.manifest import problem_of
from pretrain.config.strict import read_json
from pretrain.errors import UserError, reason
from pretrain.files import remove, write_whole
from pretrain.observe.metrics import evaluations_at, read_rows, training_rows
from pretrain.study.identity import data_of, settings_of
from pretrain.study.plan import Planned, Study
from pretrain.study.row import Row, read_table, table
from pretrain.study.row_of_run import row_of
from pretrain.versions import CODE_LIST, HOME, code_sha256, commit, listed_code, versions

BEFORE_LISTS = ("pretrain", "tokenizer", "ds_configs", "slurm", "requirements.txt")
"""What a run took along at commits that have no CODE_LIST yet."""


@dataclass
class Bench:
    """A study with its runs. Made by `open_bench`, which holds its lock."""

    study: Study
    runs: Path
    code: Path
    """The copy that every run uses."""
    rows: dict[tuple[str, str, int], Row]
    """Rows of the runs that have finished."""

    @property
    def missing(self) -> list[Planned]:
        return [planned for planned in self.study.planned if planned.key not in self.rows]

    def folder(self, planned: Planned) -> Path:
        return self.runs / planned.name

    def run_dir(self, planned: Planned) -> Path:
        return self.folder(planned) / "run"

    def prepare(self, planned: Planned) -> list[str]:
        """Write down what a run is asked to do; returns the words for `train`.

        Raises:
            UserError: the folder holds what was begun with other settings, data or code.
        """
        folder, run = self.folder(planned), planned.run
        asked, wanted = folder / "asked.json", self._facts(planned)
        mend = "remove that folder, or choose another with --runs"
        if asked.exists():
            try:
                found = read_json(asked)
            except UserError as error:
                raise UserError(f"{error}; {mend}") from None
            require_same(found, wanted, str(folder), mend)
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(run, folder / "recipe.yaml", folder / "ds_config.json", [f"{run.name}, as the study asks"])
        write_whole(asked, dump_json(wanted))
        return [
            str(folder / "recipe.yaml"),
            "--ds-config",
            str(folder / "ds_config.json"),
            "--run-dir",
            str(self.run_dir(planned)),
        ]

    def collect(self, planned: Planned) -> Row | None:
        """Keep the row of a run, if it has finished; it is in the file when this returns.

        Raises:
            UserError: it is not what the study asks for, reads other data than when it began, or files of it are damaged.
        """
        folder, steps = self.folder(planned), planned.run.steps
        last = RunDirectory(self.run_dir(planned)).checkpoint(steps)
        if not (folder / "asked.json").exists() or not last.is_dir() or problem_of(last) is not None:
            return None  # training resumes from an older checkpoint where the last one is damaged
        self.prepare(planned)  # is it what the study asks for?
        try:
            if self._lacks_evaluation(planned):
                return None  # it ended, or is, between its last checkpoint and the evaluation, which training makes up for
            row = row_of(self.run_dir(planned), planned.size, planned.method, data_of(planned.run), steps)
            if not row.finished:
                raise UserError(f"{folder}: the last step was not evaluated")
        except UserError as error:
            raise UserError(f"{error}; remove {folder} to train that run again") from None
        require_same(facts_of(row), self._facts(planned), str(folder), "remove that folder to train it again")
        self.rows[planned.key] = row
        order = [planned.key for planned in self.study.planned]
        kept = sorted(self.rows.values(), key=lambda row: order.index(row.key) if row.key in order else len(order))
        write_whole(self.study.rows_file, table(kept))
        return row

    def _lacks_evaluation(self, planned: Planned) -> bool:
        metrics, steps = self.run_dir(planned) / "metrics.jsonl", planned.run.steps
        rows = read_rows(metrics) if metrics.is_file() else []
        trained = any(row["step"] == steps for row in training_rows(rows))
        return trained and evaluations_at(rows, steps) < planned.run.evaluations(steps)

    def collect_finished(self) -> None:
        """Keep the rows of all runs that have finished since."""
        for planned in self.missing:
            self.collect(planned)

    def _code_facts(self) -> dict[str, str]:
        return {"code": code_sha256(self.code), **dict(line.split(" ", 1) for line in versions())}

    def _facts(self, planned: Planned) -> dict[str, Any]:
        return {"settings": settings_of(planned.run), "data": data_of(planned.run), "code": self._code_facts()}


@contextmanager
def open_bench(study: Study, runs: Path) -> Iterator[Bench]:
    """A study with the runs that it has so far.

    Raises:
        UserError: another process is at work on it, or rows are not of the runs that it asks for.
    """
    with (
        _alone(runs, "choose another with --runs"),
        _alone(study.file.parent, "copy the study to a folder of its own", f".{study.file.stem}.lock"),
    ):
        rows = {row.key: row for row in read_table(study.rows_file)} if study.rows_file.exists() else {}
        for row in rows.values():
            _require_asked_for(study, row)
        _require_alike(study, list(rows.values()))
        bench = Bench(study, runs, runs / "code", rows)
        if bench.missing:
            copy_code(bench.code, list(rows.values()))
            for planned in study.planned:
                if (found := rows.get(planned.key)) is not None:
                    mend = (
                        f"remove the rows to run all again, or restore what they were made with (commit {found.of('commit')}, in"
                        " another --runs)"
                    )
                    require_same(facts_of(found), bench._facts(planned), f"{study.rows_file}: {found.name}", mend)
        yield bench


@contextmanager
def _alone(folder: Path, mend: str, name: str = ".lock") -> Iterator[None]:
    """Hold a folder, or one study of it, against other processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is at work on this study; wait for it, or {mend}") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {reason(error)}; {mend}") from None
    with lock:
        yield


def facts_of(row: Row) -> dict[str, Any]:
    """What must be equal for a row to stand beside others, in the shape in which runs note it."""
    kinds = ["code", *(line.split(" ", 1)[0] for line in versions())]
    return {"settings": row.settings, "data": row.data, "code": {kind: row.of(kind) for kind in kinds}}


def require_same(theirs: dict[str, Any], ours: dict[str, Any], where: str, mend: str) -> None:
    """
    Raises:
        UserError: names every difference.
    """
    ours = json.loads(json.dumps(ours))  # tuples and lists are the same there
    different = []
    for part in ours:
        there, here = theirs.get(part, {}), ours[part]
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                different.append(
                    f"{part} {key} is {_short(there.get(key))} there, {_short(here.get(key))} now"
                    if key != part
                    else f"its code is {_short(there.get(key))}, that of the study's runs {_short(here.get(key))}"
                )
    if different:
        raise UserError(f"{where}: {'; '.join(different)}; {mend}")


def copy_code(to: Path, rows: Sequence[Row]) -> None:
    """The code with which the rows were made, from git where it is another than this; without rows, this. A copy that is there
    stays."""
    if to.is_dir():
        if code_sha256(to) != code_sha256(HOME):
            print(f"runs use the code in {to}, as it was when the study was begun; this one differs", flush=True)
        return
    part = to.with_name(to.name + ".part")
    if problem := remove(part):
        raise UserError(problem)
    part.mkdir()
    if (
        rows
        and rows[0].of("code") != code_sha256(HOME)
        and _from_git(rows[0].of("commit"), part)
        and code_sha256(part) == rows[0].of("code")
    ):
        print(f"runs use the code of commit {rows[0].of('commit')}, with which the rows were made", flush=True)
    else:
        if problem := remove(part):
            raise UserError(problem)
        part.mkdir()
        _copy_this(part)
    part.rename(to)


def _from_git(made_with: str, to: Path) -> bool:
    """Put the code of a commit into `to`, with the names that the commit itself lists; False if git does not have it."""
    listing = _git("show", f"{made_with}:{CODE_LIST}")
    names = BEFORE_LISTS if listing is None else listed_code(listing.decode())
    archive = _git("archive", "--format=tar", made_with, *names)
    if archive is None:
        return False
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(to, filter="data")
    (to / "COMMIT").write_text(made_with + "\n")
    return True


def _git(*words: str) -> bytes | None:
    """Return what git prints about this repository; None if it refuses."""
    done = subprocess.run(["git", "-C", HOME, *words], capture_output=True)
    return None if done.returncode else done.stdout


def _copy_this(to: Path) -> None:
    if not (HOME / CODE_LIST).is_file():
        raise UserError(
            f"{HOME}: has no {CODE_LIST}; compare copies the code that it runs, so call it in a clone of the repository"
        )
    for name in listed_code((HOME / CODE_LIST).read_text()):
        if (source := HOME / name).is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to / name)
    (to / "COMMIT").write_text(commit() + "\n")


def _require_asked_for(study: Study, row: Row) -> None:
    planned = next((planned for planned in study.planned if planned.key == row.key), None)
    if planned is None:
        raise UserError(
            f"{study.rows_file}: holds a row of {row.name}, which {study.file} does not ask for; remove the line, or put it back"
            " into the study"
        )
    mend = f"call it something else in {study.file}, or remove its line to run it again"
    require_same({"settings": row.settings}, {"settings": settings_of(planned.run)}, f"{study.rows_file}: {row.name}", mend)


def _require_alike(study: Study, rows: Sequence[Row]) -> None:
    """The code of all rows is the same, and the data of those of one size; also where no run is missing, and neither need be
    there any more."""
    mend = "rows of two kinds are not compared; remove those of one, to run them again"
    for row in rows:
        for other, part in ((rows[0], "code"), (next(one for one in rows if one.size == row.size), "data")):
            require_same(
                facts_of(row), {part: facts_of(other)[part]}, f"{study.rows_file}: {row.name}, beside {other.name}", mend
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else text[:12] + '..."'
