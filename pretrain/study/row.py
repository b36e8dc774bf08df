"""A run in one row: everything that a comparison shows of it, and what must be equal for it to be compared."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from pretrain.errors import UserError, reason
from pretrain.schema import NotNegative, Number, Share, Strict

READING = ("recipe.data.", "data.", "recipe.model.vocab_size", "recipe.eval_samples")
"""Settings that begin so decide what is read, and what a held-out loss is a mean of."""


Loss = Annotated[Number, Field(ge=0, lt=1e6)]
"""Nats for each target token."""


class Evaluated(Strict):
    """A held-out loss, and what had been spent until then."""

    step: int
    loss: Loss
    """Mean over held-out target tokens; of all layers that exist."""
    layer_flops: NotNegative
    """Training operations in the layers."""
    model_flops: NotNegative
    """Embedding, final norm and output projection included."""
    seconds: NotNegative
    """Time of training steps, each taken as the median of those with as many active layers; evaluating and saving are not
    counted."""


class StageBoundary(Strict):
    """What the training loss did where paths became longer. Both sides are losses of subnetworks, of different sizes."""

    step: int
    """The first of the new stage."""
    steps: tuple[int, int]
    """How many on either side, ten at most."""
    layers_before: int
    layers_after: int
    before: Loss
    """Mean over the last steps before it."""
    after: Loss
    """Mean over the first steps of it."""


class Row(Strict):
    """One run."""

    size: str
    method: str
    """Name of the method in the study."""
    seed: int
    step: int
    """The last one done."""
    steps: int
    """The last one there is."""
    tokens_per_step: int
    parameters: int
    settings: dict[str, Any]
    data: dict[str, str]
    """Checksums; empty for a run outside a study."""
    made_with: tuple[str, ...]
    """Versions, commit, checksum of the code, device."""
    layout: dict[str, Any]
    losses: dict[str, Loss]
    """The last evaluation: "all", and by denoiser, mode and source."""
    parts: dict[str, Loss]
    """Held-out losses of parts of the model, if they were evaluated: first_1, first_2, ..., every_other."""
    agreement: dict[str, Share] = {}
    """At which share of held-out targets each part's likeliest token is the whole model's; empty in rows of before."""
    evaluations: Annotated[tuple[Evaluated, ...], Field(min_length=1)]
    training: tuple[tuple[int, Loss], ...]
    """Means of the training loss over stretches of steps, each with its last step."""
    boundaries: tuple[StageBoundary, ...]
    layer_use: tuple[tuple[Share, ...], ...]
    """`[layers][stretches of steps]`: share of the paths that ran the layer."""
    step_seconds: tuple[tuple[NotNegative, int, NotNegative], ...]
    """For each number of active layers (mean over a step's paths): how many steps, and their median time."""

    sha256: str = ""
    """Checksum of everything above; empty in rows of a program that wrote none, whose parts are held against each other alone."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Row":
        if self.sha256 not in ("", self._digest()):
            raise ValueError("it is not what was written: checksum")
        steps = [at.step for at in self.evaluations]
        trained = [step for step, _ in self.training]
        for good, what in (
            (self.losses.get("all") == self.evaluations[-1].loss, 'losses "all" is not that of the last evaluation'),
            (steps == sorted(set(steps)) and 1 <= steps[0] and steps[-1] <= self.step, "evaluations are not in order of steps"),
            (trained == sorted(set(trained)) and trained[-1:] == [self.step], "training losses do not end with the last step"),
            (sum(count for _, count, _ in self.step_seconds) == self.step, "step_seconds do not count every step once"),
            (0 < self.step <= self.steps, "step is beyond steps"),
        ):
            if not good:
                raise ValueError(f"it contradicts itself: {what}")
        return self

    def _digest(self) -> str:
        left_out = {"sha256"} if self.agreement else {"sha256", "agreement"}  # rows of before it keep their checksums
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()

    def sealed(self) -> "Row":
        """Return the row with its checksum."""
        return self.model_copy(update={"sha256": self._digest()})

    @property
    def key(self) -> tuple[str, str, int]:
        return self.size, self.method, self.seed

    @property
    def name(self) -> str:
        return ", ".join([*([self.size] if self.size else []), self.method, f"seed {self.seed}"])

    @property
    def loss(self) -> float:
        """Loss on held-out text at the last evaluation: of a finished run after its last step."""
        return self.losses["all"]

    @property
    def finished(self) -> bool:
        return self.step == self.last.step == self.steps

    def measures_as(self, other: "Row") -> bool:
        """Are both losses means over the same tokens of the same text, after as much of the same data a step? What is not known
        counts as the same."""
        mine, theirs = ({key: value for key, value in row.settings.items() if key.startswith(READING)} for row in (self, other))
        same_data = not (self.data and other.data) or self.data == other.data
        return mine == theirs and same_data and self.tokens_per_step == other.tokens_per_step

    @property
    def last(self) -> Evaluated:
        return self.evaluations[-1]

    @property
    def typical_seconds(self) -> float:
        """Time of the steps done, each taken as the median of those with as many active layers: a hiccup of the machine does not
        count."""
        return sum(count * seconds for _, count, seconds in self.step_seconds)

    def of(self, kind: str) -> str:
        """What the row was made with: a version, "commit", "code" or "device"."""
        return next((line.partition(" ")[2] for line in self.made_with if line.startswith(kind + " ")), "unknown")


def read_table(file: Path) -> list[Row]:
    """Rows of a file, one a line.

    Raises:
        UserError: not readable, or a line that is no row.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {reason(error)}") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = Row.model_validate_json(line)
            if any(row.key == other.key for other in rows):
                raise UserError(f"{file}: line {number} is a second row of {row.name}; remove one")
            rows.append(row)
        except ValidationError as error:
            problem = error.errors()[0]
            where = "".join(f"{place}: " for place in [".".join(map(str, problem["loc"]))] if place)
            raise UserError(
                f"{file}: line {number} is no row of a study: {where}{problem['msg'].removeprefix('Value error, ')}; remove the"
                " line, and `compare` takes it from the run again"
            ) from None
    return rows


def table(rows: Iterable[Row]) -> str:
    """The content of a file of rows."""
    return "".join(row.sealed().model_dump_json() + "\n" for row in rows)
