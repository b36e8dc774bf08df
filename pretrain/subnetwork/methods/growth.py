"""Models that start shallow and grow by copies of their own layers, within the full-size model.

`stacking` copies the last layers to the top (gradual stacking, Reddi et al., ICML 2023), `midas` a block in the middle to the
place behind it (arXiv 2409.19044; of an even number of blocks the lower middle one, this project's choice). Every layer has its
final place from the beginning: those that do not exist yet are skipped, and when their stage begins they become copies, weights
and moments, of those that they grow from.
"""

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pretrain.subnetwork.methods.base import Copies, Method, StageFractions, WithLengths
from pretrain.subnetwork.path import LayerPath
from pretrain.subnetwork.schedule import make_stages


@dataclass(frozen=True)
class Growth(Method):
    """The layers that exist in a stage, all of them, in every step."""

    existing: tuple[tuple[bool, ...], ...]
    """For each stage, which layers exist."""
    grown: tuple[Copies, ...]
    """For each stage, which layers it begins with copying."""

    def _now(self, step: int) -> int:
        return self.stages.index(self.stage(step))

    def whole(self, step: int) -> LayerPath:
        return LayerPath.through(self.existing[self._now(step)])

    def paths(self, step: int) -> tuple[LayerPath, ...]:
        return (self.whole(step),)

    def keep(self, first: int, last: int) -> tuple[Fraction, ...]:
        return tuple(Fraction(int(exists)) for exists in self.existing[self._now(first)])

    def copies(self, step: int) -> Copies:
        now = self._now(step)
        return self.grown[now] if step == self.stages[now].first_step else ()


class GrowthKeys(WithLengths):
    """Keys that both ways to grow have."""

    method: str
    stage_fractions: StageFractions = None

    def build(self, layers: int, steps: int, seed: int) -> Growth:
        """Return a method that grows as the path lengths say.

        Raises:
            ValueError: path lengths that do not grow to all layers, or by more than there is to copy.
        """
        lengths = self.path_lengths
        if lengths[-1] != layers:
            raise ValueError(
                f'method "{self.method}" needs "path_lengths" that end with all {layers} layers, as in "{layers // 2}-{layers}"'
            )
        stages = make_stages(steps, layers, lengths, self.stage_fractions)
        # Layers, numbered as they come to be, at their places from the bottom.
        order = list(range(lengths[0]))
        births: list[Copies] = []
        for before, after in zip(lengths, lengths[1:]):
            added = after - before
            if not 1 <= added <= before:
                raise ValueError(
                    f'path_lengths: from {before} to {after} layers, {added} would be copied; method "{self.method}" can copy 1'
                    f" to {before}, so use steps between them"
                )
            start = self.copied_from(before, added)
            order[start + added : start + added] = range(before, after)
            births.append(tuple((before + n, order[start + n]) for n in range(added)))
        place = {layer: order.index(layer) for layer in order}
        existing = tuple(tuple(layer < length for layer in order) for length in lengths)
        grown = ((), *(tuple((place[new], place[old]) for new, old in pairs) for pairs in births))
        return Growth(self.method, layers, stages, existing, grown)

    @abstractmethod
    def copied_from(self, before: int, added: int) -> int:
        """Return the first of the `added` layers, among the `before` that exist, that are copied.

        Raises:
            ValueError: they cannot be cut so.
        """


class StackingKeys(GrowthKeys):
    """Keys of `stacking`."""

    summary = "a shallow model that grows by copies of its last layers"
    method: Literal["stacking"]

    def copied_from(self, before: int, added: int) -> int:
        return before - added


class MidasKeys(GrowthKeys):
    """Keys of `midas`."""

    summary = "a shallow model that grows by copies of a block in its middle"
    method: Literal["midas"]

    def copied_from(self, before: int, added: int) -> int:
        if before % added:
            raise ValueError(
                f"path_lengths: from {before} to {before + added} layers, the middle one of equal blocks of {added} is copied,"
                f" and {added} does not divide {before}"
            )
        return middle(before // added) * added


def middle(blocks: int) -> int:
    """Return the middle one of so many blocks, counted from 0; the lower one of two."""
    return (blocks - 1) // 2
