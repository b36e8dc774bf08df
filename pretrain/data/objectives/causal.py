"""Causal language modelling: every token predicts the next one of its document."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pretrain.data.batch import Batch, Examples
from pretrain.data.draws import Draws
from pretrain.data.objectives.base import Cut, predict_next
from pretrain.schema import Strict
from tokenizer.pieces import EOS, PAD, Tokenizer


@dataclass(frozen=True)
class Causal:
    """The objective `causal`. Documents in a sample do not see each other; one that the window cuts off continues in another
    sample."""

    name: ClassVar = "causal"
    summary: ClassVar = "every token predicts the next"
    keys: ClassVar[type[Strict]] = Strict
    export_as: ClassVar = "LlamaForCausalLM"
    script: ClassVar = "pretrain_ul2.sh"
    labels_in_place: ClassVar = False
    use: ClassVar = "Continues a text."

    pad: int
    eos: int

    @classmethod
    def open(cls, keys: Strict, tokenizer: Tokenizer) -> "Causal":
        return cls.of(tokenizer)

    @staticmethod
    def kinds(keys: Strict) -> list[tuple[str, str | None]]:
        return [("causal", None)]

    @staticmethod
    def target_share(keys: Strict, length: int) -> float:
        return 1.0

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Causal":
        return cls(tokenizer.id(PAD), tokenizer.id(EOS))

    def cut(self, room: int, left: int, choice: float, turn: float) -> Cut:
        """See `Objective`: the window's text is as long as a sample, so that all of it has room."""
        take = min(left, room)
        return Cut(take, positions=take)

    def prefix(self, examples: Examples) -> np.ndarray:
        return np.zeros(len(examples), np.int64)

    def fill(self, batch: Batch, examples: Examples, text: np.ndarray, following: np.ndarray, draws: list[Draws]) -> None:
        """See `Objective`: the last token predicts the end of its document, or what comes after the window."""
        batch.tokens.reshape(-1)[batch.segments.reshape(-1) >= 0] = text
        predict_next(batch, examples, np.zeros(len(examples), np.int64), np.where(examples.ends > 0, self.eos, following))
