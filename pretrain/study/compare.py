"""`compare`: do the runs of a study that are missing, and keep a row of every one that has finished.

RUNS/code is a copy of the code as it was when the study was begun, and all of its runs use it, whatever is edited meanwhile. RUNS/NAME/ has what a run was asked
for, its log, and run/, its run directory. Rows stand in a file beside the study. A run whose settings, data or code are not those that the study's others
have is refused, not compared.
"""

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from filelock import FileLock, Timeout

from pretrain.checkpoint.directory import RunDirectory, dump_json, write_settings
from pretrain.errors import UserError
from pretrain.files import write_whole
from pretrain.study.identity import data_of, settings_of
from pretrain.study.plan import Planned, Study
from pretrain.study.row import Row, read_table, row_of, table
from pretrain.versions import HOME, code_sha256, commit, versions

COPIED = ("pretrain", "tokenizer", "ds_configs", "slurm", "requirements.txt")


@dataclass
class Bench:
    """A study where its runs lie. Made by `open_bench`, which holds its lock."""

    study: Study
    runs: Path
    code: Path
    """The copy that every run uses."""
    data: dict[str, str]
    """Checksums of what every run reads."""
    rows: dict[tuple[str, str, int], Row]
    """Of the runs that have finished."""

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
        asked, wanted = folder / "asked.json", {"settings": settings_of(run), "data": self.data, "code": self._code_facts()}
        if asked.exists():
            require_same(json.loads(asked.read_text()), wanted, str(folder), "remove that folder, or choose another with --runs")
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(run, folder / "recipe.yaml", folder / "ds_config.json", [f"{run.name}, as the study asks"])
        write_whole(asked, dump_json(wanted))
        return [str(folder / "recipe.yaml"), "--ds-config", str(folder / "ds_config.json"), "--run-dir", str(self.run_dir(planned))]

    def collect(self, planned: Planned) -> Row | None:
        """Keep the row of a run, if it has finished; it is in the file when this returns."""
        folder = self.folder(planned)
        if not (folder / "asked.json").exists() or not RunDirectory(self.run_dir(planned)).checkpoint(planned.run.steps).is_dir():
            return None
        self.prepare(planned)  # is it what the study asks for?
        row = row_of(self.run_dir(planned), planned.size, planned.method, self.data)
        require_same(facts_of(row), self._facts(planned), str(folder), "remove that folder to train it again")
        self.rows[planned.key] = row
        order = [planned.key for planned in self.study.planned]
        kept = sorted(self.rows.values(), key=lambda row: order.index(row.key) if row.key in order else len(order))
        write_whole(self.study.rows_file, table(kept))
        return row

    def collect_finished(self) -> None:
        """Keep the rows of all runs that have finished since."""
        for planned in self.missing:
            self.collect(planned)

    def _code_facts(self) -> dict[str, str]:
        return {"code": code_sha256(self.code), **dict(line.split(" ", 1) for line in versions())}

    def _facts(self, planned: Planned) -> dict[str, Any]:
        return {"settings": settings_of(planned.run), "data": self.data, "code": self._code_facts()}


@contextmanager
def open_bench(study: Study, runs: Path) -> Iterator[Bench]:
    """A study with the runs that it has so far.

    Raises:
        UserError: another process is at work on it, or rows are not of the runs that it asks for.
    """
    runs.mkdir(parents=True, exist_ok=True)
    lock = FileLock(runs / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{runs}: another process is at work on this study; wait for it, or choose another with --runs") from None
    with lock:
        rows = {row.key: row for row in read_table(study.rows_file)} if study.rows_file.exists() else {}
        for row in rows.values():
            _require_asked_for(study, row)
        bench = Bench(study, runs, runs / "code", {}, rows)
        if bench.missing:
            copy_code(bench.code)
            bench.data = data_of(bench.missing[0].run)
            for row in rows.values():
                facts, ours = facts_of(row), bench._facts(study.planned[0])
                del facts["settings"], ours["settings"]
                mend = f"remove them to run all again, or check out commit {row.of('commit')} and choose another --runs"
                require_same(facts, ours, f"{study.rows_file}: {row.name}", mend)
        yield bench


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
                different.append(f"{part} {key} is {_short(there.get(key))} there, {_short(here.get(key))} now" if key != part else f"its code is {_short(there.get(key))}, that of the study's runs {_short(here.get(key))}")
    if different:
        raise UserError(f"{where}: {'; '.join(different)}; {mend}")


def copy_code(to: Path) -> None:
    """The code as it is now, unless there is a copy of an earlier moment, which stays."""
    if to.is_dir():
        if code_sha256(to) != code_sha256(HOME):
            print(f"runs use the code in {to}, as it was when the study was begun; this one differs", flush=True)
        return
    part = to.with_name(to.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in COPIED:
        if (source := HOME / name).is_dir():
            shutil.copytree(source, part / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, part / name)
    (part / "COMMIT").write_text(commit() + "\n")
    part.rename(to)


def _require_asked_for(study: Study, row: Row) -> None:
    planned = next((planned for planned in study.planned if planned.key == row.key), None)
    if planned is None:
        raise UserError(f"{study.rows_file}: holds a row of {row.name}, which {study.file} does not ask for; remove the line, or put it back into the study")
    mend = f"call it something else in {study.file}, or remove its line to run it again"
    require_same({"settings": row.settings}, {"settings": settings_of(planned.run)}, f"{study.rows_file}: {row.name}", mend)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else text[:12] + '..."'

