"""What a checkpoint keeps of the engine, and how it comes back."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from pretrain.checkpoint.fragments import Fragment, Split
from pretrain.checkpoint.manifest import KINDS, Manifest
from pretrain.checkpoint.reader import Reader
from pretrain.errors import UserError
from pretrain.parallel.engine import Engine
from pretrain.parallel.shards import Shard, masters_changed, moments, own_shards
from pretrain.subnetwork.methods.base import Copies


@dataclass(frozen=True)
class Piece:
    """A shard and where it lies in the whole parameter."""

    shard: Shard
    split: Split
    shape: tuple[int, ...]
    """Of the whole parameter."""

    @property
    def fragment(self) -> Fragment:
        return Fragment(self.split, self.shard.start, self.shard.length)


class Contents:
    """This rank's pieces of the model's state: all it keeps, and the part of it that it writes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.kept = [_piece(shard) for shard in own_shards(engine.whole, engine.deepspeed)]
        self.written = [written for piece in self.kept if (written := _written(piece, engine)) is not None]
        self.lengths = {f"{kind}/{piece.shard.name}": piece.shard.length for kind in KINDS for piece in self.written}
        """Of the vectors that this rank writes, in order."""

    @property
    def fragments(self) -> dict[str, Fragment]:
        return {piece.shard.name: piece.fragment for piece in self.written}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {piece.shard.name: piece.shape for piece in self.written}

    @torch.no_grad()
    def copy_to(self, buffer: Tensor) -> None:
        """Everything that this rank writes, into one vector of host memory; when this returns, training may go on."""
        begin = 0
        for kind in KINDS:
            for piece in self.written:
                shard = piece.shard
                numbers = shard.master if kind == "weight" else moments(self.engine.deepspeed, shard.master)[kind]
                buffer.narrow(0, begin, shard.length).copy_(shard.view(numbers), non_blocking=True)
                begin += shard.length
        if self.engine.ranks.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def load(self, folder: Path, manifest: Manifest, copies: Copies | None = None) -> None:
        """Read what this rank keeps, and nothing else, from a checkpoint written on any layout; `loaded` is to follow.

        Args:
            copies: if given, only layers that become copies of others, read under the others' names.

        Raises:
            UserError: it lacks something, or is of another model.
        """
        by_name = {piece.shard.name: piece for piece in self.kept}
        for name, piece in by_name.items():
            if manifest.parameters.get(name) != piece.shape:
                there = manifest.parameters.get(name, "not there")
                raise UserError(
                    f"{folder}: belongs to another model: {name} is {list(piece.shape)} here, {there} in the checkpoint"
                )
        try:
            with Reader(folder, manifest) as reader:
                for name, piece in by_name.items():
                    source = name if copies is None else _copied(name, dict(copies))
                    if source is None:
                        continue
                    numbers = {"weight": piece.shard.master, **moments(self.engine.deepspeed, piece.shard.master)}
                    for kind in KINDS:
                        target = np.empty(piece.shard.length, dtype=np.float32)
                        reader.read(source, kind, piece.fragment, target)
                        piece.shard.view(numbers[kind]).copy_(torch.from_numpy(target))
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None

    def loaded(self, step: int) -> None:
        """To be called on all ranks when all of them have loaded."""
        masters_changed(self.engine.deepspeed, [piece.shard for piece in self.kept], step)


def _copied(name: str, copies: dict[int, int]) -> str | None:
    """The parameter that this one becomes a copy of."""
    match = re.fullmatch(r"(decoder\.layers\.)(\d+)(\..+)", name)
    return f"{match[1]}{copies[int(match[2])]}{match[3]}" if match and int(match[2]) in copies else None


def _piece(shard: Shard) -> Piece:
    parameter = shard.parameter
    shape = list(getattr(parameter, "ds_shape", parameter.shape))
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    if not getattr(parameter, "tensor_model_parallel", False) or ranks == 1:
        return Piece(shard, Split.whole(shape), tuple(shape))
    dim = parameter.partition_dim
    shape[dim] *= ranks
    rank = parallel_state.get_tensor_model_parallel_rank()
    return Piece(shard, Split.of(shape, dim, parameter.partition_stride, ranks, rank), tuple(shape))


def _written(piece: Piece, engine: Engine) -> Piece | None:
    """The part of a piece that is this rank's to write: of copies one is written, and without ZeRO replicas share the work."""
    shard = piece.shard
    if shard.parameter.ds_pipe_replicated or (piece.split.ranks == 1 and parallel_state.get_tensor_model_parallel_rank() > 0):
        return None
    if engine.stage > 0:
        return piece
    share = -(-shard.length // engine.run.data_parallel)
    start = min(share * engine.ranks.data_parallel_rank, shard.length)
    length = min(share, shard.length - start)
    return Piece(shard.cut(start, length), piece.split, piece.shape) if length > 0 else None
