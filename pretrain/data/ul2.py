"""UL2's denoisers for a decoder: text in, prefix and target out. Source: arXiv 2205.05131, section 3.1.

An example reads `[mode] prefix target </s>`. In the prefix of a span denoiser every masked span stands as a sentinel;
the target repeats each sentinel followed by what it hides. A prefix denoiser cuts the text in two. The model predicts
the target and `</s>`; the last token is predicted and never read, so an example takes one position less than it has
tokens.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Sequence

import numpy as np

from pretrain.config.recipe import Denoiser
from pretrain.errors import UserError
from tokenizer.pieces import EOS, PAD, Tokenizer

SHORTEST = 2
"""Tokens; a text of one token has no room for a prefix and a target. Such tails are passed over."""
JUST_BELOW_1 = 1 - 2**-53


@dataclass(frozen=True)
class Example:
    """Tokens that the model reads, and from where on it must predict the next one."""

    tokens: np.ndarray
    """[positions + 1]: prefix, target, end."""
    prefix: int
    """Tokens of the prefix, mode token included; they attend both ways."""


@dataclass(frozen=True)
class Special:
    """Ids of the reserved pieces that a mixture uses."""

    pad: int
    eos: int
    modes: dict[str, int]
    sentinels: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer, denoisers: Sequence[Denoiser], longest: int) -> "Special":
        """Raises UserError if the tokenizer lacks a piece or has too few sentinels for texts of `longest` tokens."""
        needed = max(spans(d, longest, JUST_BELOW_1) for d in denoisers)
        if needed > tokenizer.sentinels:
            raise UserError(
                f"{tokenizer.directory}: {tokenizer.sentinels} sentinels, but data.max_example_tokens {longest} needs "
                f"{needed}; lower it or train a tokenizer with more"
            )
        modes = {mode: tokenizer.id(mode) for mode in {d.mode for d in denoisers}}
        return cls(tokenizer.id(PAD), tokenizer.id(EOS), modes, np.array(tokenizer.sentinel_ids()))


def masked(denoiser: Denoiser, length: int) -> int:
    """Tokens of a text of `length` tokens that a span denoiser masks: at least 1, and at least 1 stays."""
    return min(max(round(length * denoiser.rate), 1), length - 1)


def spans(denoiser: Denoiser, length: int, turn: float) -> int:
    """Masked spans in a text of `length` tokens; 0 for a prefix denoiser.

    `turn`, uniform in [0, 1), decides whether a fraction of a span becomes one, so that the mean length is right. T5
    rounds (arXiv 1910.10683): its spans of 64 in 512 tokens are 77 long.
    """
    if denoiser.kind == "prefix":
        return 0
    noise = masked(denoiser, length)
    return min(max(int(noise / denoiser.mean_span + turn), 1), noise, length - noise)


def positions(denoiser: Denoiser, length: int, turn: float) -> int:
    """Positions that an example made from `length` tokens takes: mode token, text, and each sentinel twice."""
    return 1 + length + 2 * spans(denoiser, length, turn)


def longest_text(denoiser: Denoiser, room: int, turn: float) -> int:
    """Most tokens whose example fits into `room` positions; `positions` grows with the length, so a guess is mended."""
    overhead = 2 * denoiser.rate / denoiser.mean_span if denoiser.kind == "span" else 0.0
    length = max(int((room - 1) / (1 + overhead)), 1)
    while length > 1 and positions(denoiser, length, turn) > room:
        length -= 1
    while positions(denoiser, length + 1, turn) <= room:
        length += 1
    return length


class Draws:
    """Uniform numbers from a counter-based generator: only its raw bits, which never change between versions."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.Philox(key=np.array(key, dtype=np.uint64))

    def uniform(self, count: int) -> np.ndarray:
        """[count] in [0, 1)."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def below(self, limit: int) -> int:
        return int(self.uniform(1)[0] * limit)

    def parts(self, total: int, count: int) -> np.ndarray:
        """[count] positive whole numbers that add up to `total`, all such partitions equally likely."""
        cuts = np.sort(np.argsort(self.uniform(total - 1))[: count - 1]) + 1
        return np.diff(np.concatenate([[0], cuts, [total]]))


@dataclass(frozen=True)
class Mixture:
    """Denoisers and how often each is used."""

    denoisers: tuple[Denoiser, ...]
    special: Special

    @cached_property
    def _cumulative(self) -> np.ndarray:
        weights = np.array([d.weight for d in self.denoisers])
        return np.cumsum(weights / weights.sum())

    def choose(self, draws: Draws) -> tuple[int, float]:
        """Denoiser of the next example, as an index, and its `turn`."""
        place, turn = draws.uniform(2)
        return min(int(np.searchsorted(self._cumulative, place, side="right")), len(self.denoisers) - 1), float(turn)

    def make(self, text: np.ndarray, index: int, turn: float, draws: Draws) -> Example:
        """Turn `text`, [length] with length >= 2, into an example of denoiser `index`."""
        denoiser, length = self.denoisers[index], len(text)
        mode, eos = self.special.modes[denoiser.mode], self.special.eos
        if denoiser.kind == "prefix":
            most = min(max(int(2 * denoiser.rate * length) - 1, 1), length - 1)
            cut = length - 1 - draws.below(most)
            return Example(np.concatenate([[mode], text, [eos]]), 1 + cut)
        noise, count = masked(denoiser, length), spans(denoiser, length, turn)
        kept, hidden = draws.parts(length - noise, count), draws.parts(noise, count)
        turns = np.stack([kept, hidden], axis=1).ravel()  # text starts with a stretch that is kept
        is_hidden = np.repeat(np.tile([False, True], count), turns)
        sentinels = self.special.sentinels[:count]
        prefix = np.insert(text[~is_hidden].astype(np.int64), np.cumsum(kept), sentinels)
        target = np.insert(text[is_hidden].astype(np.int64), np.cumsum(hidden) - hidden, sentinels)
        return Example(np.concatenate([[mode], prefix, target, [eos]]), 1 + len(prefix))
