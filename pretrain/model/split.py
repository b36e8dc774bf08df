"""How a weight is split over tensor ranks, as Megatron-Core marks it, and into blocks that run or sleep by themselves."""

from dataclasses import dataclass
from typing import cast

import torch


def is_split(parameter: torch.Tensor) -> bool:
    """Whether each tensor rank holds a part of the weight only."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def split_of(parameter: torch.Tensor) -> tuple[int, int]:
    """Return the dimension that is split, and how many matrices are side by side in it, each split by itself."""
    return parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]  # set by Megatron-Core


@dataclass(frozen=True)
class Block:
    """Which part of a weight a parameter is that has been cut from it (linear.py)."""

    kind: int
    """GROUPS or COLUMNS of subnetwork/width.py."""
    number: int
    """Counted from 0, among those of this tensor rank."""
    of: int
    """How many the tensor rank has."""
    shape: tuple[int, ...]
    """What the tensor rank had of the weight."""


def block_of(parameter: torch.Tensor) -> Block | None:
    """Return which block of a weight a parameter is; None if it is all of it."""
    return cast("Block | None", getattr(parameter, "block", None))
