"""BERT's head: what is between the last layer and the output projection (arXiv 1810.04805, and its released code)."""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.model.norm import LayerNorm, device_of_weights, mark_whole


class Transform(torch.nn.Module):
    """A matrix, GELU and LayerNorm, in full on every tensor rank; and the bias of the output projection, of its own columns."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        where = {"dtype": config.params_dtype, "device": device_of_weights(config)}
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size, **where)
        self.norm = LayerNorm(config, config.hidden_size, config.layernorm_epsilon)
        mark_whole(self.dense, config)
        columns = vocabulary // parallel_state.get_tensor_model_parallel_world_size()
        self.bias = torch.nn.Parameter(torch.empty(columns, **where))
        set_tensor_model_parallel_attributes(self.bias, is_parallel=True, dim=0, stride=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: [s, b, h], those of chosen positions, [n, h], or [s / tensor ranks, b, h] under sequence parallelism."""
        return self.norm(torch.nn.functional.gelu(self.dense(hidden_states)))
