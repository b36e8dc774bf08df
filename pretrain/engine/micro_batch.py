"""What goes through the schedule at a time, and its way to the device."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pretrain.data.batch import BRANCH, PADDING, Batch
from pretrain.model.blocks import block_tables
from pretrain.subnetwork import LayerPath

ALIGNED = 16
"""Bytes at whose multiples arrays begin in the copy: any type can be viewed there."""
IN_A_COPY = 2**26
"""Bytes with which a copy is full: it takes no further micro-batch then."""
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one rank. The path belongs to it, whenever its backward pass comes."""

    batch: Batch
    path: LayerPath

    @property
    def branches(self) -> bool:
        """Whether contexts have several continuations."""
        return bool((self.batch.segments >= BRANCH).any())

    @property
    def is_causal(self) -> bool:
        """Whether every sample is one example, perhaps with padding behind it, that is read from left to right: attention needs
        no mask then, as what padding reads is nobody's loss."""
        segments, real = self.batch.segments, self.batch.segments != PADDING
        one = (segments == segments[:, :1]) | ~real
        return bool(one.all() and (real[:, 1:] <= real[:, :-1]).all() and not self.batch.prefix.any())

    def arrays(self, with_blocks: bool) -> dict[str, np.ndarray]:
        """What the model reads: [b, s] each `tokens`, `segments`, `positions` and `prefix`, and of n targets, sample after sample
        at each position, [n] each `places` within [s, b], `labels` and `kinds`.

        Args:
            with_blocks: whether flex attention's tables are wanted, too.
        """
        batch = self.batch
        places = np.flatnonzero(batch.targets.T)
        arrays = {name: getattr(batch, name) for name in ("tokens", "segments", "positions", "prefix")}
        arrays |= {"places": places, "labels": batch.labels.T.flat[places], "kinds": batch.kinds.T.flat[places]}
        return arrays | (block_tables(batch.segments, batch.prefix) if with_blocks else {})


class OnDevice:
    """What the model reads of micro-batches, on the device. Those of a step go there in one copy, before the first is run, and
    beside what the device still computes for the step before; when there are IN_A_COPY bytes or more together, the next copy
    takes what is left, once the schedule comes to it."""

    def __init__(
        self,
        micro_batches: Sequence[MicroBatch],
        uses_flex: bool,
        device: torch.device,
        stream: torch.cuda.Stream | None,
        behind: int,
    ) -> None:
        """
        Args:
            uses_flex: whether attention is flex attention, which needs tables; they know examples, not their continuations.
            stream: the one that copies, on a GPU.
            behind: micro-batches that a later chunk of this rank is behind the first.
        """
        self._micro_batches, self._uses_flex, self._device, self._stream = micro_batches, uses_flex, device, stream
        self._behind = behind
        self._there: dict[int, dict[str, Tensor]] = {}

    def has_blocks(self, index: int) -> bool:
        """Whether a micro-batch comes with flex attention's tables."""
        return self._uses_flex and not self._micro_batches[index].branches

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index not in self._there:
            self._there = {number: there for number, there in self._there.items() if index - self._behind <= number < index}
            self._copy_from(index)
        return self._there[index]

    def _copy_from(self, index: int) -> None:
        arrays: dict[tuple[int, str], np.ndarray] = {}
        size = 0
        while index < len(self._micro_batches) and size < IN_A_COPY:
            for name, array in self._micro_batches[index].arrays(self.has_blocks(index)).items():
                arrays[index, name] = array
                size += array.nbytes
            index += 1
        for (number, name), tensor in in_one_copy(arrays, self._device, self._stream).items():
            self._there.setdefault(number, {})[name] = tensor


def in_one_copy(
    arrays: Mapping[Name, np.ndarray], device: torch.device, stream: torch.cuda.Stream | None = None
) -> dict[Name, Tensor]:
    """Copy arrays to a device by their names: side by side in one piece of pinned memory, so that nothing waits for the copy.

    Args:
        stream: the one that copies; what comes later in the present one waits for it.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    together = side_by_side(arrays, pin=device.type == "cuda")
    if stream is None:
        return views(together.to(device, non_blocking=True), arrays)
    present = torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        there = together.to(device, non_blocking=True)
    present.wait_stream(stream)
    there.record_stream(present)  # or its memory could be used again by the next copy, which does not wait for its readers
    return views(there, arrays)


def side_by_side(arrays: Mapping[Name, np.ndarray], pin: bool) -> Tensor:
    """Return the bytes of all arrays, one after the other."""
    together = torch.empty(sum(map(_room, arrays.values())), dtype=torch.uint8, pin_memory=pin)
    for name, view in views(together, arrays).items():
        view.copy_(torch.from_numpy(arrays[name]))
    return together


def views(together: Tensor, arrays: Mapping[Name, np.ndarray]) -> dict[Name, Tensor]:
    """Return the arrays that stand in these bytes; of `arrays` only shapes and types count."""
    found, begin = {}, 0
    for name, array in arrays.items():
        found[name] = together[begin : begin + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        begin += _room(array)
    return found


def _room(array: np.ndarray) -> int:
    return -(-array.nbytes // ALIGNED) * ALIGNED
