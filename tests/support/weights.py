"""A rank's weights by their names in the whole model, however the model keeps them."""

import torch

from pretrain.model.split import block_of
from pretrain.optim.names import whole_name


def weights_of(model) -> dict[str, torch.Tensor]:
    """Copies of all weights, with Megatron-Core's marks; those that are cut into blocks are put together again."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        block = block_of(parameter)
        if block is None:
            found[name] = parameter.detach().clone()
        else:
            whole = found.setdefault(whole_name(name), torch.full(block.shape, torch.nan, dtype=parameter.dtype))
            dim, matrices = parameter.partition_dim, parameter.partition_stride
            for matrix, part in enumerate(parameter.detach().chunk(matrices, dim)):
                place = (matrix * block.of + block.number) * part.shape[dim]
                whole.narrow(dim, place, part.shape[dim]).copy_(part)
        for mark in ("tensor_model_parallel", "partition_dim", "partition_stride"):
            if hasattr(parameter, mark):
                setattr(found[whole_name(name)], mark, getattr(parameter, mark))
    assert not any(weight.isnan().any() for weight in found.values()), "all blocks are there"
    return found
