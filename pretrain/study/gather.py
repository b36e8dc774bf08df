"""Rows to report on: those of studies, of files of rows, and of any run directories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.config.run import SINCE
from pretrain.errors import UserError
from pretrain.evaluate.rows import read_rows
from pretrain.study.evals import StudyEval
from pretrain.study.plan import read_study
from pretrain.study.row import Row, read_table
from pretrain.study.row_of_run import row_of

NOT_THE_METHOD = {"recipe.seed"}
"""Settings in which runs of one method differ."""


def gather_evals(paths: Sequence[Path]) -> list[StudyEval]:
    """Return what the runs of studies among these paths made of tasks.

    Raises:
        UserError: a line is no row.
    """
    found: list[StudyEval] = []
    for path in paths:
        if path.suffix in (".yaml", ".yml", ".jsonl"):
            stem = path.name.removesuffix(".rows.jsonl").removesuffix(path.suffix if path.suffix != ".jsonl" else "")
            beside = path.with_name(f"{stem}.evals.jsonl")
            found += read_rows(beside, StudyEval) if beside.exists() else []
    return found


def gather(paths: Sequence[Path]) -> tuple[list[Row], str | None]:
    """The rows of all paths, each a study, a file of rows, or a run directory; and the baseline, if a study says which.

    Run directories are called by their method, and by what else tells them apart where settings differ.

    Raises:
        UserError: none of the three, or the same run twice.
    """
    rows: list[Row] = []
    baseline: str | None = None
    directories: dict[Path, Row] = {}
    for path in paths:
        if path.suffix in (".yaml", ".yml"):
            study = read_study(path)
            rows, baseline = rows + read_table(study.rows_file), baseline or study.baseline
        elif path.suffix == ".jsonl":
            beside = path.with_name(path.name.removesuffix(".rows.jsonl") + ".yaml")
            rows, baseline = rows + read_table(path), baseline or (read_study(beside).baseline if beside.is_file() else None)
        elif not path.is_dir():
            raise UserError(f"{path}: no such run directory; expected one, a study (.yaml), or its rows (.jsonl)")
        else:
            run = path / "run" if (path / "asked.json").exists() else path
            if run in directories:
                raise UserError(f"{path} is given twice; name each run once")
            directories[run] = row_of(run, "", "", {})
    rows += _named(directories)
    if not rows:
        raise UserError(f"{', '.join(map(str, paths))}: holds no rows yet")
    seen: set[tuple[str, str, int]] = set()
    for row in rows:
        if row.key in seen:
            raise UserError(f"{row.name} is given twice; name each run once")
        seen.add(row.key)
    return rows, baseline


def _named(runs: dict[Path, Row]) -> list[Row]:
    def method(row: Row) -> str:
        return row.settings["ds.progressive_subnetwork.method"]

    named = []
    for row in runs.values():
        alike = [other.settings for other in runs.values() if method(other) == method(row)]
        words = [
            method(row),
            *(
                f"{key.rpartition('.')[2]} {row.settings.get(key, SINCE.get(key))}"
                for key in differing(alike)
                if key not in NOT_THE_METHOD
            ),
        ]
        named.append(row.model_copy(update={"method": ", ".join(words)}))
    return named


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys in which they are not all the same."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
