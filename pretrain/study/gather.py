"""Rows to report on: those of a study's file, and of any run directories."""

from pathlib import Path
from typing import Any, Sequence

from pretrain.errors import UserError
from pretrain.study.row import Row, read_table, row_of

NOT_THE_METHOD = {"recipe.seed"}
"""Settings in which runs of one method differ."""


def rows_of(paths: Sequence[Path]) -> list[Row]:
    """The rows of all paths, each a run directory or a file of rows.

    Run directories are called by their method, and by what else tells them apart where settings differ.

    Raises:
        UserError: neither the one nor the other, or the same run twice.
    """
    tables = [path for path in paths if path.suffix == ".jsonl" and path.is_file()]
    rows = [row for path in tables for row in read_table(path)]
    rows += _named({path: row_of(path, "", "", {}) for path in paths if path not in tables})
    if not rows:
        raise UserError(f"{', '.join(map(str, paths))}: holds no rows yet")
    seen: set[tuple[str, str, int]] = set()
    for row in rows:
        if row.key in seen:
            raise UserError(f"{row.name} is given twice; name each run once")
        seen.add(row.key)
    return rows


def _named(runs: dict[Path, Row]) -> list[Row]:
    def method(row: Row) -> str:
        return row.settings["ds.progressive_subnetwork.method"]

    names = {path: method(row) for path, row in runs.items()}
    for name in set(names.values()):
        alike = {path: row for path, row in runs.items() if method(row) == name}
        for path, row in alike.items():
            names[path] = ", ".join([name, *(f"{key.rpartition('.')[2]} {row.settings.get(key)}" for key in _differing([row.settings for row in alike.values()]))])
    return [row.model_copy(update={"method": names[path]}) for path, row in runs.items()]


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one if key not in NOT_THE_METHOD)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
