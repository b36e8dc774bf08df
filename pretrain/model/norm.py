"""Norms that mark their weights for sequence parallelism, which Megatron-Core's wrapper of PyTorch's norms refuses."""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig

from pretrain.model.linear import SumEverywhere


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm over the last dimension of [s, b, h]."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device_of_weights(config))
        mark_whole(self, config)


class LayerNorm(torch.nn.LayerNorm):
    """Layer norm with a bias over the last dimension of [s, b, h]."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device_of_weights(config))
        mark_whole(self, config)


class _WholeNorm(torch.nn.Module):
    """Root-mean-square norm over all heads together, of which a tensor rank has some."""

    def __init__(self, config: TransformerConfig, heads: int) -> None:
        super().__init__()
        head, group = config.kv_channels, parallel_state.get_tensor_model_parallel_group()
        self.size, self.eps, self.ranks, self.name = heads * head, config.layernorm_epsilon, group.size(), group.group_name
        own = torch.empty(self.size // self.ranks, dtype=config.params_dtype, device=device_of_weights(config))
        self.weight = torch.nn.Parameter(own)
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """heads: [s, b, heads of this tensor rank, d]."""
        numbers = heads.flatten(2).float()
        squares = numbers.square().sum(-1, keepdim=True)
        if self.ranks > 1:
            squares = SumEverywhere.apply(squares, self.name)
        normed = numbers * torch.rsqrt(squares / self.size + self.eps)
        return (normed.to(heads.dtype) * self.weight).view_as(heads)


class QueryNorm(_WholeNorm):
    """Over the queries of all heads."""

    def __init__(self, config: TransformerConfig, **kwargs: object) -> None:
        super().__init__(config, config.num_attention_heads)


class KeyNorm(_WholeNorm):
    """Over the keys of all groups."""

    def __init__(self, config: TransformerConfig, **kwargs: object) -> None:
        super().__init__(config, config.num_query_groups)


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def mark_whole(module: torch.nn.Module, config: TransformerConfig) -> None:
    """Every tensor rank has the whole weights and, under sequence parallelism, the gradient of its own positions."""
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # read by Megatron-Core


def device_of_weights(config: TransformerConfig) -> torch.device | None:
    """Where Megatron-Core puts the other weights; None leaves it to the surrounding `with torch.device`."""
    return None if config.use_cpu_initialization else torch.device("cuda", torch.cuda.current_device())
