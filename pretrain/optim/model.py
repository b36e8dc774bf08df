"""The model as an optimizer sees it: one module over this rank's chunks, with global names."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed.finalize_model_grads import (
    _allreduce_non_tensor_model_parallel_grads,
    _allreduce_word_embedding_grads,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.model.decoder import Decoder
from pretrain.stopwatch import Stopwatch

TIED = "embedding.word_embeddings.weight"


class ChunkedModel(torch.nn.Module):
    """This rank's chunks under global parameter names; local ones collide between pipeline ranks in a checkpoint."""

    def __init__(self, chunks: list[Decoder], stopwatch: Stopwatch) -> None:
        """
        Args:
            stopwatch: runs while the chunks compute in forward passes; whoever has to wait for another rank amid one pauses it.
        """
        super().__init__()
        self.stopwatch = stopwatch
        self.chunks = torch.nn.ModuleList(chunks)
        mark_copies(self)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for chunk in self.chunks:
            assert isinstance(chunk, Decoder)
            for name, parameter in chunk.named_parameters(remove_duplicate=remove_duplicate):
                yield chunk.global_name(name), parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> OrderedDict[str, Tensor]:  # type: ignore[override]  # DeepSpeed asks for names only
        return OrderedDict((name, parameter.detach()) for name, parameter in self.named_parameters())

    @staticmethod
    def is_copy(parameter: torch.nn.Parameter) -> bool:
        """Whether another pipeline rank counts the same weights in the norm, and saves them."""
        return bool(parameter.ds_pipe_replicated)  # type: ignore[attr-defined]  # set by mark_copies, read by DeepSpeed's norm, too


def mark_copies(model: ChunkedModel) -> None:
    """Mark weights that another pipeline rank counts: the tied embedding's copy beside the output projection."""
    has_input = any(chunk.pre_process for chunk in model.chunks)
    for name, parameter in model.named_parameters():
        parameter.ds_pipe_replicated = name == TIED and not has_input  # type: ignore[attr-defined]


def gradient_of(parameter: torch.nn.Parameter) -> Tensor:
    """Return a gradient that is known to exist."""
    assert parameter.grad is not None, "gradients are completed before they are read"
    return parameter.grad


def sum_over_model_ranks(model: ChunkedModel, config: TransformerConfig) -> None:
    """Sum gradients that tensor ranks have parts of (norms under sequence parallelism) and pipeline ranks copies of (the tied
    embedding), as Megatron-Core does."""
    chunks = list(model.chunks)
    _allreduce_non_tensor_model_parallel_grads(chunks, config)
    _allreduce_word_embedding_grads(chunks, config)


def is_decayed(parameter: torch.nn.Parameter) -> bool:
    """Whether weight decay acts on a parameter: on matrices, not on norms and biases."""
    return parameter.dim() >= 2
