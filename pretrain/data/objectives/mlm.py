"""BERT's masked language modelling (arXiv 1810.04805, section 3.1): predict the tokens that were chosen, from both sides."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from pretrain.data.batch import Batch, Examples
from pretrain.data.draws import Draws
from pretrain.data.objectives.base import Cut, TextKeys
from pretrain.schema import Number, Strict
from tokenizer.pieces import CLS, MASK, PAD, SEP, Tokenizer

AROUND = 2
"""[CLS] before the text and [SEP] behind it."""
SHORTEST = 2
"""Tokens of text; of a single one nothing is left to predict it from."""
MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens: so many become [MASK] and so many another piece; the rest stay as they are."""


class MaskedWordsKeys(TextKeys):
    """Keys of the objective `mlm`."""

    mask_rate: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    """Share of tokens that mlm predicts."""
    whole_words: bool = False
    """mlm masks all pieces of a word or none."""


@dataclass(frozen=True)
class MaskedWords:
    """The objective `mlm`."""

    name: ClassVar = "mlm"
    summary: ClassVar = "BERT's masked words"
    keys: ClassVar[type[Strict]] = MaskedWordsKeys
    export_as: ClassVar = "MegatronBertForMaskedLM"
    script: ClassVar = "pretrain_bert.sh"
    labels_in_place: ClassVar = True
    use: ClassVar = "Fills in `[MASK]`; a text stands between `[CLS]` and `[SEP]`, and positions count from 0."

    pad: int
    cls: int
    sep: int
    mask: int
    rate: float
    """Share of the text's tokens that is chosen."""
    longest: int
    """Tokens of text in one example at most."""
    text_ids: tuple[int, int]
    """First and last + 1 of the ids that stand for text: another piece is drawn from these."""
    word_starts: np.ndarray | None = None
    """[vocabulary] bool: pieces that begin a word; where given, words are chosen whole."""

    @classmethod
    def open(cls, keys: MaskedWordsKeys, tokenizer: Tokenizer) -> "MaskedWords":
        return cls.of(tokenizer, keys.mask_rate, keys.max_example_tokens, keys.whole_words)

    @staticmethod
    def kinds(keys: MaskedWordsKeys) -> list[tuple[str, str | None]]:
        return [("mlm", None)]

    @staticmethod
    def target_share(keys: MaskedWordsKeys, length: int) -> float:
        text = max(0, min(keys.max_example_tokens, length - AROUND))
        return keys.mask_rate * text / (text + AROUND)

    @classmethod
    def of(cls, tokenizer: Tokenizer, rate: float, longest: int, whole_words: bool) -> "MaskedWords":
        pad, first, last, mask = (tokenizer.id(piece) for piece in (PAD, CLS, SEP, MASK))
        starts = tokenizer.word_starts() if whole_words else None
        return cls(pad, first, last, mask, rate, longest, tokenizer.text_ids(), starts)

    def cut(self, room: int, left: int, choice: float, turn: float) -> Cut:
        """See `Objective`. `hidden` is the number of chosen tokens; a fraction becomes one by chance, so that the rate is
        right."""
        if room < AROUND + SHORTEST:
            return Cut(take=0)
        take = min(left, self.longest, room - AROUND)
        if take < SHORTEST:
            return Cut(take)
        hidden = min(max(int(take * self.rate + turn), 1), take - 1)
        return Cut(take, hidden=hidden, positions=take + AROUND)

    def prefix(self, examples: Examples) -> np.ndarray:
        return examples.positions

    def fill(self, batch: Batch, examples: Examples, text: np.ndarray, following: np.ndarray, draws: list[Draws]) -> None:
        """See `Objective`. Labels are the text itself."""
        begin = examples.row * batch.tokens.shape[1] + examples.used
        tokens, labels = batch.tokens.reshape(-1), batch.labels.reshape(-1)
        inside = batch.segments.reshape(-1) >= 0
        tokens[begin], tokens[begin + examples.positions - 1] = self.cls, self.sep
        inside[begin] = inside[begin + examples.positions - 1] = False
        places = np.flatnonzero(inside)
        per_row = np.bincount(examples.row, weights=examples.take, minlength=len(draws)).astype(int).tolist()
        numbers = np.concatenate([row.uniform(3 * n).reshape(3, n) for row, n in zip(draws, per_row)], axis=1)
        chosen = self._choose(examples, text, numbers[0])
        first, last = self.text_ids
        other = first + (numbers[2] * (last - first)).astype(np.int64)
        shown = np.where(numbers[1] < MASKED, self.mask, np.where(numbers[1] < MASKED + RANDOM, other, text))
        tokens[places] = np.where(chosen, shown, text)
        labels[inside] = text
        batch.targets.reshape(-1)[places[chosen]] = True

    def _choose(self, examples: Examples, text: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """[tokens] bool: the tokens to predict: those of the smallest numbers, or whole words of the smallest numbers of their
        first.

        A text in which no choice of words comes near the number, such as one without spaces, is masked token by token.
        """
        owner = np.repeat(np.arange(len(examples)), examples.take)
        begin = np.cumsum(examples.take) - examples.take
        order = np.argsort(numbers + owner)
        rank = np.arange(len(text)) - begin[owner]
        chosen = np.zeros(len(text), bool)
        chosen[order[rank < examples.hidden[owner]]] = True
        if self.word_starts is None:
            return chosen
        whole = self._choose_words(examples, text, numbers, owner, begin)
        count = np.bincount(owner, weights=whole, minlength=len(examples))
        suits = (count > 0) & (count < examples.take) & (np.abs(count - examples.hidden) <= np.maximum(examples.hidden / 2, 1))
        return np.where(suits[owner], whole, chosen)

    def _choose_words(
        self, examples: Examples, text: np.ndarray, numbers: np.ndarray, owner: np.ndarray, begin: np.ndarray
    ) -> np.ndarray:
        assert self.word_starts is not None, "words are chosen whole only where it is known where they begin"
        starts = self.word_starts[text]
        starts[begin] = True
        word = np.cumsum(starts) - 1
        size = np.bincount(word)
        of_piece = owner[starts]
        order = np.argsort(numbers[starts] + of_piece)
        ordered = size[order]
        running = np.cumsum(ordered)
        taken = running - np.append(0, running)[np.searchsorted(of_piece, of_piece)]
        # A word that would go beyond the number is taken if at least half of it is within: right on average.
        picked = np.zeros(len(size), bool)
        picked[order[taken - ordered / 2 <= examples.hidden[of_piece]]] = True
        return picked[word]
