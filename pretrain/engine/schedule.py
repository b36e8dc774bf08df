"""Micro-batches through Megatron-Core's forward-backward schedule: no pipelining, 1F1B or interleaved 1F1B."""

from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pretrain.config.recipe import Recipe
from pretrain.engine.loss import Entry, Made, Reduce, by_kind
from pretrain.engine.micro_batch import MicroBatch, OnDevice
from pretrain.model.attention import block_mask, dense_mask
from pretrain.model.decoder import Decoder, Targets
from pretrain.model.layer import LayerInputs
from pretrain.ranges import named
from pretrain.stopwatch import Stopwatch

ReduceMade = Callable[[Made], tuple[Tensor, Tensor, Entry]]
Output = Tensor | Made
"""What a chunk makes: the residual stream, but for the last one."""


class Schedule:
    """Runs this rank's chunks. The order of forward and backward passes is Megatron-Core's."""

    def __init__(
        self,
        chunks: Sequence[Decoder],
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype,
        stopwatch: Stopwatch,
    ) -> None:
        self.chunks, self.device, self.dtype, self.stopwatch = list(chunks), device, dtype, stopwatch
        self.uses_flex = recipe.model.uses_flex(on_gpu=device.type == "cuda")
        self.kinds = len(recipe.data.kinds)
        # Of interleaved chunks each runs as many micro-batches as there are pipeline ranks, then the next one runs the same.
        self._behind = recipe.parallel.pipeline if len(self.chunks) > 1 else 0
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(
        self, micro_batches: Sequence[MicroBatch], scale: float, forward_only: bool = False, reduce: Reduce = by_kind
    ) -> list[Entry]:
        """Run forward and backward over all micro-batches; entries of the last pipeline rank, none elsewhere.

        Args:
            micro_batches: all of one shape.
            scale: factor on the loss that is differentiated.
            reduce: makes an entry of what the last chunk makes.
        """

        there = OnDevice(micro_batches, self.uses_flex, self.device, self._copies, self._behind)

        def forward(iterator: Iterator[int], chunk: Decoder) -> tuple[Output, ReduceMade]:
            index = next(iterator)
            with_blocks = there.has_blocks(index)
            return self._forward(micro_batches[index], there[index], with_blocks, chunk, scale, reduce)

        interleaved = len(self.chunks) > 1
        micro_batch_size, sequence_length = micro_batches[0].batch.tokens.shape
        iterators = [iter(range(len(micro_batches))) for _ in self.chunks]
        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if interleaved else iterators[0],
            model=self.chunks if interleaved else self.chunks[0],
            num_microbatches=len(micro_batches),
            seq_length=sequence_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
        )

    def _forward(
        self, micro_batch: MicroBatch, batch: dict[str, Tensor], with_blocks: bool, chunk: Decoder, scale: float, reduce: Reduce
    ) -> tuple[Output, ReduceMade]:
        """Run a chunk's forward pass; returns its output, and what the schedule calls with the last chunk's."""
        branches = micro_batch.branches
        segments, prefix = batch["segments"], batch["prefix"]
        mask: Tensor | BlockMask | None = None
        if with_blocks:
            mask = block_mask(segments, prefix, batch)
        elif not micro_batch.is_causal:
            mask = dense_mask(segments, prefix, self.dtype, branches)
        inputs = LayerInputs(mask, micro_batch.path, chunk.rotary_of(batch["positions"]) if branches else None)
        labels = batch["labels"]
        targets = Targets(batch["places"], labels, torch.full_like(labels, scale, dtype=torch.float32))
        with self.stopwatch.running(), named("micro-batch"):
            output = chunk(batch["tokens"], batch["positions"], inputs, labels=targets)
        return output, lambda made: reduce(made, batch, self.kinds)
