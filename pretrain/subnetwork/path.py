"""Paths: which layers are active, as a pure function of (seed, step, path index).

No random generator exists, so every rank, every restart and every layout draws the same path without a word to
the others. Layers are ranked by a stable hash; library random streams may change between versions, a hash may not.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

from pretrain.hashing import stable_hash
from pretrain.subnetwork.width import Width

Sampler = Literal["bernoulli", "exact", "balanced"]
ResidualScale = Literal["none", "1/keep", "1/sqrt(keep)"]


@dataclass(frozen=True)
class LayerPath:
    """The layers that one part of the batch runs through."""

    active: tuple[bool, ...]
    """One entry a layer. A skipped layer passes its input on unchanged."""
    scale: tuple[float, ...]
    """Factor on both residual branches of each layer, in training. Meaningless where the layer is skipped."""
    width: tuple[Width, ...] | None = None
    """What runs of each layer's width; all of it if None."""

    @property
    def length(self) -> int:
        return sum(self.active)

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that are active."""
        return tuple(layer for layer, active in enumerate(self.active) if active)

    @classmethod
    def through(cls, active: Sequence[bool]) -> "LayerPath":
        """These layers, unscaled."""
        return cls(tuple(active), (1.0,) * len(active))

    @classmethod
    def full(cls, layers: int) -> "LayerPath":
        """All layers, unscaled: the model as it is evaluated."""
        return cls.through((True,) * layers)


def parts_of_model(layers: int) -> dict[str, LayerPath]:
    """What early exit and layer skipping run: the first n layers, for every n below all, and without every second layer, the last
    one always kept."""
    first = {f"first_{n}": LayerPath.through([layer < n for layer in range(layers)]) for n in range(1, layers)}
    return {**first, "every_other": LayerPath.through([layer % 2 == 0 or layer == layers - 1 for layer in range(layers)])}


@dataclass(frozen=True)
class Scheme:
    """How paths of one stage are drawn.

    Raises:
        ValueError: a length below the fixed layers or above all layers, or groups in which no path can be balanced.
    """

    layers: int
    length: int
    """k, the number of active layers: exact for `exact` and `balanced`, expected for `bernoulli`."""
    fixed: tuple[int, ...]
    """I, the layers that are always active, counted from 0. The paper fixes the first and the last."""
    sampler: Sampler = "balanced"
    groups: int = 1
    """C, for `balanced`: contiguous groups of layers over which a path is spread evenly. 1 is `exact`."""
    residual_scale: ResidualScale = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        outside = [layer for layer in self.fixed if not 0 <= layer < self.layers]
        if outside:
            raise ValueError(f"fixed_layers {outside} do not exist; layers count from 0 to {self.layers - 1}")
        if not len(self.fixed) <= self.length <= self.layers:
            raise ValueError(
                f"path_lengths: a path of {self.length} layers is impossible with {len(self.fixed)} fixed layers "
                f"among {self.layers}; use {max(1, len(self.fixed))} to {self.layers}"
            )
        if self.sampler == "balanced":
            assert self._shares  # raises if no path can be balanced

    @cached_property
    def keep(self) -> tuple[Fraction, ...]:
        """Exact probability of each layer to be active (its marginal under the sampler)."""
        if self.sampler == "balanced":
            low, eligible, rest = self._shares
            return tuple(self._keep_in_group(layer, low, eligible, rest) for layer in range(self.layers))
        free = self.layers - len(self.fixed)
        p = Fraction(self.length - len(self.fixed), free) if free else Fraction(1)
        return tuple(Fraction(1) if layer in self.fixed else p for layer in range(self.layers))

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Factor on an active layer's residual branches; 1 for a layer that is always active."""
        return tuple(scale_of(p, self.residual_scale) for p in self.keep)

    @property
    def group_size(self) -> int:
        return self.layers // self.groups

    def group(self, index: int) -> range:
        return range(index * self.group_size, (index + 1) * self.group_size)

    @cached_property
    def _shares(self) -> tuple[list[int], list[int], int]:
        """(lo of each group, groups that may get one more, how many layers those share).

        lo = max(f, floor(k/C)), hi = min(size, ceil(k/C)); f is the number of fixed layers in the group.
        """
        if self.layers % self.groups:
            raise ValueError(f"balance_groups {self.groups} does not divide the model's {self.layers} layers")
        fixed = [sum(layer in self.fixed for layer in self.group(j)) for j in range(self.groups)]
        low = [max(f, self.length // self.groups) for f in fixed]
        high = [min(self.group_size, -(-self.length // self.groups)) for _ in fixed]
        eligible = [j for j in range(self.groups) if high[j] > low[j]]
        rest = self.length - sum(low)
        if not 0 <= rest <= len(eligible):
            raise ValueError(
                f"balance_groups {self.groups}: a path of {self.length} of {self.layers} layers cannot be spread "
                f"evenly with {fixed} fixed layers in the groups; change path_lengths, fixed_layers or "
                'balance_groups, or use "sampler": "exact"'
            )
        return low, eligible, rest

    def _keep_in_group(self, layer: int, low: list[int], eligible: list[int], rest: int) -> Fraction:
        j = layer // self.group_size
        fixed = sum(other in self.fixed for other in self.group(j))
        if layer in self.fixed or fixed == self.group_size:
            return Fraction(1)
        more = Fraction(rest, len(eligible)) if j in eligible else Fraction(0)
        return (low[j] - fixed + more) / (self.group_size - fixed)


def draw(scheme: Scheme, step: int, index: int) -> LayerPath:
    """LayerPath `index` of step `step`.

    `bernoulli` keeps each free layer independently, as the paper defines it (arXiv 2402.05913, section 3). `exact`
    takes a uniform subset of k layers. `balanced` is this project's (docs/paths.md): k layers, evenly spread over groups of
    neighbouring layers, so that pipeline ranks that own whole groups have equal work.
    """
    if scheme.sampler == "bernoulli":
        return draw_each(scheme.keep, scheme.scales, scheme.seed, step, index)
    rank = {layer: stable_hash(scheme.seed, step, index, layer) for layer in range(scheme.layers)}
    chosen = set(scheme.fixed)
    if scheme.sampler == "exact":
        chosen |= _first(range(scheme.layers), scheme.length, rank, chosen)
    else:
        low, eligible, rest = scheme._shares
        share = list(low)
        if eligible:
            offset = stable_hash(scheme.seed, step, index, scheme.layers) % len(eligible)
            for place, j in enumerate(eligible):
                at = place + offset
                share[j] += (at + 1) * rest // len(eligible) - at * rest // len(eligible)
        for j, count in enumerate(share):
            chosen |= _first(scheme.group(j), count, rank, chosen)
    return LayerPath(tuple(n in chosen for n in range(scheme.layers)), scheme.scales)


def draw_each(keep: Sequence[Fraction], scales: tuple[float, ...], seed: int, step: int, index: int) -> LayerPath:
    """LayerPath `index` of step `step`, each layer active by itself with its probability."""
    active = tuple(stable_hash(seed, step, index, n) * p.denominator < p.numerator << 64 for n, p in enumerate(keep))
    return LayerPath(active, scales)


def scale_of(keep: Fraction, convention: ResidualScale) -> float:
    """Factor on the residual branches of a layer that is active with this probability; 1 if it always is."""
    exponent = {"none": 0.0, "1/keep": 1.0, "1/sqrt(keep)": 0.5}[convention]
    return 1.0 if keep in (0, 1) else float(keep) ** -exponent


def fingerprint(step: int, paths: Sequence[LayerPath]) -> int:
    """A 63-bit hash of a step and all its paths: what ranks compare before the step's schedule starts."""
    text = f"{step}:" + "|".join("".join("01"[a] for a in p.active) + repr(p.scale) + repr(p.width or "") for p in paths)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def path_of_sample(sample: int, batch: int, paths: int) -> int:
    """Index of the path that sample `sample` of a global batch of `batch` samples takes: floor(i P / B)."""
    return sample * paths // batch


def _first(layers: range, count: int, rank: dict[int, int], fixed: set[int]) -> set[int]:
    """`count` of `layers`: the fixed ones among them, then those with the smallest hashes."""
    inside = [n for n in layers if n in fixed]
    free = sorted((n for n in layers if n not in fixed), key=rank.__getitem__)
    return set(inside + free[: count - len(inside)])
