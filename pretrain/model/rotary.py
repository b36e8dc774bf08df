"""Rotary position embedding (arXiv 2104.09864) from tables that are made once, not from angles in every layer.

Megatron-Core takes cosine and sine of the same angles in each layer, forward and backward, and writes the turned half of each
vector to memory. The results here are the same numbers.
"""

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor


class RotaryTables(torch.nn.Module):
    """In place of Megatron-Core's module of angles. No weights, nothing to save."""

    def __init__(self, angles: RotaryEmbedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.angles, self.dtype = angles, dtype
        self.get_rotary_seq_len = angles.get_rotary_seq_len
        self._made: dict[int, Tensor] = {}

    def forward(self, length: int, **context: object) -> Tensor:
        """[length, 1, 1, 2 d]: each position's cosines, then its sines, those of the first half negative.

        Args:
            context: what Megatron-Core says for context parallelism, which there is not.
        """
        if length not in self._made:
            angles = self.angles(length)
            sines = angles.sin()
            sines[..., : angles.shape[-1] // 2].neg_()
            self._made[length] = torch.cat([angles.cos(), sines], dim=-1).to(self.dtype)
        return self._made[length]


def rotate(vectors: Tensor, tables: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) by its position's angle.

    Args:
        vectors: [s, b, heads, d].
        tables: of RotaryTables, [s, 1, 1, 2 d].
    """
    cosines, sines = tables.chunk(2, dim=-1)
    return vectors * cosines + vectors.roll(vectors.shape[-1] // 2, dims=-1) * sines
