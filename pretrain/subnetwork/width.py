"""Random parts of a layer's width: which groups of heads and which feed-forward columns run, the same on every rank and layout.

The width is cut into `parts` of neighbours, of which each runs equally many: tensor ranks that hold whole parts have equal work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.hashing import stable_hash

GROUPS, COLUMNS = 0, 1
"""What is drawn, as it enters the hash."""


@dataclass(frozen=True)
class Chosen:
    """Some of so many equal blocks."""

    blocks: tuple[int, ...]
    """In order, counted from 0."""
    of: int

    @property
    def share(self) -> float:
        return len(self.blocks) / self.of

    def of_rank(self, rank: int, ranks: int) -> tuple[int, ...]:
        """Return those that a tensor rank holds, counted from the first that it holds."""
        own = self.of // ranks
        return tuple(block - rank * own for block in self.blocks if block // own == rank)


@dataclass(frozen=True)
class Width:
    """What runs of a layer."""

    groups: Chosen | None = None
    """Groups of heads that share keys and values; all if None."""
    columns: Chosen | None = None
    """Blocks of the feed-forward block's columns; all if None."""

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of the groups and of the columns that run."""
        return tuple(1.0 if chosen is None else chosen.share for chosen in (self.groups, self.columns))  # type: ignore[return-value]


@dataclass(frozen=True)
class Blocks:
    """How blocks of one kind are drawn in a stage."""

    count: int
    """Blocks that run."""
    of: int
    parts: int
    fixed: int
    """First blocks of each part that always run."""

    def __post_init__(self) -> None:
        if self.of % self.parts or self.count % self.parts:
            raise ValueError(f"width_parts {self.parts} does not divide {self.count} of {self.of} blocks evenly; change either")
        if not self.fixed <= self.count // self.parts:
            raise ValueError(
                f"width_fixed {self.fixed}: of {self.count} blocks in {self.parts} parts, {self.count // self.parts} of each run"
            )

    def draw(self, kind: int, seed: int, step: int, index: int, layer: int) -> Chosen:
        """A uniform choice of equally many from every part, beside the fixed ones."""
        size, each = self.of // self.parts, self.count // self.parts
        found: list[int] = []
        for part in range(self.parts):
            first = part * size
            free = range(first + self.fixed, first + size)
            drawn = sorted(free, key=lambda block: stable_hash(seed, step, index, layer, kind, block))[: each - self.fixed]
            found += [*range(first, first + self.fixed), *sorted(drawn)]
        return Chosen(tuple(found), self.of)


def lengths_problem(name: str, lengths: Sequence[int]) -> str | None:
    """What is wrong with numbers of blocks, stage by stage; None if nothing is."""
    if any(later < earlier for earlier, later in zip(lengths, lengths[1:])) or lengths[0] < 1:
        return f"{name} {'-'.join(map(str, lengths))} must be 1 at least and may only grow from stage to stage"
    return None
