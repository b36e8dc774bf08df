"""Attention with prefixes and packed examples: one mask function, two kernels."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.inference.contexts.static_context import StaticInferenceContext
from megatron.core.transformer.attention import SelfAttention as MegatronSelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pretrain.data.batch import BRANCH
from pretrain.model.blocks import SIZE
from pretrain.model.linear import Weights
from pretrain.model.rotary import rotate


def allowed(segments: Tensor, prefix: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """May position q read position k? Within one example, backwards always, forwards where k is of the prefix.

    Args:
        segments: [b, s], number of the example that a position belongs to.
        prefix: [b, s], bool, whether the position is read both ways.
    """

    def mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (segments[batch, q] == segments[batch, k]) & ((k <= q) | prefix[batch, k])

    return mask


def allowed_in_branches(segments: Tensor, prefix: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same where contexts have several continuations (data/batch.py, BRANCH)."""

    def mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own, other = segments[batch, q], segments[batch, k]
        context = torch.where(own < 0, own, own % BRANCH)
        of_context = (context == other) & ((k <= q) | prefix[batch, k])
        return of_context | ((own == other) & (other >= BRANCH) & (k <= q) & ~prefix[batch, k])

    return mask


def dense_mask(segments: Tensor, prefix: Tensor, dtype: torch.dtype, branches: bool = False) -> Tensor:
    """[b, 1, s, s] to be added to attention scores: 0 where allowed, -inf elsewhere. Every row allows something.

    Args:
        branches: whether contexts have several continuations.
    """
    count, length = segments.shape
    device = segments.device
    sample = torch.arange(count, device=device)[:, None, None, None]
    q = torch.arange(length, device=device)[None, None, :, None]
    k = torch.arange(length, device=device)[None, None, None, :]
    may = (allowed_in_branches if branches else allowed)(segments, prefix)(sample, torch.zeros_like(sample), q, k)
    return torch.zeros(may.shape, dtype=dtype, device=device).masked_fill_(~may, -math.inf)


def block_mask(segments: Tensor, prefix: Tensor, tables: Mapping[str, Tensor]) -> BlockMask:
    """The same for `flex`, which skips blocks in which nothing is allowed.

    Args:
        tables: of blocks.py, on the same device.
    """
    length = segments.shape[1]
    mask = BlockMask.from_kv_blocks(
        tables["kv_num_blocks"],
        tables["kv_indices"],
        tables["full_kv_num_blocks"],
        tables["full_kv_indices"],
        BLOCK_SIZE=SIZE,
        mask_mod=allowed(segments, prefix),
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )
    for name in ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"):
        setattr(mask, name, tables[name])
    return mask


class SelfAttention(MegatronSelfAttention):
    """Megatron-Core's, from projection to projection, without its own position embeddings."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | BlockMask | None,
        rotary_pos_emb: Tensor | None = None,
        inference_context: StaticInferenceContext | None = None,
        groups: tuple[Weights, Weights] | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            hidden_states: [s, b, h], or [s / tensor ranks, b, h] under sequence parallelism.
            attention_mask: of dense_mask or block_mask; None where all is one example, read from left to right.
            rotary_pos_emb: of RotaryTables.
            inference_context: keys and values of the positions before these, which are added.
            groups: of the groups of heads that run, the weights of both projections; all if None.

        Returns:
            As hidden_states, and the bias that is not yet added.
        """
        if groups is None:
            query, key, value = self.get_query_key_value_tensors(hidden_states, None)
        else:
            query, key, value = self._of_groups(hidden_states, groups[0])
        if rotary_pos_emb is not None:
            if inference_context is not None:
                begin = inference_context.sequence_len_offset
                rotary_pos_emb = rotary_pos_emb[begin : begin + len(query)]
            query, key = rotate(query, rotary_pos_emb), rotate(key, rotary_pos_emb)
        if inference_context is not None:
            key, value = remembered(inference_context, self.layer_number, key, value)
        mixed = self.core_attention(query, key, value, attention_mask)
        return self.linear_proj(mixed) if groups is None else self.linear_proj(mixed, groups[1])

    def _of_groups(self, hidden_states: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of some groups, as Megatron-Core makes them of all: [s, b, heads, d] and twice [s, b, groups,
        d]."""
        d = self.hidden_size_per_attention_head
        share = self.num_attention_heads_per_partition // self.num_query_groups_per_partition
        mixed, _ = self.linear_qkv(hidden_states, weights)
        query, key, value = mixed.view(*mixed.shape[:2], -1, (share + 2) * d).split([share * d, d, d], dim=3)
        return self.q_layernorm(query.reshape(*query.shape[:2], -1, d)), self.k_layernorm(key), value


def remembered(context: StaticInferenceContext, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Add keys and values, [new, b, heads of this rank, d], to those of earlier positions; returns all, [positions, ...]."""
    begin, end = context.sequence_len_offset, context.sequence_len_offset + len(key)
    kept = context.key_value_memory_dict
    if layer not in kept:
        kept[layer] = tuple(part.new_empty(context.max_sequence_length, *part.shape[1:]) for part in (key, value))
    for whole, part in zip(kept[layer], (key, value)):
        whole[begin:end] = part
    return kept[layer][0][:end], kept[layer][1][:end]


class CoreAttention(MegatronModule):
    """softmax(q k / sqrt(d) + mask) v in place of Megatron-Core's DotProductAttention, which knows no such mask."""

    def __init__(self, config: TransformerConfig, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config=config)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """
        Args:
            query: [s, b, heads of this rank, d].
            key: [s, b, groups of this rank, d]; neighbouring heads share a group.
            value: as key.
            attention_mask: of dense_mask or block_mask; None where all is one example, read from left to right.

        Returns:
            [s, b, heads of this rank * d].
        """
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        if isinstance(attention_mask, BlockMask):
            out = _flex(q, k, v, attention_mask, grouped)
        else:
            none = attention_mask is None
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, is_causal=none, enable_gqa=grouped)
        return out.permute(2, 0, 1, 3).flatten(2)


_compiled_flex = None


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, grouped: bool) -> Tensor:
    """Compiled on a GPU, where it is a fused kernel; eager elsewhere, where it serves only to compare."""
    global _compiled_flex
    if not q.is_cuda:
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
    if _compiled_flex is None:
        _compiled_flex = torch.compile(flex_attention, dynamic=False)
    return _compiled_flex(q, k, v, block_mask=mask, enable_gqa=grouped)
