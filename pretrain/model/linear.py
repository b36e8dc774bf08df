"""Megatron-Core's two linears with a product that a compiler can trace through its collectives.

Its own are started with `async_op=True`, which Dynamo refuses (PyTorch issue 145574). PyTorch's functional collectives do the
same: they run from where they are called to where they are waited for, beside the products between, compiled or not.
"""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor
from torch.autograd.function import FunctionCtx

_collectives = torch.ops._c10d_functional
_wait = _collectives.wait_tensor


class ColumnLinear(ColumnParallelLinear):
    """Each tensor rank has rows of the weight, and makes columns of the output."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Multiply; returns the output and, where it is added later, the bias.

        Args:
            input_: [s, b, h], or [s / tensor ranks, b, h] under sequence parallelism.
        """
        return self._product(input_, self.weight, self.bias)

    def of_blocks(self, input_: Tensor, blocks: Tensor, of: int, matrices: int = 1) -> tuple[Tensor, Tensor | None]:
        """Multiply with some blocks of rows alone, in a narrower product.

        Args:
            blocks: numbers of those that this rank runs, of the `of` that it holds.
            matrices: how many matrices stand side by side, each with its own blocks.
        """
        chosen = [
            None if part is None else part.view(matrices, of, -1, *part.shape[1:]).index_select(1, blocks).flatten(0, 2)
            for part in (self.weight, self.bias)
        ]
        assert chosen[0] is not None, "a linear has a weight"
        return self._product(input_, chosen[0], chosen[1])

    def _product(self, input_: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        size, name = self.tp_group.size(), self.tp_group.group_name
        output = _ColumnProduct.apply(input_, weight, None if self.skip_bias_add else bias, size, name, self.sequence_parallel)
        return output, bias if self.skip_bias_add else None


class RowLinear(RowParallelLinear):
    """Each tensor rank has columns of the weight and of the input; outputs are summed."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Multiply; returns the output and, where it is added later, the bias.

        Args:
            input_: [s, b, h / tensor ranks].
        """
        return self._product(input_, self.weight)

    def of_blocks(self, input_: Tensor, blocks: Tensor, of: int) -> tuple[Tensor, Tensor | None]:
        """Multiply with some blocks of columns alone, of which the input has the numbers.

        Args:
            blocks: numbers of those that this rank runs, of the `of` that it holds.
        """
        rows = self.weight.shape[0]
        return self._product(input_, self.weight.view(rows, of, -1).index_select(1, blocks).flatten(1))

    def _product(self, input_: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        output, size = F.linear(input_, weight), self.tp_group.size()
        if size > 1:
            output = _Sum.apply(output, size, self.tp_group.group_name, self.sequence_parallel)
        if self.bias is not None and not self.skip_bias_add:
            output = output + self.bias
        return output, self.bias if self.skip_bias_add else None


class _Context(FunctionCtx):
    size: int
    name: str
    splits: bool
    """Whether the input's positions are split over the ranks."""
    has_bias: bool
    saved_tensors: tuple[Tensor, Tensor]


class _ColumnProduct(torch.autograd.Function):
    """input weight^T + bias. The input's gradient is summed over ranks while the weight's is worked out."""

    @staticmethod
    def forward(ctx: _Context, input_: Tensor, weight: Tensor, bias: Tensor | None, size: int, name: str, splits: bool) -> Tensor:
        ctx.save_for_backward(input_, weight)
        ctx.size, ctx.name, ctx.splits, ctx.has_bias = size, name, splits, bias is not None
        whole = _wait(_collectives.all_gather_into_tensor(input_, size, name)) if splits else input_
        return F.linear(whole, weight, bias)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_, weight = ctx.saved_tensors
        whole = _collectives.all_gather_into_tensor(input_, ctx.size, ctx.name) if ctx.splits else input_
        grad_input = grad.matmul(weight)
        if ctx.splits:
            whole = _wait(whole)
            grad_input = _collectives.reduce_scatter_tensor(grad_input, "sum", ctx.size, ctx.name)
        elif ctx.size > 1:
            grad_input = _collectives.all_reduce(grad_input, "sum", ctx.name)
        rows = grad.flatten(0, -2)
        grad_weight = rows.t().matmul(whole.flatten(0, -2))
        grad_bias = rows.sum(0) if ctx.has_bias else None
        if ctx.size > 1:
            grad_input = _wait(grad_input)
        return grad_input, grad_weight, grad_bias, None, None, None


class _Sum(torch.autograd.Function):
    """Sum over ranks; under sequence parallelism each rank keeps its own positions of it."""

    @staticmethod
    def forward(ctx: _Context, input_: Tensor, size: int, name: str, splits: bool) -> Tensor:
        ctx.size, ctx.name, ctx.splits = size, name, splits
        if splits:
            return _wait(_collectives.reduce_scatter_tensor(input_, "sum", size, name))
        return _wait(_collectives.all_reduce(input_, "sum", name))

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.splits:
            grad = _wait(_collectives.all_gather_into_tensor(grad.contiguous(), ctx.size, ctx.name))
        return grad, None, None, None


class SumEverywhere(torch.autograd.Function):
    """Sum over ranks of which every rank makes something of its own, so that gradients are summed, too."""

    @staticmethod
    def forward(ctx: _Context, input_: Tensor, name: str) -> Tensor:
        ctx.name = name
        return _wait(_collectives.all_reduce(input_, "sum", name))

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _wait(_collectives.all_reduce(grad.contiguous(), "sum", ctx.name)), None
