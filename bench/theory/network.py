"""Small transformers of every kind of which the theory speaks, and a made-up language for them."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Placement = Literal["pre", "post", "none"]
SYMBOLS = 64


@dataclass(frozen=True)
class Kind:
    """What a network is made of."""

    residual: bool
    norm: Placement
    """Before each branch, after it (after the sum, where there is one), or nowhere."""

    @property
    def name(self) -> str:
        return f"{'residual' if self.residual else 'no residual'}, {self.norm}-norm".replace("none-norm", "no norm")


class Layer(nn.Module):
    """Causal attention and a feed-forward block."""

    def __init__(self, kind: Kind, hidden: int, heads: int) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) if kind.norm != "none" else nn.Identity() for _ in range(2))
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 4 * hidden, bias=False), nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, s, h]."""
        for branch, norm in zip((self._attend, self._feed_forward), self.norms):
            y = branch(norm(x) if self.kind.norm == "pre" else x)
            x = x + y if self.kind.residual else y
            if self.kind.norm == "post":
                x = norm(x)
        return x

    def _attend(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, h))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Network(nn.Module):
    """A decoder whose layers can be left out. Weights are normal with variance 1 / fan-in, whatever the depth."""

    def __init__(self, kind: Kind, depth: int, hidden: int, heads: int, length: int, seed: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(SYMBOLS, hidden), nn.Embedding(length, hidden)
        self.layers = nn.ModuleList(Layer(kind, hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden) if kind.norm == "pre" else nn.Identity()
        self.head = nn.Linear(hidden, SYMBOLS, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    fan_in = 1 if parameter is self.embedding.weight or parameter is self.places.weight else parameter.shape[1]
                    parameter.normal_(0, 1 / math.sqrt(fan_in), generator=generator)

    def loss(self, tokens: Tensor, without: Collection[int] = ()) -> Tensor:
        """Mean cross entropy of the next symbol, in nats.

        Args:
            tokens: [b, s + 1].
            without: layers that are left out.
        """
        x = self.embedding(tokens[:, :-1]) + self.places.weight
        for number, layer in enumerate(self.layers):
            if number not in without:
                x = layer(x)
        return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens[:, 1:].flatten())


class Language:
    """Each symbol follows from the two before it: in 7 of 10 cases by a fixed rule, else it is one of three others."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.rule = np.random.default_rng(0).integers(0, SYMBOLS, (SYMBOLS, SYMBOLS, 4))  # the same whatever the seed

    def text(self, samples: int, length: int) -> Tensor:
        """Return [samples, length] symbols."""
        found = np.empty((samples, length), np.int64)
        found[:, :2] = self.draw.integers(0, SYMBOLS, (samples, 2))
        which = self.draw.choice(4, (samples, length), p=[0.7, 0.1, 0.1, 0.1])
        for at in range(2, length):
            found[:, at] = self.rule[found[:, at - 2], found[:, at - 1], which[:, at]]
        return torch.from_numpy(found)


def train(network: Network, language: Language, steps: int, samples: int, length: int, rate: float) -> list[float]:
    """AdamW with warm-up over a tenth and a cosine to a tenth; returns the losses."""
    adamw, losses = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1), []
    for step in range(1, steps + 1):
        warm_up = max(1, steps // 10)
        part = min(1.0, step / warm_up) * (0.55 + 0.45 * math.cos(math.pi * max(0.0, step - warm_up) / max(1, steps - warm_up)))
        adamw.param_groups[0]["lr"] = rate * part
        loss = network.loss(language.text(samples, length + 1))
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        losses.append(loss.item())
    return losses


def spread(count: int, most: int) -> Sequence[int]:
    """Return at most so many of 0 .. count - 1, evenly spaced."""
    return sorted({round(index * (count - 1) / max(1, min(count, most) - 1)) for index in range(min(count, most))})
