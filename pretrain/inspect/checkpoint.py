"""Looking at checkpoints: what there is, on which layout it was written, what is in it, and whether it is whole."""

from collections import Counter
from datetime import datetime
from math import prod
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pretrain.checkpoint.find import checkpoints_of
from pretrain.checkpoint.manifest import MANIFEST, Manifest, parameter_of, problem_of, read_manifest
from pretrain.optim.names import TENSORS

FILE_WIDTH = 160
"""Columns, where no terminal says how many there are."""


def inspect_checkpoints(path: Path, short: bool = False) -> None:
    """Print a table of the checkpoints of a run and, unless `short`, of the parameters in the newest one that can be read."""
    console = Console(markup=False)
    console = console if console.is_terminal else Console(markup=False, width=FILE_WIDTH)
    runs = Table(
        "step", "written", "size", "files", Column("layout", no_wrap=True), "samples", "lr", title=str(path), title_justify="left"
    )
    newest: Manifest | None = None
    for folder in checkpoints_of(path):
        try:
            manifest = read_manifest(folder)
        except ValueError as problem:
            runs.add_row(folder.name, "", "", "", Text(str(problem)))
            continue
        newest = manifest
        size = sum(facts.bytes for facts in manifest.files.values())
        written = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime)
        runs.add_row(
            f"{manifest.step:,}",
            f"{written:%Y-%m-%d %H:%M:%S}",
            mib(size),
            str(len(manifest.files)),
            layout_in_words(manifest.layout),
            f"{manifest.samples:,}",
            f"{manifest.lr:.3g}",
        )
    console.print(runs)
    if newest is None or short:
        return
    parameters = Table(
        Column("parameter", overflow="fold"),
        "shape",
        "numbers",
        "stretches",
        title=f"step {newest.step:,}: {', '.join(TENSORS)} of each",
        title_justify="left",
    )
    stretches = Counter(parameter_of(key) for facts in newest.files.values() for key in facts.fragments)
    for name, shape in newest.parameters.items():
        parameters.add_row(Text(name), " x ".join(map(str, shape)), f"{prod(shape):,}", str(stretches[name]))
    parameters.add_section()
    parameters.add_row("all", "", f"{sum(map(prod, newest.parameters.values())):,}")
    console.print(parameters)


def verify(path: Path) -> int:
    """Read every byte of the checkpoints of a run and print what is wrong; returns how many are damaged."""
    damaged = 0
    for folder in checkpoints_of(path):
        problem = problem_of(folder)
        damaged += problem is not None
        print(f"{folder}: {problem or 'good'}", flush=True)
    return damaged


def layout_in_words(layout: dict) -> str:
    """Return a layout as `TP2 x PP2 x DP4, ZeRO-1`."""
    names = {"tensor": "TP", "pipeline": "PP", "data": "DP"}
    sizes = [f"{short}{layout[name]}" for name, short in names.items() if layout.get(name, 1) != 1]
    words = " x ".join(sizes) or "one process"
    words += f", {layout['virtual']} chunks" if layout.get("virtual", 1) != 1 else ""
    return f"{words}, ZeRO-{layout.get('zero_stage', 0)}" if layout.get("zero_stage") else words


def mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
