"""What of a model runs or sleeps by itself: layers, and the blocks into which a method cuts their width."""

from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.subnetwork.path import LayerPath
from pretrain.subnetwork.width import COLUMNS, GROUPS, Chosen, Width


@dataclass(frozen=True)
class Units:
    """Numbers of what a step may leave out: layer by layer the layer itself, then its groups of heads, then its blocks of
    feed-forward columns. The layer itself is what runs whenever the layer does: norms, biases and matrices that are not cut."""

    layers: int
    groups: int = 0
    """Blocks into which the groups of each layer's heads are cut; 0 if they are not."""
    columns: int = 0
    """Blocks into which each layer's feed-forward columns are cut; 0 if they are not."""

    @property
    def in_layer(self) -> int:
        return 1 + self.groups + self.columns

    @property
    def count(self) -> int:
        return self.layers * self.in_layer

    def number(self, layer: int, kind: int | None = None, block: int = 0) -> int:
        """Return the number of a layer itself, or of one of its blocks.

        Args:
            kind: GROUPS or COLUMNS; None for the layer itself.
        """
        begin = {None: 0, GROUPS: 1, COLUMNS: 1 + self.groups}[kind]
        return layer * self.in_layer + begin + block

    def layer_of(self, unit: int) -> int:
        """Return the layer that a unit belongs to."""
        return unit // self.in_layer

    def of_path(self, path: LayerPath) -> tuple[int, ...]:
        """Return what a path runs, in order."""
        return tuple(unit for layer in path.layers for unit in self.of_layer(path, layer))

    def of_layer(self, path: LayerPath, layer: int) -> Iterator[int]:
        """Return what a path runs of a layer that it does not skip."""
        width = Width() if path.width is None else path.width[layer]
        yield self.number(layer)
        for kind, count, chosen in ((GROUPS, self.groups, width.groups), (COLUMNS, self.columns, width.columns)):
            for block in _blocks(count, chosen):
                yield self.number(layer, kind, block)


def _blocks(count: int, chosen: Chosen | None) -> range | tuple[int, ...]:
    assert chosen is None or chosen.of == count, "a width is drawn from the blocks that the model is cut into"
    return range(count) if chosen is None else chosen.blocks
