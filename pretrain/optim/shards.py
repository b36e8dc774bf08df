"""Which stretches of masters and moments a rank owns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """A stretch of one parameter, of which this rank keeps fp32 master and moments."""

    name: str
    """Name of the parameter in the whole model."""
    parameter: torch.nn.Parameter
    """As this tensor rank holds it, before ZeRO cuts it."""
    is_copy: bool
    """Whether another pipeline rank counts, saves and owns the same weights."""
    start: int
    """First element, in that part of the parameter, flattened."""
    length: int
    offset: int
    """Where the stretch begins in the optimizer's flat tensors, of which a ZeRO rank has one for several parameters."""
    tensors: Callable[[], Mapping[str, Tensor]]
    """The optimizer's flat tensors by the names in TENSORS, all laid out alike; moments are made, zero, where there are none
    yet."""

    def numbers(self, kind: str) -> Tensor:
        """Return the stretch of one of TENSORS, [length]."""
        return self.tensors()[kind].detach().view(-1).narrow(0, self.offset, self.length)

    def cut(self, start: int, length: int) -> "Shard":
        """Return a part of the stretch; `start` counts from its beginning."""
        return replace(self, start=self.start + start, length=length, offset=self.offset + start)
