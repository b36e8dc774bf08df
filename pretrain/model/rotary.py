"""Rotary position embedding (arXiv 2104.09864) from tables that are made once, not from angles in every layer.

Megatron-Core takes cosine and sine of the same angles in each layer, forward and backward, and writes the turned half of each
vector to memory. The results here are the same numbers.
"""

import math

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from pretrain.config.model import RopeScaling


class RotaryTables(torch.nn.Module):
    """In place of Megatron-Core's module of angles. No weights, nothing to save."""

    def __init__(self, angles: RotaryEmbedding, dtype: torch.dtype, sharpness: float = 1.0) -> None:
        """
        Args:
            sharpness: factor on queries and on keys.
        """
        super().__init__()
        self.angles, self.dtype, self.sharpness = angles, dtype, sharpness
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
            self._made[length] = (torch.cat([angles.cos(), sines], dim=-1) * self.sharpness).to(self.dtype)
        return self._made[length]


def scaled(frequencies: Tensor, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Return rotary frequencies for longer texts, and the factor on queries and keys that belongs to them.

    Args:
        frequencies: [d / 2], radians a position, the highest first.
    """
    if scaling is None:
        return frequencies, 1.0
    if scaling.type == "linear":
        return frequencies / scaling.factor, 1.0
    assert scaling.original_length is not None, "checked where it is read"
    turns = scaling.original_length * frequencies / (2 * math.pi)
    if scaling.type == "llama3":
        stays = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        sharpness = 1.0
    else:
        # YaRN's ramp is even over dimensions, that is over logarithms of turns, between whole dimensions (its section 3.2).
        step = torch.log(frequencies[0] / frequencies[1]) if len(frequencies) > 1 else torch.ones(())
        place = torch.arange(len(frequencies), dtype=frequencies.dtype, device=frequencies.device)
        at = {beta: torch.log(turns[0] / beta) / step for beta in (scaling.beta_fast, scaling.beta_slow)}
        first = at[scaling.beta_fast].floor().clamp(min=0)
        last = at[scaling.beta_slow].ceil().clamp(max=2 * len(frequencies) - 1)
        stays = 1 - (place - first) / (last - first).clamp(min=1e-3)
        sharpness = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    stays = stays.clamp(0, 1)
    return frequencies * (stays + (1 - stays) / scaling.factor), sharpness


def rotate(vectors: Tensor, tables: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) by its position's angle.

    Args:
        vectors: [s, b, heads, d].
        tables: of RotaryTables, [s, 1, 1, 2 d].
    """
    cosines, sines = tables.chunk(2, dim=-1)
    return vectors * cosines + vectors.roll(vectors.shape[-1] // 2, dims=-1) * sines
