"""The gradient's norm and clipping, where DeepSpeed does neither as needed: without ZeRO."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.model.split import is_split
from pretrain.optim.model import ChunkedModel, gradient_of


@torch.no_grad()
def global_norm(model: ChunkedModel) -> float:
    """Return the norm of the whole model's gradient: every weight once, however many ranks hold parts or copies of it."""
    counted = [
        gradient_of(parameter)
        for parameter in model.parameters()
        if not model.is_copy(parameter) and (is_split(parameter) or parallel_state.get_tensor_model_parallel_rank() == 0)
    ]
    square = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in counted]).pow(2).sum()
    dist.all_reduce(square, group=parallel_state.get_model_parallel_group())
    return float(square.sqrt())


@torch.no_grad()
def clip(model: ChunkedModel, norm: float, largest: float) -> None:
    """Scale gradients down to `largest`, as DeepSpeed's ZeRO does; 0 leaves them alone."""
    if largest and norm > largest:
        for parameter in model.parameters():
            gradient_of(parameter).mul_(largest / (norm + 1e-6))
