"""What goes between replicas: sums of gradients, each ending with its owner, and new weights from their owners to all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.optim.groups import FlatGroup
from pretrain.ranges import named

JOINED_BELOW = 2**18
"""Elements, 1 MiB in fp32: groups below that are sent together with their neighbours, since a message's delay would be seen."""


@dataclass(frozen=True)
class Piece:
    """Columns of a group, seen as [replicas, part]: the same stretch of every replica's part."""

    group: FlatGroup
    begin: int
    end: int

    @property
    def is_whole(self) -> bool:
        return (self.begin, self.end) == (0, self.group.part)

    def of(self, flat: Tensor, replicas: int) -> Tensor:
        """Return its numbers in a tensor that is laid out as the group, [replicas, end - begin]."""
        return flat.view(replicas, -1)[:, self.begin : self.end]


Bundle = tuple[Piece, ...]
"""What is sent in one message."""


def bundles(groups: Iterable[FlatGroup], most: int, replicas: int) -> list[Bundle]:
    """Cut groups, in order, into messages of at most `most` elements (of `replicas` where that is less): small neighbours share
    one, a large group takes several."""
    columns = max(1, most // replicas)
    found: list[Bundle] = []
    held: list[Piece] = []
    filled = 0
    for group in groups:
        for begin in range(0, group.part, columns):
            piece = Piece(group, begin, min(begin + columns, group.part))
            length = piece.end - piece.begin
            if held and (filled + length > columns or length * replicas >= JOINED_BELOW):
                found.append(tuple(held))
                held, filled = [], 0
            held.append(piece)
            filled += length
            if filled * replicas >= JOINED_BELOW:
                found.append(tuple(held))
                held, filled = [], 0
    return [*found, tuple(held)] if held else found


class Transfer:
    """A message on its way."""

    def __init__(self, handle: dist.Work, arrived: Callable[[], None] | None = None) -> None:
        self._handle, self._arrived, self._done = handle, arrived, False

    def wait(self) -> None:
        """Wait until it is through and its numbers are where they belong; on a GPU the device waits, not the host."""
        if not self._done:
            self._handle.wait()
            if self._arrived is not None:
                self._arrived()
            self._done = True


class Wire:
    """Sends bundles among the replicas, which must all send the same ones in the same order."""

    def __init__(self, group: dist.ProcessGroup, dtype: torch.dtype, scatters: bool, frees: bool) -> None:
        """
        Args:
            dtype: in which gradients are sent and summed.
            scatters: reduce each number to its owner; else to all, which sends twice as much.
            frees: leave nothing of a sum in the buffer that it came from.
        """
        self.group, self.dtype, self.scatters, self.frees = group, dtype, scatters, frees
        self.replicas, self.replica = dist.get_world_size(group), dist.get_rank(group)

    def open(self, device: torch.device) -> None:
        """Have all replicas meet once. NCCL connects at the first message, and ranks of a pipeline that do so amid a step may
        wait for each other in a circle."""
        dist.all_reduce(torch.zeros(1, device=device), group=self.group)

    def start_sum(self, bundle: Bundle) -> Transfer:
        """Start to sum a bundle's gradients over replicas; they end in `reduced` of its groups."""
        with named("reduction"):
            return self._start_sum(bundle)

    def _start_sum(self, bundle: Bundle) -> Transfer:
        sent = self._joined([piece.of(piece.group.need_gradients(), self.replicas) for piece in bundle], self.dtype)
        if self.scatters:
            own = sent.view(self.replicas, -1)[self.replica]
            handle = dist.reduce_scatter_tensor(own, sent, group=self.group, async_op=True)
        else:
            handle = dist.all_reduce(sent, group=self.group, async_op=True)
        return Transfer(handle, lambda: self._split(bundle, sent.view(self.replicas, -1)[self.replica]))

    def _split(self, bundle: Bundle, own: Tensor) -> None:
        begin = 0
        for piece in bundle:
            length = piece.end - piece.begin
            numbers = own.narrow(0, begin, length)
            begin += length
            group = piece.group
            if piece.is_whole and numbers.dtype == torch.float32 and not self.frees:
                group.reduced = numbers
            else:
                if group.reduced is None:
                    group.reduced = torch.zeros(group.part, dtype=torch.float32, device=own.device)
                group.reduced[piece.begin : piece.end].add_(numbers)  # in stage 3 to what earlier micro-batches gave

    def start_gather(self, bundle: Bundle) -> Transfer:
        """Start to bring the weights of a bundle from their owners to all replicas."""
        if len(bundle) == 1 and bundle[0].is_whole:
            group = bundle[0].group
            return Transfer(dist.all_gather_into_tensor(group.weights, group.own_weights, group=self.group, async_op=True))
        own = torch.cat([piece.group.own_weights[piece.begin : piece.end] for piece in bundle])
        everything = torch.empty(self.replicas, own.numel(), dtype=own.dtype, device=own.device)
        handle = dist.all_gather_into_tensor(everything.view(-1), own, group=self.group, async_op=True)

        def split() -> None:
            begin = 0
            for piece in bundle:
                length = piece.end - piece.begin
                piece.of(piece.group.weights, self.replicas).copy_(everything[:, begin : begin + length])
                begin += length

        return Transfer(handle, split)

    def _joined(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return one vector of them, [replicas * columns]; without a copy where one is all and has the type."""
        if len(parts) == 1 and parts[0].is_contiguous():
            return parts[0].reshape(-1).to(dtype)
        return torch.cat([part.to(dtype) for part in parts], dim=1).view(-1)
