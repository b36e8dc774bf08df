"""Models that start shallow and grow by copies of their own layers, within the full-size model.

`stacking` copies the last layers to the top (gradual stacking, Reddi et al., ICML 2023), `midas` a block in the middle to the
place behind it (arXiv 2409.19044; of an even number of blocks the lower middle one, our choice). Every layer has its final place
from the beginning: those that do not exist yet are skipped, and when their stage begins they become copies, weights and moments,
of those that they grow from.
"""

from dataclasses import dataclass
from fractions import Fraction

from pretrain.subnetwork.methods.base import Copies, Method, Settings
from pretrain.subnetwork.path import LayerPath
from pretrain.subnetwork.schedule import make_stages

KEYS = ("path_lengths", "stage_fractions")


@dataclass(frozen=True)
class Growth(Method):
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


def build(settings: Settings, name: str) -> Growth:
    """
    Raises:
        ValueError: path lengths that do not grow to all layers, or by more than there is to copy.
    """
    lengths, layers = tuple(settings.path_lengths), settings.layers
    if not lengths or lengths[-1] != layers:
        raise ValueError(
            f'method "{name}" needs "path_lengths" that end with all {layers} layers, as in "{layers // 2}-{layers}"'
        )
    stages = make_stages(settings.steps, layers, lengths, settings.stage_fractions)
    order, births = list(range(lengths[0])), []  # layers by the order in which they come to be, at their places from the bottom
    for before, after in zip(lengths, lengths[1:]):
        added = after - before
        if not 1 <= added <= before:
            raise ValueError(
                f'path_lengths: from {before} to {after} layers, {added} would be copied; method "{name}" can copy 1 to {before},'
                " so use steps between them"
            )
        if name == "midas" and before % added:
            raise ValueError(
                f"path_lengths: from {before} to {after} layers, the middle one of equal blocks of {added} is copied, and {added}"
                f" does not divide {before}"
            )
        start = before - added if name == "stacking" else middle(before // added) * added
        order[start + added : start + added] = range(before, after)
        births.append([(before + n, order[start + n]) for n in range(added)])
    place = {layer: order.index(layer) for layer in order}
    existing = tuple(tuple(layer < length for layer in order) for length in lengths)
    grown = ((), *(tuple((place[new], place[old]) for new, old in pairs) for pairs in births))
    return Growth(name, layers, stages, existing, grown)


def middle(blocks: int) -> int:
    """Of so many blocks, counted from 0; the lower one of two."""
    return (blocks - 1) // 2
