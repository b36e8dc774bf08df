"""UL2's denoisers, how each cuts a text, and their mixtures by name: the keys of the objective `ul2`.

Another denoiser is an entry of `MIXTURES`, or a list in a recipe. Another kind is a name in `Denoiser.kind` and its answers to
`Denoiser.name`, `hidden`, `spans` and `longest_text`; ul2.py writes any text that is cut into kept and hidden stretches.
"""

from typing import Annotated, Any, Literal, assert_never

from pydantic import BeforeValidator, Field, model_validator

from pretrain.data.objectives.base import TextKeys
from pretrain.schema import Number, Strict

Mode = Literal["[NLU]", "[NLG]", "[S2S]"]


class Denoiser(Strict):
    """One way to make an example. R and X of UL2 corrupt spans, S cuts the text in two (arXiv 2205.05131, table 1)."""

    kind: Literal["span", "prefix", "causal"]
    """span: masked spans are the target. prefix: the end of the text is the target. causal: all of it is."""
    mode: Mode | None = None
    """The token that tells the model which denoiser made the example; none if left out."""
    mean_span: Annotated[Number, Field(ge=1)] = 3.0
    """Mean length of a masked span in tokens; span only."""
    rate: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    """Share of the text that is masked (span), mean share that is the target (prefix)."""
    weight: Annotated[Number, Field(gt=0)] = 1.0
    """Examples are made by this denoiser in proportion to its weight."""

    @model_validator(mode="after")
    def _mean_can_be_had(self) -> "Denoiser":
        if self.kind == "prefix" and self.rate > 0.5:
            raise ValueError("a prefix denoiser draws its target uniformly, so its mean share cannot exceed 0.5")
        return self

    @property
    def name(self) -> str:
        """`span_3_0.15`, `prefix_0.25`, `causal`: losses are reported by it."""
        numbers = {"span": (self.mean_span, self.rate), "prefix": (self.rate,), "causal": ()}[self.kind]
        return "_".join([self.kind, *(f"{number:g}" for number in numbers)])


def _spans(mode: Mode | None, weight: float, *settings: tuple[float, float]) -> list[Denoiser]:
    return [Denoiser(kind="span", mode=mode, mean_span=s, rate=r, weight=weight / len(settings)) for s, r in settings]


R, X = ((3.0, 0.15), (8.0, 0.15)), ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))
"""Mean span and rate of UL2's regular and extreme denoisers."""
MIXTURES = {
    # Uniform over seven denoisers: arXiv 2205.05131, table 1.
    "ul2": (*_spans("[NLU]", 2, *R), *_spans("[NLG]", 4, *X), Denoiser(kind="prefix", mode="[S2S]", rate=0.25)),
    # Half S, a quarter each R and X: arXiv 2210.11399, section 3.1.
    "ul2r": (
        *_spans("[NLU]", 0.25, *R),
        *_spans("[NLG]", 0.25, *X),
        Denoiser(kind="prefix", mode="[S2S]", rate=0.25, weight=0.5),
    ),
    # 60 % causal, 20 % prefix, 20 % spans, without mode tokens: arXiv 2302.01398, section 2.2.
    "60-20-20": (
        Denoiser(kind="causal", weight=0.6),
        Denoiser(kind="prefix", rate=0.5, weight=0.2),
        *_spans(None, 0.2, (3.0, 0.15), (32.0, 0.5)),
    ),
}
"""Mixtures that `data.denoisers` knows by name."""
UL2 = MIXTURES["ul2"]


def _by_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in MIXTURES:
        raise ValueError(f'no mixture is called "{value}"; known are {", ".join(MIXTURES)}, or give a list of denoisers')
    return MIXTURES[value]


class Ul2Keys(TextKeys):
    """Keys of the objective `ul2`."""

    denoisers: Annotated[tuple[Denoiser, ...], Field(min_length=1, strict=False), BeforeValidator(_by_name)] = UL2
    """What ul2 makes examples by: ul2 (the seven of the paper), ul2r, 60-20-20, or a list of denoisers."""


def masked(denoiser: Denoiser, length: int) -> int:
    """Tokens of a text of `length` tokens that a span denoiser masks: at least 1, and at least 1 stays."""
    return min(max(round(length * denoiser.rate), 1), length - 1)


def hidden(denoiser: Denoiser, length: int, turn: float) -> int:
    """Count the tokens of a text of `length` that are the target.

    A prefix denoiser's target is uniform up to twice its mean share; `turn` is uniform in [0, 1).
    """
    match denoiser.kind:
        case "span":
            return masked(denoiser, length)
        case "prefix":
            return 1 + int(turn * min(max(int(2 * denoiser.rate * length) - 1, 1), length - 1))
        case "causal":
            return length
        case _:
            assert_never(denoiser.kind)


def spans(denoiser: Denoiser, length: int, turn: float) -> int:
    """Masked spans in a text of `length` tokens; 0 for the other denoisers.

    `turn`, uniform in [0, 1), decides whether a fraction of a span becomes one, so that the mean length is right. T5
    rounds (arXiv 1910.10683): its spans of 64 in 512 tokens are 77 long.
    """
    if denoiser.kind != "span":
        return 0
    noise = masked(denoiser, length)
    return min(max(int(noise / denoiser.mean_span + turn), 1), noise, length - noise)


def positions(denoiser: Denoiser, length: int, turn: float) -> int:
    """Positions that an example made from `length` tokens takes: mode token, text, and each sentinel twice."""
    return (denoiser.mode is not None) + length + 2 * spans(denoiser, length, turn)


def longest_text(denoiser: Denoiser, room: int, turn: float) -> int:
    """Most tokens whose example fits into `room` positions; `positions` grows with the length, so a guess is mended."""
    overhead = 2 * denoiser.rate / denoiser.mean_span if denoiser.kind == "span" else 0.0
    length = max(int((room - 1) / (1 + overhead)), 1)
    while length > 1 and positions(denoiser, length, turn) > room:
        length -= 1
    while positions(denoiser, length + 1, turn) <= room:
        length += 1
    return length
