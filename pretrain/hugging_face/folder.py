"""A folder of safetensors, read row by row: nothing in it is run, and no tensor is ever in memory as a whole."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from pretrain.errors import UserError, one_line

INDEX, ALONE = "model.safetensors.index.json", "model.safetensors"
STRETCH = 2**24
"""Numbers that are read at a time."""
TYPES = {"F32", "BF16", "F16"}
"""Types of numbers, as safetensors calls them, that become fp32 without loss."""


@dataclass(frozen=True)
class WeightFolder:
    """The tensors of a folder: which file has each, and its shape."""

    path: Path
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def open(cls, path: Path) -> "WeightFolder":
        """Read the headers of all files.

        Raises:
            UserError: there are no such files, or they are not what the index says.
        """
        named = _index(path)
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted({*named.values()}) if named else [path / ALONE]:
            for name, shape in _header(file).items():
                if named and named.get(name) != file:
                    raise UserError(f"{file}: holds {name}, of which {INDEX} says otherwise; copy the folder again")
                files[name], shapes[name] = file, shape
        if missing := sorted(named.keys() - files.keys()):
            raise UserError(f"{named[missing[0]]}: lacks {missing[0]}, which {INDEX} says is there; copy the folder again")
        return cls(path, files, shapes)

    def rows(self, name: str, first: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """Rows `first` to `end` of a tensor, [rows, ...] fp32, a stretch at a time, each with the number of its first row.

        Raises:
            UserError: the file cannot be read.
        """
        step = max(1, STRETCH // prod(self.shapes[name][1:]))
        try:
            with safe_open(self.files[name], framework="pt") as file:
                numbers = file.get_slice(name)
                for begin in range(first, end, step):
                    yield begin, numbers[begin : min(begin + step, end)].to(torch.float32).numpy()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.files[name]}: cannot be read ({one_line(error)}); copy the folder again") from None


def _index(path: Path) -> dict[str, Path]:
    """Return the file of each tensor as the index says; none where a single file has all."""
    if (path / ALONE).is_file() and not (path / INDEX).is_file():
        return {}
    try:
        named = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not named or not all(isinstance(text, str) and Path(text).name == text for text in (*named.values(),)):
            raise ValueError("its weight_map names no files")
        return {name: path / file for name, file in named.items()}
    except FileNotFoundError:
        pickled = next(iter(sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])), None)
        beside = f"; {pickled.name} may run code when it is read: save it again with safe_serialization=True" if pickled else ""
        raise UserError(f"{path}: has neither {ALONE} nor {INDEX}{beside}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / INDEX}: damaged ({one_line(error)}); copy the folder again") from None


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = {name: opened.get_slice(name) for name in opened.keys()}
            for name, numbers in found.items():
                if numbers.get_dtype() not in TYPES:
                    raise UserError(f"{file}: {name} is {numbers.get_dtype()}; only {', '.join(sorted(TYPES))} are read")
            return {name: tuple(numbers.get_shape()) for name, numbers in found.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({one_line(error)}); copy the folder again") from None
