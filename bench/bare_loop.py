"""The peer that a step of the engine is measured against: Megatron-Core's schedule and PyTorch's AdamW, nothing else."""

from collections.abc import Callable, Iterator

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from pretrain.config import Run
from pretrain.engine.micro_batch import MicroBatch, in_one_copy
from pretrain.model.attention import dense_mask
from pretrain.model.decoder import Decoder, Targets, build_chunks, transformer_config
from pretrain.model.layer import LayerInputs
from pretrain.model.weights import initialize
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath


def bare_loop(run: Run, ranks: Ranks) -> Callable[[list], None]:
    """The peer: the same chunks and schedule in the run's precision, PyTorch's AdamW on fp32 masters, nothing else."""
    dtype = torch.bfloat16 if run.ds.bf16.enabled else torch.float32
    config = transformer_config(run.recipe, dtype, on_gpu=ranks.device.type == "cuda")
    (chunk,) = build_chunks(run.recipe, config)
    initialize([chunk], run.recipe)
    chunk.to(ranks.device, dtype)
    whole = LayerPath.full(run.recipe.model.num_layers)
    params = run.ds.optimizer.params
    weights = list(chunk.parameters())
    masters = weights if dtype == torch.float32 else [weight.detach().float().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=params.lr, betas=params.betas, weight_decay=params.weight_decay, fused=params.fused)

    def forward(iterator: Iterator, model: Decoder) -> tuple[torch.Tensor, Callable]:
        batch = in_one_copy(MicroBatch(next(iterator), whole).arrays(with_blocks=False), ranks.device)
        labels = batch["labels"]
        inputs = LayerInputs(dense_mask(batch["segments"], batch["prefix"], dtype), whole)
        targets = Targets(batch["places"], labels, torch.full_like(labels, 1e-6, dtype=torch.float32))
        output = model(batch["tokens"], None, inputs, labels=targets)
        return output, lambda losses: (losses[0], torch.tensor(len(labels), dtype=torch.int), {})

    def update() -> None:
        if masters is not weights:
            for master, weight in zip(masters, weights):
                master.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        optimizer.step()
        optimizer.zero_grad()
        if masters is not weights:
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)

    def step(batches: list) -> None:
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(batches),
            model=chunk,
            num_microbatches=len(batches),
            seq_length=run.recipe.data.sequence_length,
            micro_batch_size=run.micro_batch,
        )
        update()

    return step
