"""The plainest program that trains the same model on the same batches: one file, float64, no framework.

It shares nothing with the product but the batches, the paths and the initial weights.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Reference:
    """Weights by Megatron-Core's names, AdamW and clipping written out."""

    weights: dict[str, Tensor]
    layers: int
    heads: int
    pieces: int
    """Rows of the embedding that are real; the others only pad it."""
    epsilon: float
    groups: int | None = None
    """Heads that share keys and values; None: none do."""
    head_size: int | None = None
    frequencies: Tensor | None = None
    """Radians a position, [d / 2]; 10000^(-2i/d) if None."""
    sharpness: float = 1.0
    """Factor on turned queries and keys."""
    embedding_scale: float = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    gelu: bool = False
    """GELU in the feed-forward block instead of SwiGLU. Whatever else makes a BERT shows in the names of the weights."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clipping: float = 0.4
    stand_still: bool = False
    """Whether AdamW passes over what no path of a step runs, rather than update it with a gradient of 0."""
    updates: dict[str, Tensor] = field(default_factory=dict)
    """Of each number of each weight."""
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = {name: w.detach().double().clone().requires_grad_() for name, w in self.weights.items()}
        self.moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in self.weights.items()}

    def step(self, batches, paths_of_batches, lr: float) -> tuple[float, float]:
        """One update; returns loss per target token of all batches together, and the gradient's norm."""
        targets = sum(int(batch.targets.sum()) for batch in batches)
        sums = [self.sums(batch, path) for batch, path in zip(batches, paths_of_batches)]
        loss, trained = sum(loss for loss, _ in sums) / targets, sum(loss + z_loss for loss, z_loss in sums) / targets
        gradients = torch.autograd.grad(trained, list(self.weights.values()), allow_unused=True)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None))
        factor = min(1.0, self.clipping / norm)
        for (name, weight), gradient in zip(self.weights.items(), gradients):
            gradient = torch.zeros_like(weight) if gradient is None else gradient * factor
            self._adamw(name, weight, gradient, lr, self._ran(name, weight, paths_of_batches) if self.stand_still else None)
        return loss.item(), norm

    def _ran(self, name: str, weight: Tensor, paths) -> Tensor:
        """Which numbers of a weight some path runs."""
        ran = torch.zeros(weight.shape, dtype=torch.bool)
        if "layers" not in name:
            return ~ran
        layer, part = int(name.split(".")[2]), name.split(".", 3)[3]
        for path in paths:
            if not path.active[layer]:
                continue
            width = None if path.width is None else path.width[layer]
            groups, columns = (None, None) if width is None else (width.groups, width.columns)
            chosen = groups if "linear_qkv" in part or "linear_proj.weight" in part else None
            chosen = columns if "linear_fc1" in part or "linear_fc2.weight" in part else chosen
            if chosen is None:
                ran[:] = True
                continue
            by_columns = "proj" in part or "fc2" in part
            matrices = len(weight) if by_columns else 1 if self.gelu or "qkv" in part else 2
            ran.view(matrices, chosen.of, -1)[:, list(chosen.blocks)] = True
        return ran

    def sums(self, batch, path) -> tuple[Tensor, Tensor]:
        """Cross entropy and z-loss summed over the targets of a batch."""
        logits, targets = self.logits(batch, path)[..., : self.pieces], torch.from_numpy(batch.targets)
        labels = torch.from_numpy(batch.labels)
        chosen = logits.log_softmax(-1).gather(-1, labels.clamp(max=self.pieces - 1)[..., None])[..., 0]
        return -(chosen * targets).sum(), self.z_loss * (logits.logsumexp(-1) ** 2 * targets).sum()

    def loss_sum(self, batch, path) -> Tensor:
        """Cross entropy summed over the targets of a batch."""
        return self.sums(batch, path)[0]

    def logits(self, batch, path) -> Tensor:
        """[b, s, padded vocabulary]"""
        may = self._mask(batch)
        x = self.weights["embedding.word_embeddings.weight"][torch.from_numpy(batch.tokens)]
        x = x * self.embedding_scale
        if self._learned_positions:
            x = x + self.weights["embedding.position_embeddings.weight"][torch.from_numpy(batch.positions)]
        for layer in range(self.layers):
            if path.active[layer]:
                width = None if path.width is None else path.width[layer]
                x = self._layer(x, f"decoder.layers.{layer}.", may, path.scale[layer], width)
        x = self._norm(x, "decoder.final_layernorm.weight")
        out = self.weights.get("output_layer.weight", self.weights["embedding.word_embeddings.weight"])
        if "head.dense.weight" not in self.weights:
            logits = x @ out.T
            return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()
        x = torch.nn.functional.gelu(x @ self.weights["head.dense.weight"].T + self.weights["head.dense.bias"])
        return self._norm(x, "head.norm.weight") @ out.T + self.weights["head.bias"]

    @property
    def _learned_positions(self) -> bool:
        return "embedding.position_embeddings.weight" in self.weights

    def _layer(self, x: Tensor, name: str, may: Tensor, scale: float, width=None) -> Tensor:
        w = {key.removeprefix(name): weight for key, weight in self.weights.items() if key.startswith(name)}
        b, s, h = x.shape
        d, groups = self.head_size or h // self.heads, self.groups or self.heads
        share = self.heads // groups

        def linear(x: Tensor, matrix: str) -> Tensor:
            return x @ w[matrix + ".weight"].T + w.get(matrix + ".bias", 0.0)

        def normed(x: Tensor, norm: str) -> Tensor:
            """Where there is such a norm."""
            return self._norm(x, name + norm) if norm in w else x

        qkv = linear(normed(x, "input_layernorm.weight"), "self_attention.linear_qkv").view(b, s, groups, share + 2, d)
        q, k, v = qkv[..., :share, :].flatten(2, 3), qkv[..., share, :], qkv[..., share + 1, :]
        if "self_attention.q_layernorm.weight" in w:
            whole = len(w["self_attention.q_layernorm.weight"]) > d  # over all heads together
            q = self._norm(q.flatten(2) if whole else q, name + "self_attention.q_layernorm.weight").view_as(q)
            k = self._norm(k.flatten(2) if whole else k, name + "self_attention.k_layernorm.weight").view_as(k)
        if not self._learned_positions:
            q, k = self._rotate(q), self._rotate(k)
        k, v = (each[:, :, [head // share for head in range(self.heads)]] for each in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d)
        attention = scores.masked_fill(~may[:, None], -math.inf).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", attention, v)
        if width is not None and width.groups is not None:  # heads that do not run give nothing
            mixed = mixed * torch.tensor([float(head // share in width.groups.blocks) for head in range(self.heads)])[:, None]
        mixed = mixed.reshape(b, s, self.heads * d)
        x = x + scale * normed(linear(mixed, "self_attention.linear_proj"), "post_self_attn_layernorm.weight")
        inner = linear(normed(x, "pre_mlp_layernorm.weight"), "mlp.linear_fc1")
        gate, up = (inner, 1.0) if self.gelu else inner.chunk(2, -1)
        activated = torch.nn.functional.gelu(gate) if self.gelu else torch.nn.functional.silu(gate) * up
        if width is not None and width.columns is not None:
            size = activated.shape[-1] // width.columns.of
            activated = activated * torch.tensor([float(n // size in width.columns.blocks) for n in range(activated.shape[-1])])
        return x + scale * normed(linear(activated, "mlp.linear_fc2"), "post_mlp_layernorm.weight")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        bias = self.weights.get(name.replace("weight", "bias"))
        if bias is not None:
            centred = x - x.mean(-1, keepdim=True)
            return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + self.epsilon) * self.weights[name] + bias
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + self.epsilon) * self.weights[name]

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotary positions: dimension i and i + d/2 turn by position / 10000^(2i/d)."""
        s, d = x.shape[1], x.shape[3]
        frequencies = 10_000.0 ** (-torch.arange(0, d, 2).double() / d) if self.frequencies is None else self.frequencies
        angle = torch.arange(s).double()[:, None] * frequencies
        cos, sin = angle.cos()[None, :, None] * self.sharpness, angle.sin()[None, :, None] * self.sharpness
        left, right = x.chunk(2, -1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    @staticmethod
    def _mask(batch) -> Tensor:
        """[b, q, k], written as loops say it: same example, and not ahead unless the key is of the prefix."""
        b, s = batch.segments.shape
        may = torch.zeros(b, s, s, dtype=torch.bool)
        for sample in range(b):
            for q in range(s):
                for k in range(s):
                    same = batch.segments[sample, q] == batch.segments[sample, k]
                    may[sample, q, k] = bool(same and (k <= q or batch.prefix[sample, k]))
        return may

    @torch.no_grad()
    def _adamw(self, name: str, weight: Tensor, gradient: Tensor, lr: float, ran: Tensor | None) -> None:
        """Update all numbers, or those that ran."""
        ran = torch.ones(weight.shape, dtype=torch.bool) if ran is None else ran
        self.updates[name] = updates = self.updates.get(name, torch.zeros_like(weight)) + ran
        first, second = self.moments[name]
        b1, b2 = self.betas
        first.copy_(torch.where(ran, b1 * first + (1 - b1) * gradient, first))
        second.copy_(torch.where(ran, b2 * second + (1 - b2) * gradient**2, second))
        decay = self.weight_decay if weight.dim() >= 2 else 0.0
        corrected = (first / (1 - b1**updates)) / ((second / (1 - b2**updates)).sqrt() + 1e-8)
        weight.copy_(torch.where(ran, weight * (1 - lr * decay) - lr * corrected, weight))


def cosine(step: int, steps: int, warmup: int, top: float, floor: float) -> float:
    """DeepSpeed's WarmupCosineLR at its value `step`."""
    if step < warmup:
        return top * step / warmup
    progress = min(1.0, (step - warmup + 1) / (steps - warmup))
    return top * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
