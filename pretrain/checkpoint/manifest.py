"""The manifest of a checkpoint: everything about it but the numbers. docs/checkpoints.md is the format on one page."""

import hashlib
import json
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pretrain.checkpoint.fragments import Fragment, Split
from pretrain.checkpoint.tensors import NUMBER
from pretrain.errors import one_line, reason
from pretrain.files import sha256
from pretrain.optim.names import TENSORS, layer_of
from pretrain.progress import BYTES, bar
from pretrain.subnetwork.units import Units

MANIFEST = "manifest.json"
FORMAT = 1
BLOCK = "#"
"""Between a parameter's name and the number of the block of it that a file has, where a rank keeps it in blocks."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TensorFileFacts(_Part):
    """One file of numbers, written by one rank."""

    bytes: Positive
    sha256: str
    fragments: dict[str, Annotated[tuple[Positive, Count, Positive, Count, Positive], Field(strict=False)]]
    """Parameter, or block of one -> parts that it is split into, part, block, start, length (fragments.py)."""

    def fragment(self, key: str) -> Fragment:
        """Return where the numbers that this file has by a key are in their parameter."""
        ranks, rank, block, start, length = self.fragments[key]
        return Fragment(Split(ranks, rank, block), start, length)


class RankPart(_Part):
    """What one rank has written of a checkpoint, in a file beside it until the manifest is there."""

    file: TensorFileFacts | None
    """None where other ranks write all that it holds."""
    shapes: dict[str, Annotated[tuple[Positive, ...], Field(strict=False)]]
    """Shapes of the whole parameters that it has numbers of."""

    @staticmethod
    def name(rank: int) -> str:
        """Return the name of its file."""
        return f"rank_{rank:05d}.json"


class Manifest(_Part):
    """What a checkpoint says of itself."""

    format: int
    step: Count
    """The last step that is in it."""
    samples: Count
    """Packed samples consumed: with the seed, the whole state of the data."""
    lr: float
    """Learning rate of `step`. For people: the schedule is a function of the step."""
    layout: dict[str, int | bool]
    """Layout on which it was written; any other can load it."""
    recipe: dict[str, Any]
    """The recipe as resolved; its seed decides the order of data."""
    ds_config: dict[str, Any]
    """The DeepSpeed JSON as resolved; its path seed, or else the recipe's seed, decides the paths."""
    versions: list[str]
    tokenizer_sha256: str
    """Checksum of the sentencepiece model by which the data was made."""
    data: dict[str, str] | None = None
    """Checksums of the token files, by the setting that names them; None in a checkpoint of a program that took none."""
    updates: Annotated[tuple[Count, ...], Field(strict=False)] | None = None
    """AdamW's updates of each layer, or, where layers are cut, of each unit in them; None where there are as many as steps."""
    cut: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """Into how many groups of heads and blocks of columns layers are cut of which `updates` tells; None if they are not."""
    parameters: dict[str, Annotated[tuple[Positive, ...], Field(strict=False)]]
    """Shapes."""
    files: dict[str, TensorFileFacts]
    sha256: str = ""
    """Checksum of everything above, as `sealed` makes it."""

    def sealed(self) -> "Manifest":
        """Return the manifest with its checksum."""
        return self.model_copy(update={"sha256": self._digest()})

    def text(self) -> str:
        """Return it as it is written: without keys that programs before them would not read, where they say nothing."""
        return self.model_dump_json(exclude={name for name in ("updates", "cut") if getattr(self, name) is None})

    def _digest(self) -> str:
        left_out = {"sha256", *(name for name in ("data", "updates", "cut") if getattr(self, name) is None)}
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()

    def updates_of(self, units: Units) -> tuple[int, ...]:
        """Return AdamW's updates of each unit.

        What is cut otherwise than it was has, in each layer, the count of the part that had most.
        """
        if self.updates is None:
            return (self.step,) * units.count
        was, found = self._units, []
        for layer in range(units.layers):
            counts = self.updates[layer * was.in_layer : (layer + 1) * was.in_layer]
            groups, columns = counts[1 : 1 + was.groups], counts[1 + was.groups :]
            found.append(counts[0] if was == units else max(counts))
            found += groups if was.groups == units.groups else (max(counts),) * units.groups
            found += columns if was.columns == units.columns else (max(counts),) * units.columns
        return tuple(found)

    @property
    def _units(self) -> Units:
        layers = {layer for name in self.parameters if (layer := layer_of(name)) is not None}
        return Units(len(layers), *(self.cut or (0, 0)))

    @model_validator(mode="after")
    def _makes_sense(self) -> "Manifest":
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}; this program reads {FORMAT}")
        units = self._units
        if self.updates is not None and (len(self.updates) != units.count or max(self.updates, default=0) > self.step):
            raise ValueError(
                f"it tells {len(self.updates)} counts of updates in {self.step} steps, and has {units.count} of layers and parts"
            )
        for file, facts in self.files.items():
            if file != Path(file).name or not file.endswith(".safetensors"):
                raise ValueError(f"{file!r} is not the name of a file in the checkpoint")
            unknown = {parameter_of(key) for key in facts.fragments} - self.parameters.keys()
            if unknown:
                raise ValueError(f"{file}: no parameter is called {min(unknown)}")
            if NUMBER.itemsize * len(TENSORS) * sum(numbers[-1] for numbers in facts.fragments.values()) > facts.bytes:
                raise ValueError(f"{file}: is too small for its fragments")
        parts: dict[str, list[tuple[int, ...]]] = {name: [] for name in self.parameters}
        for facts in self.files.values():
            for key, numbers in facts.fragments.items():
                parts[parameter_of(key)].append(numbers)
        for name, shape in self.parameters.items():
            if not _tiles(parts[name], prod(shape)):
                raise ValueError(f"the fragments of {name} do not cover it exactly once")
        return self


def parameter_of(key: str) -> str:
    """Return the parameter of which a file has a fragment by this key."""
    return key.partition(BLOCK)[0]


def _tiles(fragments: list[tuple[int, ...]], numbers: int) -> bool:
    """Do the fragments of a parameter hold each of its numbers once? All are of one layout."""
    if len({(ranks, block) for ranks, _, block, _, _ in fragments}) != 1:
        return False
    ranks, _, block, _, _ = fragments[0]
    if numbers % (ranks * block):
        return False
    at = dict.fromkeys(range(ranks), 0) if ranks <= len(fragments) else {}
    for _, rank, _, start, length in sorted(fragments, key=lambda fragment: fragment[3]):
        if at.get(rank) != start:
            return False
        at[rank] += length
    return all(end == numbers // ranks for end in at.values())


def as_facts(fragments: dict[str, Fragment], size: int, digest: str) -> TensorFileFacts:
    numbers = {name: (*asdict(fragment.split).values(), fragment.start, fragment.length) for name, fragment in fragments.items()}
    return TensorFileFacts(bytes=size, sha256=digest, fragments=numbers)


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        ValueError: there is none, or it is damaged; says what is wrong.
    """
    try:
        manifest = Manifest.model_validate(json.loads((folder / MANIFEST).read_text()))
        if manifest.sha256 != manifest._digest():
            raise ValueError("it is not what was written: checksum")
        if folder.name.startswith("step_") and folder.name != f"step_{manifest.step:08d}":
            raise ValueError(f"it is of step {manifest.step}")
        return manifest
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{MANIFEST} is not a checkpoint's ({where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')})"
        ) from None
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({one_line(error)})") from None


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is good."""
    try:
        return damage(folder, read_manifest(folder))
    except ValueError as error:
        return str(error)


def damage(folder: Path, manifest: Manifest, share: slice = slice(None)) -> str | None:
    """What is wrong with a checkpoint's files, read to the last byte; None if nothing is.

    Args:
        share: of the files, so that ranks can divide the reading among them.
    """
    names = sorted(manifest.files)[share]
    with bar(f"reading {folder.name}", sum(manifest.files[name].bytes for name in names), BYTES) as shown:
        for name in names:
            file, facts = folder / name, manifest.files[name]
            try:
                if not file.is_file():
                    return f"{name} is missing"
                if file.stat().st_size != facts.bytes:
                    return f"{name} has {file.stat().st_size} bytes instead of {facts.bytes}"
                if sha256(file, shown.add) != facts.sha256:
                    return f"{name} is not what was written (checksum)"
            except OSError as error:
                return f"{name} cannot be read ({reason(error)})"
    return None
