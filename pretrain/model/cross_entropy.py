"""Output projection and cross entropy in one, a piece of the tokens at a time: logits of a whole micro-batch never exist.

The gradient is worked out beside the loss, while a piece's logits are there, so that nothing is computed twice; the idea is that
of Liger Kernel (arXiv 2410.10989, section 3.2). Tensor ranks have columns of the vocabulary each, and agree on every position's
largest logit and on its sum of exponentials, as in Megatron-LM (arXiv 1909.08053, section 3).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pretrain.cost.loss import positions_in_piece


def sum_of_exponentials(logits: Tensor, top: Tensor) -> Tensor:
    """[n] float32; logits are [n, v], top is [n]."""
    return (logits.float() - top[:, None]).exp().sum(-1)


def scaled_exponentials(logits: Tensor, top: Tensor, scale: Tensor) -> Tensor:
    """[n, v] in the type of the logits, each row times its scale."""
    return ((logits.float() - top[:, None]).exp() * scale[:, None]).to(logits.dtype)


@dataclass(frozen=True)
class Kernels:
    """What passes over logits. Eager, each of its operators reads and writes them anew; compiled, each is one pass."""

    sum_of_exponentials: Callable[[Tensor, Tensor], Tensor] = sum_of_exponentials
    scaled_exponentials: Callable[[Tensor, Tensor, Tensor], Tensor] = scaled_exponentials


@cache
def compiled_kernels() -> Kernels:
    """Return the same, compiled once for any number of positions."""
    return Kernels(_compiled(sum_of_exponentials), _compiled(scaled_exponentials))


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(function, fullgraph=True)

    def call(*by_position: Tensor) -> Tensor:
        if len(by_position[0]) < 2:  # Dynamo takes such a length for a constant
            return function(*by_position)
        for tensor in by_position:
            torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(*by_position)

    return call


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factors: Tensor,
    group: dist.ProcessGroup,
    kernels: Kernels = Kernels(),
    columns: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum of losses, z-losses among them, times factors, which can be differentiated, and for each position its loss,
    whether no token is likelier than its label, and the likeliest token, which cannot.

    Args:
        hidden: [n, h], what the output projection reads, the same on all tensor ranks.
        weight: [v, h], this rank's rows of the projection; none where all its rows pad the vocabulary.
        bias: [v], of the projection.
        labels: [n], numbers of this rank's rows; below 0 or from v on where another rank has them.
        factors: [n] float32; where one is 0, the loss does not count, whatever it is.
        group: the tensor ranks.
        columns: rows of every tensor rank, padding included: all of them must cut tokens into the same
            pieces. None if `weight` has no padding.
        softcap: c, where logits are c tanh(logit / c); None where they are as they are.
        z_loss: factor of the squared logarithm of the denominator; the losses by position are without it.

    Returns:
        A scalar and [n], both float32, [n] bool and [n] int64, the same on all tensor ranks; -1 for tokens where it is trained,
        when nobody asks for them. The gradient of `hidden` is this rank's part,
        to be summed over tensor ranks.
    """
    trains = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, factors, group, kernels, columns, trains, softcap, z_loss)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return c tanh(logit / c), or the logits themselves."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _Context(torch.autograd.function.FunctionCtx):
    grads: tuple[Tensor | None, ...]
    """For the backward pass: of what was read, of the projection's rows and of its bias."""
    dtype: torch.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        factors: Tensor,
        group: dist.ProcessGroup,
        kernels: Kernels,
        columns: int | None,
        trains: bool,
        softcap: float | None,
        z_loss: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = weight.shape[0]
        best = torch.full_like(labels, -1)
        positions = positions_in_piece(columns or rows, hidden.device.type != "cpu")
        losses, is_best = torch.empty_like(factors), torch.empty_like(factors, dtype=torch.bool)
        denominators = torch.zeros_like(factors)  # their logarithms
        grad_hidden = torch.empty_like(hidden) if trains else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if trains else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if trains and bias is not None else None
        for begin in range(0, len(hidden), positions):
            piece = slice(begin, begin + positions)
            logits, factor = capped(F.linear(hidden[piece], weight, bias), softcap), factors[piece]
            column, is_here = _columns(labels[piece], rows)
            top = logits.amax(-1).float() if rows else torch.full_like(factor, -math.inf)
            _all_reduce(top, dist.ReduceOp.MAX, group)
            own = torch.where(is_here, logits.gather(1, column)[:, 0].float() - top, 0.0) if rows else torch.zeros_like(factor)
            totals = torch.stack([kernels.sum_of_exponentials(logits, top), own])
            _all_reduce(totals, dist.ReduceOp.SUM, group)
            total, shifted = totals
            losses[piece], is_best[piece] = total.log() - shifted, shifted == 0
            denominators[piece] = total.log() + top
            if grad_hidden is None or grad_weight is None:
                best[piece] = _best(logits, top, (columns or rows) * group.rank(), group)
                continue
            pull = 1 + 2 * z_loss * denominators[piece]
            grad = kernels.scaled_exponentials(logits, top, factor * pull / total)
            slope = None if softcap is None else 1 - (logits / softcap) ** 2
            del logits
            if rows:  # the label's own column, where 1 is taken off, is rounded once
                at_label = ((shifted.exp() * pull / total - 1) * factor).to(grad.dtype)
                grad.scatter_(1, column, torch.where(is_here, at_label, grad.gather(1, column)[:, 0])[:, None])
            if slope is not None:
                grad *= slope
            torch.mm(grad, weight, out=grad_hidden[piece])
            if grad.dtype == torch.float32:
                grad_weight.addmm_(grad.T, hidden[piece])
            else:
                grad_weight += grad.T @ hidden[piece]
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)
        ctx.grads = grad_hidden, grad_weight, grad_bias
        ctx.dtype = weight.dtype
        ctx.mark_non_differentiable(losses, is_best, best)
        trained = losses + z_loss * denominators**2 if z_loss else losses
        return torch.where(factors == 0, 0.0, trained * factors).sum(), losses, is_best, best

    @staticmethod
    def backward(ctx: _Context, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients are there; what the loss was multiplied with since is in `scale`."""
        grads = [None if grad is None else grad.mul_(scale).to(ctx.dtype) for grad in ctx.grads]
        ctx.grads = ()
        return *grads, *[None] * 8


def _columns(labels: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Each label's column among this rank's, [n, 1], some other one where it has none; and whether it has, [n]."""
    return labels.clamp(0, max(0, rows - 1))[:, None], (labels >= 0) & (labels < rows)


def _best(logits: Tensor, top: Tensor, first: int, group: dist.ProcessGroup) -> Tensor:
    """The first of the likeliest tokens, [n] int64, given the largest logits of all ranks, [n], and the number of this rank's
    first row."""
    none = torch.iinfo(torch.int64).max
    best = torch.full(top.shape, none, dtype=torch.int64, device=top.device)
    if logits.shape[1]:
        own, column = logits.max(-1)
        best = torch.where(own.float() == top, column + first, none)
    _all_reduce(best, dist.ReduceOp.MIN, group)
    return best


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> None:
    if group.size() > 1:
        dist.all_reduce(tensor, operation, group=group)
