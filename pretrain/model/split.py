"""How a weight is split over tensor ranks, as Megatron-Core marks it."""

import torch


def is_split(parameter: torch.Tensor) -> bool:
    """Whether each tensor rank holds a part of the weight only."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def split_of(parameter: torch.Tensor) -> tuple[int, int]:
    """Return the dimension that is split, and how many matrices are side by side in it, each split by itself."""
    return parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]  # set by Megatron-Core
