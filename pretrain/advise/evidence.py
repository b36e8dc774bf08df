"""What studies have measured: methods against all layers in every step. The file is made by `python -m bench.evidence`."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pretrain.subnetwork.methods import MethodKeys, ProgressiveSubnetwork

FILE = Path(__file__).with_name("evidence.json")


@dataclass(frozen=True)
class Measured:
    """One method's held-out loss minus that of all layers in as many steps, paired by seed."""

    method: dict[str, Any]
    """The block `progressive_subnetwork`, keys with their defaults left out."""
    difference: float
    half_width: float
    """Half of the 95 % interval."""
    seeds: int
    runs: int
    """Pairs of runs; those of one seed in several studies count as one in the interval."""
    studies: tuple[str, ...]

    @property
    def most(self) -> float:
        """The upper end of the interval."""
        return self.difference + self.half_width

    def keys(self, layers: int, steps: int, measured_layers: int, measured_steps: int) -> MethodKeys:
        """Return the block for another depth and length: path lengths are the same shares of the layers, and what falls by step
        has fallen as far after the same share of them.

        Raises:
            ValueError: a path would have half a layer; with another length its loss was not measured.
        """
        block = dict(self.method)
        if "path_lengths" in block:
            exact = [Fraction(length * layers, measured_layers) for length in block["path_lengths"]]
            if any(length.denominator > 1 for length in exact):
                shares = ", ".join(f"{length}/{measured_layers}" for length in block["path_lengths"])
                raise ValueError(f"paths of {shares} of {layers} layers are no whole numbers")
            block["path_lengths"] = [int(length) for length in exact]
        if "gamma" in block:
            block["gamma"] = block["gamma"] * measured_steps / steps
        return TypeAdapter(ProgressiveSubnetwork).validate_python(block)


@dataclass(frozen=True)
class Evidence:
    """All of it, and what it was measured on."""

    parameters: int
    layers: int
    steps: int
    tokens_per_step: int
    sequence_length: int
    objective: str
    targets: float
    """Share of the positions."""
    measured: tuple[Measured, ...]

    def text(self) -> str:
        """Return the file's content."""
        rows = [vars(one) | {"studies": list(one.studies)} for one in self.measured]
        return json.dumps(vars(self) | {"measured": rows}, indent=1) + "\n"


def read_evidence(file: Path = FILE) -> Evidence:
    """Read the file that is part of the program."""
    found = json.loads(file.read_text())
    measured = tuple(Measured(**row | {"studies": tuple(row["studies"])}) for row in found["measured"])
    return Evidence(**found | {"measured": measured})
