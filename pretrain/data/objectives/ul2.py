"""UL2's denoisers for a decoder: text in, prefix and target out. Source: arXiv 2205.05131, section 3.1.

An example reads `[mode] prefix target </s>`. In the prefix of a span denoiser every masked span is replaced by a sentinel;
the target repeats each sentinel followed by what it hides. A prefix denoiser cuts the text in two, a causal one has no prefix at
all. The model predicts the target and `</s>`; the last token is predicted and never read, so an example takes one position less
than it has tokens.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, product
from typing import ClassVar

import numpy as np

from pretrain.data.batch import Batch, Examples
from pretrain.data.draws import Draws
from pretrain.data.objectives.base import Cut, predict_next
from pretrain.data.objectives.denoisers import Denoiser, Mode, Ul2Keys, hidden, longest_text, positions, spans
from pretrain.errors import UserError
from pretrain.schema import Strict
from tokenizer.pieces import EOS, PAD, Tokenizer, sentinel

SHORTEST = 2
"""Tokens; a text of one token has no room for a prefix and a target. Such tails are skipped."""
TURNS = 32
"""Places of an example's draw at which expectations are taken."""
JUST_BELOW_1 = 1 - 2**-53


@dataclass(frozen=True)
class Special:
    """Ids of the reserved pieces that a mixture uses."""

    pad: int
    eos: int
    modes: dict[Mode, int]
    sentinels: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer, denoisers: Sequence[Denoiser], longest: int) -> "Special":
        """Raises UserError if the tokenizer lacks a piece or has too few sentinels for texts of `longest` tokens."""
        needed = max(spans(d, longest, JUST_BELOW_1) for d in denoisers)
        if needed and not tokenizer.sentinels:
            tokenizer.id(sentinel(0))  # raises, and says how to get them
        if needed > tokenizer.sentinels:
            raise UserError(
                f"{tokenizer.directory}: {tokenizer.sentinels} sentinels, but data.max_example_tokens {longest} needs "
                f"{needed}; lower it or train a tokenizer with more"
            )
        modes = {mode: tokenizer.id(mode) for mode in {d.mode for d in denoisers} if mode}
        return cls(tokenizer.id(PAD), tokenizer.id(EOS), modes, np.array(tokenizer.sentinel_ids()))


@dataclass(frozen=True)
class Mixture:
    """Denoisers and how often each is used: the objective `ul2`."""

    name: ClassVar = "ul2"
    summary: ClassVar = "prefix and target in one decoder, loss on the target"
    keys: ClassVar[type[Strict]] = Ul2Keys
    export_as: ClassVar = "LlamaForCausalLM"
    script: ClassVar = "pretrain_ul2.sh"
    labels_in_place: ClassVar = False
    use: ClassVar = (
        "A prefix language model. In training a prefix is read in both directions; this class reads everything from left to"
        " right, which the model has seen for its targets only. A prompt starts with the mode token of its denoiser, where it has"
        " one (`[NLU]`, `[NLG]`, `[S2S]`); masked spans are sentinels `<extra_id_0>`, `<extra_id_1>`, ... (arXiv 2205.05131)."
    )

    denoisers: tuple[Denoiser, ...]
    special: Special
    longest: int
    """Tokens of text in one example at most."""

    @classmethod
    def open(cls, keys: Ul2Keys, tokenizer: Tokenizer) -> "Mixture":
        longest = keys.max_example_tokens
        return cls(keys.denoisers, Special.of(tokenizer, keys.denoisers, longest), longest)

    @staticmethod
    def kinds(keys: Ul2Keys) -> list[tuple[str, str | None]]:
        return [(denoiser.name, denoiser.mode) for denoiser in keys.denoisers]

    @staticmethod
    def target_share(keys: Ul2Keys, length: int) -> float:
        return _target_share(keys.denoisers, keys.max_example_tokens, length)

    @property
    def pad(self) -> int:
        return self.special.pad

    @cached_property
    def _cumulative(self) -> list[float]:
        total = sum(d.weight for d in self.denoisers)
        return list(accumulate(d.weight / total for d in self.denoisers[:-1]))

    def choose(self, place: float) -> int:
        """The denoiser at `place`, uniform in [0, 1), as an index."""
        return bisect_right(self._cumulative, place)

    def cut(self, room: int, left: int, choice: float, turn: float) -> Cut:
        """Choose a denoiser and cut the text of its example; see `Objective`."""
        kind = self.choose(choice)
        denoiser = self.denoisers[kind]
        if room < positions(denoiser, SHORTEST, turn):
            return Cut(take=0)
        take = min(left, self.longest)
        if positions(denoiser, take, turn) > room:
            take = longest_text(denoiser, room, turn)
        if take < SHORTEST:
            return Cut(take)
        return Cut(take, kind, hidden(denoiser, take, turn), spans(denoiser, take, turn), positions(denoiser, take, turn))

    def prefix(self, examples: Examples) -> np.ndarray:
        return self._has_mode[examples.kind] + examples.take - examples.hidden + examples.spans

    @cached_property
    def _has_mode(self) -> np.ndarray:
        return np.array([d.mode is not None for d in self.denoisers], dtype=np.int64)

    @cached_property
    def _modes(self) -> np.ndarray:
        return np.array([self.special.modes[d.mode] if d.mode else 0 for d in self.denoisers])

    def fill(self, batch: Batch, examples: Examples, text: np.ndarray, following: np.ndarray, draws: list[Draws]) -> None:
        """See `Objective`."""
        out = batch.tokens.reshape(-1)
        begin = examples.row * batch.tokens.shape[1] + examples.used
        mode = self._has_mode[examples.kind]
        out[begin[mode > 0]] = self._modes[examples.kind[mode > 0]]
        stretches = Stretches.of(examples, draws)
        # Kept stretch s of an example moves on by the mode token and s sentinels, hidden stretch s to behind all that is kept.
        number, spans = stretches.number, examples.spans[stretches.example]
        sentinel = spans > 0
        start = begin[stretches.example] + mode[stretches.example] + stretches.before
        start += np.where(
            stretches.hidden, (examples.take - examples.hidden)[stretches.example] + spans + (number + 1) * sentinel, number
        )
        out[_places(start, stretches.size)] = text[_places(stretches.source, stretches.size)]
        marks = sentinel & stretches.hidden
        out[start[marks] - 1] = self.special.sentinels[number[marks]]
        marks = sentinel & ~stretches.hidden
        out[start[marks] + stretches.size[marks]] = self.special.sentinels[number[marks]]
        predict_next(batch, examples, np.maximum(self.prefix(examples) - 1, 0), np.full(len(examples), self.special.eos))


@cache
def _target_share(denoisers: tuple[Denoiser, ...], longest: int, length: int) -> float:
    """Return targets over positions, in examples of each denoiser by its weight."""
    targets = everything = 0.0
    for denoiser, turn in product(denoisers, np.arange(0.5, TURNS) / TURNS):
        take = min(longest, longest_text(denoiser, length, turn))
        size = positions(denoiser, take, turn)
        prefix = (denoiser.mode is not None) + take - hidden(denoiser, take, turn) + spans(denoiser, take, turn)
        targets += denoiser.weight * (size - max(prefix - 1, 0))
        everything += denoiser.weight * size
    return targets / everything


def _places(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... start[0] + size[0] - 1, start[1], ..."""
    before = np.cumsum(size) - size
    return np.arange(int(size.sum())) + np.repeat(start - before, size)


@dataclass(frozen=True)
class Stretches:
    """Text cut into stretches that are kept and stretches that are hidden, of all examples; [stretches] each.

    The order is that of the example: all kept stretches of an example, then its hidden ones.
    """

    example: np.ndarray
    hidden: np.ndarray
    """bool."""
    number: np.ndarray
    """Number among the example's kept or hidden stretches, from 0."""
    size: np.ndarray
    """Tokens; 0 only where a whole example is hidden."""
    before: np.ndarray
    """Tokens of the example's earlier stretches of the same sort."""
    source: np.ndarray
    """Where the stretch begins in the examples' text."""

    @classmethod
    def of(cls, examples: Examples, draws: list[Draws]) -> "Stretches":
        """An example with n spans falls into n kept and n hidden stretches in turn, of random sizes that are at least 1 and add
        up to what is to be kept and hidden, all such cuts equally likely; one without spans into one kept and one hidden."""
        count = np.maximum(examples.spans, 1)
        kinds = np.repeat(count, 2)  # stretches of each sort
        totals = np.stack([examples.take - examples.hidden, examples.hidden], axis=1).ravel()
        size = _cut_at_random(examples, totals, kinds, draws)
        sort = np.repeat(np.arange(len(kinds)), kinds)
        first = np.cumsum(kinds) - kinds
        number = np.arange(len(size)) - first[sort]
        running = np.cumsum(size) - size
        before = running - running[first][sort]
        hidden = (sort & 1).astype(bool)
        example = sort >> 1
        # In the text a kept stretch comes after as many hidden ones, and a hidden one after one more that is kept.
        other = first[sort ^ 1] + number
        source = (
            np.cumsum(examples.take)[example] - examples.take[example] + before + before[other] + np.where(hidden, size[other], 0)
        )
        return cls(example, hidden, number, size, before, source)


def _cut_at_random(examples: Examples, totals: np.ndarray, counts: np.ndarray, draws: list[Draws]) -> np.ndarray:
    """Sizes of `counts[i]` stretches that add up to `totals[i]`, for each i.

    A stretch begins at the first token and at those of the `count - 1` smallest among random numbers of the others.
    """
    sorts = np.repeat(counts > 1, totals)
    begins = np.cumsum(totals) - totals
    cut = totals * (counts > 1)
    if not cut.any():
        return totals.copy()
    per_row = np.bincount(examples.row, weights=cut.reshape(-1, 2).sum(1), minlength=len(draws)).astype(int)
    keys = np.concatenate([row.uniform(n) for row, n in zip(draws, per_row.tolist())])
    owner = np.repeat(np.arange(len(totals)), cut)
    keys += owner
    firsts = (np.cumsum(cut) - cut)[counts > 1]
    keys[firsts] = owner[firsts]
    order = np.argsort(keys)
    rank = np.arange(len(keys)) - np.repeat(np.cumsum(cut) - cut, cut)
    is_start = np.zeros(len(keys), bool)
    is_start[order[rank < counts[owner]]] = True
    starts = np.zeros(int(totals.sum()), bool)
    starts[sorts] = is_start
    whole = (counts == 1) & (totals > 0)
    starts[begins[whole]] = True
    places = np.flatnonzero(starts)
    sizes = np.diff(np.append(places, totals.sum()))
    if (totals == 0).any():  # a stretch of nothing
        empty = np.repeat(totals == 0, counts)
        out = np.zeros(len(empty), np.int64)
        out[~empty] = sizes
        return out
    return sizes
