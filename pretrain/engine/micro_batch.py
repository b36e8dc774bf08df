"""What goes through the schedule at a time, and its way to the device."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.data.batch import BRANCH, Batch
from pretrain.model.blocks import block_tables
from pretrain.subnetwork import LayerPath

ALIGNED = 16
"""Bytes at whose multiples arrays begin in the copy: any type can be viewed there."""


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one rank. The path belongs to it, whenever its backward pass comes."""

    batch: Batch
    path: LayerPath

    @property
    def branches(self) -> bool:
        """Whether contexts have several continuations."""
        return bool((self.batch.segments >= BRANCH).any())

    def on(self, device: torch.device, with_blocks: bool = False) -> dict[str, Tensor]:
        """Copy to the device what the model reads: [b, s] each `tokens`, `segments`, `positions` and `prefix`, and of n targets,
        sample after sample at each position, [n] each `places` within [s, b], `labels` and `kinds`.

        Args:
            with_blocks: whether flex attention's tables are wanted, too.
        """
        batch = self.batch
        places = np.flatnonzero(batch.targets.T)
        arrays = {name: getattr(batch, name) for name in ("tokens", "segments", "positions", "prefix")}
        arrays |= {"places": places, "labels": batch.labels.T.flat[places], "kinds": batch.kinds.T.flat[places]}
        if with_blocks:
            arrays |= block_tables(batch.segments, batch.prefix)
        return in_one_copy(arrays, device)


def in_one_copy(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Copy arrays to a device by their names: side by side in one piece of pinned memory, so that nothing waits for the copy."""
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    return views(side_by_side(arrays, pin=device.type == "cuda").to(device, non_blocking=True), arrays)


def side_by_side(arrays: Mapping[str, np.ndarray], pin: bool) -> Tensor:
    """Return the bytes of all arrays, one after the other."""
    together = torch.empty(sum(map(_room, arrays.values())), dtype=torch.uint8, pin_memory=pin)
    for name, view in views(together, arrays).items():
        view.copy_(torch.from_numpy(arrays[name]))
    return together


def views(together: Tensor, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the arrays that stand in these bytes; of `arrays` only shapes and types count."""
    found, begin = {}, 0
    for name, array in arrays.items():
        found[name] = together[begin : begin + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        begin += _room(array)
    return found


def _room(array: np.ndarray) -> int:
    return -(-array.nbytes // ALIGNED) * ALIGNED
