"""What goes through the schedule at a time, and its way to the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.subnetwork import LayerPath


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one rank. The path belongs to it, whenever its backward pass comes."""

    batch: Batch
    path: LayerPath

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Copy the arrays of the batch to the device, [b, s] each, by their names in `Batch`."""
        return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in vars(self.batch).items()}
