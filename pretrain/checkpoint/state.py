"""What a checkpoint keeps of the model and its optimizer, and how it comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from pretrain.checkpoint.fragments import Fragment, Split
from pretrain.checkpoint.manifest import BLOCK, Manifest
from pretrain.checkpoint.reader import Reader
from pretrain.errors import UserError
from pretrain.model.split import block_of, is_split, split_of
from pretrain.optim.interface import ModelOptimizer
from pretrain.optim.names import TENSORS, in_layer, layer_of
from pretrain.optim.shards import Shard
from pretrain.subnetwork.methods.base import Copies


@dataclass(frozen=True)
class PlacedShard:
    """A shard and where it is in the whole parameter."""

    shard: Shard
    split: Split
    shape: tuple[int, ...]
    """Shape of the whole parameter."""

    @property
    def key(self) -> str:
        """What the shard is called among those of its rank, which may have several blocks of a parameter."""
        return self.shard.name if block_of(self.shard.parameter) is None else f"{self.shard.name}{BLOCK}{self.split.rank}"

    @property
    def fragment(self) -> Fragment:
        return Fragment(self.split, self.shard.start, self.shard.length)


class ModelState:
    """This rank's shards of the model's state: all that it keeps, and the part of it that it writes."""

    def __init__(self, optimizer: ModelOptimizer, writers: int, writer: int) -> None:
        """
        Args:
            writers: ranks that keep the same shards and share the work of writing them: the replicas, without ZeRO; else 1.
            writer: number of this rank among them.
        """
        self.optimizer = optimizer
        self.kept = [_placed(shard) for shard in optimizer.shards()]
        self.written = [written for shard in self.kept if (written := _written(shard, writers, writer)) is not None]
        self.lengths = {f"{kind}/{placed.key}": placed.shard.length for kind in TENSORS for placed in self.written}
        """Lengths of the vectors that this rank writes, in order."""

    @property
    def fragments(self) -> dict[str, Fragment]:
        return {placed.key: placed.fragment for placed in self.written}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {placed.shard.name: placed.shape for placed in self.written}

    @torch.no_grad()
    def copy_to(self, buffer: Tensor) -> None:
        """Copy everything that this rank writes into one vector of host memory; when this returns, training may continue."""
        self.optimizer.catch_up()
        begin, on_gpu = 0, False
        for kind in TENSORS:
            for placed in self.written:
                numbers = placed.shard.numbers(kind)
                buffer.narrow(0, begin, len(numbers)).copy_(numbers, non_blocking=True)
                begin, on_gpu = begin + len(numbers), numbers.is_cuda
        if on_gpu:
            torch.cuda.synchronize()

    @torch.no_grad()
    def load(self, folder: Path, manifest: Manifest, copies: Copies | None = None, kinds: Sequence[str] = TENSORS) -> None:
        """Read what this rank keeps, and nothing else, from a checkpoint written on any layout; `loaded` is to follow.

        Args:
            kinds: which of TENSORS; who does not train needs no moments.
            copies: if given, only layers that become copies of others, read under the others' names.

        Raises:
            UserError: it lacks something, or is of another model.
        """
        for placed in self.kept:
            name = placed.shard.name
            if manifest.parameters.get(name) != placed.shape:
                there = manifest.parameters.get(name, "not there")
                raise UserError(
                    f"{folder}: belongs to another model: {name} is {list(placed.shape)} here, {there} in the checkpoint"
                )
        try:
            with Reader(folder, manifest) as reader:
                for placed in self.kept:
                    source = placed.shard.name if copies is None else _copied(placed.shard.name, dict(copies))
                    if source is None:
                        continue
                    for kind in kinds:
                        target = np.empty(placed.shard.length, dtype=np.float32)
                        reader.read(source, kind, placed.fragment, target)
                        placed.shard.numbers(kind).copy_(torch.from_numpy(target))
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None

    def loaded(self, manifest: Manifest, copies: Copies = ()) -> None:
        """Have the optimizer take over what was loaded; to be called on all ranks when all of them have loaded.

        Args:
            copies: layers that have become copies of others.
        """
        counts, sources = manifest.updates_of(self.optimizer.units), dict(copies)  # who copies cuts no layer
        self.optimizer.restored(manifest.step, tuple(counts[sources.get(unit, unit)] for unit in range(len(counts))))


def _copied(name: str, copies: dict[int, int]) -> str | None:
    """Return the parameter that this one becomes a copy of."""
    layer = layer_of(name)
    return in_layer(name, copies[layer]) if layer in copies else None


def _placed(shard: Shard) -> PlacedShard:
    """Find where a shard is in the whole parameter, from Megatron-Core's marks on the part that this tensor rank holds."""
    parameter, block = shard.parameter, block_of(shard.parameter)
    shape = list(parameter.shape if block is None else block.shape)
    ranks, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    if block is None and (not is_split(parameter) or ranks == 1):
        return PlacedShard(shard, Split.whole(shape), tuple(shape))
    dim, matrices = split_of(parameter)
    shape[dim] *= ranks
    # Blocks of a rank's part are to the whole what the parts of more ranks would be.
    parts, part = (ranks, rank) if block is None else (ranks * block.of, rank * block.of + block.number)
    return PlacedShard(shard, Split.of(shape, dim, matrices, parts, part), tuple(shape))


def _written(placed: PlacedShard, writers: int, writer: int) -> PlacedShard | None:
    """Return the part of a shard that this rank writes: of copies one is written, and replicas share the work."""
    shard = placed.shard
    if shard.is_copy or (placed.split.ranks == 1 and parallel_state.get_tensor_model_parallel_rank() > 0):
        return None
    share = -(-shard.length // writers)
    start = min(share * writer, shard.length)
    length = min(share, shard.length - start)
    return PlacedShard(shard.cut(start, length), placed.split, placed.shape) if length > 0 else None
