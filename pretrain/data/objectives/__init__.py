"""Objectives, a file each: how text becomes examples, and what the model predicts in them."""

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field, create_model

from pretrain.data.batch import Batch, Examples
from pretrain.data.draws import Draws
from pretrain.data.objectives.base import Cut
from pretrain.data.objectives.causal import Causal
from pretrain.data.objectives.denoisers import Ul2Keys
from pretrain.data.objectives.mlm import MaskedWords, MaskedWordsKeys
from pretrain.data.objectives.ul2 import Mixture
from pretrain.schema import Strict
from tokenizer.pieces import Tokenizer


class Objective(Protocol):
    """Turns text into examples. Everything that the program asks of an objective is here."""

    name: ClassVar[str]
    """What `data.objective` calls it."""
    summary: ClassVar[str]
    """What it does, in a few words, for `--explain`."""
    keys: ClassVar[type[Strict]]
    """Its keys in the recipe's block `data`; `Strict` if it has none."""
    export_as: ClassVar[str]
    """Class of Hugging Face's transformers that an exported model is loaded as."""
    script: ClassVar[str]
    """Script in slurm/ that trains it."""
    labels_in_place: ClassVar[bool]
    """Whether a label belongs to its own position, as BERT's do, and not to the one before."""
    use: ClassVar[str]
    """How an exported model is used, for its model card."""

    @classmethod
    def open(cls, keys: "ObjectiveKeys", tokenizer: Tokenizer) -> "Objective":
        """Make the objective of a recipe.

        Raises:
            UserError: the tokenizer lacks a piece that it needs.
        """

    @staticmethod
    def kinds(keys: "ObjectiveKeys") -> list[tuple[str, str | None]]:
        """Return name and mode token of every kind of example that it makes: held-out losses are reported by them."""

    @staticmethod
    def target_share(keys: "ObjectiveKeys", length: int) -> float:
        """Return which share of the positions of long documents' samples is expected to be targets."""

    @property
    def pad(self) -> int:
        """What empty positions hold."""

    def cut(self, room: int, left: int, choice: float, turn: float) -> Cut:
        """Say how much of the `left` tokens of a document goes into an example of at most `room` positions.

        Args:
            choice: uniform in [0, 1).
            turn: uniform in [0, 1).
        """

    def fill(self, batch: Batch, examples: Examples, text: np.ndarray, following: np.ndarray, draws: list[Draws]) -> None:
        """Write tokens, labels and targets.

        Args:
            text: [tokens], of all examples one after the other.
            following: [examples], the token after each example's text in the stream.
            draws: of each sample.
        """

    def prefix(self, examples: Examples) -> np.ndarray:
        """Return how many positions are read both ways, from the example's first on; [examples]."""


OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in (Mixture, Causal, MaskedWords)}
"""A new one is a file and a name here."""

if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]

_SUMMARIES = " ".join(f"{name}: {objective.summary}." for name, objective in OBJECTIVES.items())
_KEYS = tuple(dict.fromkeys(objective.keys for objective in OBJECTIVES.values() if objective.keys is not Strict))

if TYPE_CHECKING:

    class ObjectiveKeys(Ul2Keys, MaskedWordsKeys):
        """The keys of all objectives, and which one is meant."""

        objective: ObjectiveName
else:
    ObjectiveKeys = create_model(
        "ObjectiveKeys", __base__=_KEYS, __module__=__name__, objective=(ObjectiveName, Field("ul2", description=_SUMMARIES))
    )
