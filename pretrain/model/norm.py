"""Norms that mark their weights for sequence parallelism, which Megatron-Core's wrapper of PyTorch's norms refuses."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


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


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def mark_whole(module: torch.nn.Module, config: TransformerConfig) -> None:
    """Every tensor rank has the whole weights and, under sequence parallelism, the gradient of its own positions."""
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # read by Megatron-Core


def device_of_weights(config: TransformerConfig) -> torch.device | None:
    """Where Megatron-Core puts the other weights; None leaves it to the surrounding `with torch.device`."""
    return None if config.use_cpu_initialization else torch.device("cuda", torch.cuda.current_device())
