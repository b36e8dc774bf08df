"""Which token comes next, given what a model finds likely."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.hashing import stable_hash


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0
    """Divides logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (arXiv 1904.09751, section 3.1)."""
    seed: int = 0


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling, texts: list[int], place: int) -> Tensor:
    """Return the next token of each text, [b]. A text's draws depend on the seed and its own number alone, so that neither its
    company nor the layout changes them.

    Args:
        logits: [b, pieces] float32.
        texts: [b], the number of each.
        place: how many tokens have been written.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    away = logits.double() - logits.amax(-1, keepdim=True)  # so that however low a temperature is, nothing overflows
    ordered, tokens = (away / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    up_to = ordered.cumsum(-1)
    kept = (up_to - ordered < sampling.top_p).sum(-1, keepdim=True)  # the first is always kept
    total = up_to.gather(-1, kept - 1)
    draws = [stable_hash(sampling.seed, text, place) / 2**64 for text in texts]
    drawn = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * total
    index = torch.minimum((up_to <= drawn).sum(-1, keepdim=True), kept - 1)
    return tokens.gather(-1, index)[:, 0]
