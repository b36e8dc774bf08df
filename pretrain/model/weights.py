"""Initial weights: a function of (seed, global parameter name), so that every layout starts from the same model."""

import hashlib
import math

import torch
from megatron.core import parallel_state

from pretrain.config.recipe import Recipe
from pretrain.model.decoder import Decoder
from pretrain.model.split import is_split, split_of


@torch.no_grad()
def initialize(chunks: list[Decoder], recipe: Recipe) -> None:
    """Fill all weights: norms with 1, biases with 0, matrices with normal numbers.

    Standard deviation `init_std`, over sqrt(2 layers) for the two projections back into the residual stream, as in
    GPT-2. Drawn on the CPU as whole tensors and cut for tensor parallelism, so that no layout or device changes them.
    """
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            name = chunk.global_name(name)
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = recipe.model.init_std
            if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
                std /= math.sqrt(2 * recipe.model.num_layers)
            parameter.copy_(_own_part(_normal(name, recipe.seed, _full_shape(parameter)), parameter) * std)


def _full_shape(parameter: torch.Tensor) -> list[int]:
    shape = list(parameter.shape)
    if is_split(parameter):
        dim, _ = split_of(parameter)
        shape[dim] *= parallel_state.get_tensor_model_parallel_world_size()
    return shape


def _normal(name: str, seed: int, shape: list[int]) -> torch.Tensor:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _own_part(full: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a weight. Matrices side by side, as SwiGLU's two, are each split by themselves."""
    if not is_split(parameter):
        return full
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    dim, matrices = split_of(parameter)
    parts = full.chunk(ranks * matrices, dim=dim)
    return torch.cat(parts[parallel_state.get_tensor_model_parallel_rank() :: ranks], dim=dim)
