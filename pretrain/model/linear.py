"""Megatron-Core's two linears with a product that a compiler can trace through its collectives, and with weights that may be cut.

Its own are started with `async_op=True`, which Dynamo refuses (PyTorch issue 145574). PyTorch's functional collectives do the
same: they run from where they are called to where they are waited for, beside the products between, compiled or not.

A weight that is cut is one parameter a block, so that a block which does not run has no gradient and can sleep. What runs is
joined for a product and again, in another way, for its gradient: a compiler that found the same work twice would do it once, and
keep every layer's joined weights from the forward pass to the backward one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import Parameter, ParameterList

from pretrain.model import fp8
from pretrain.model.split import Block, split_of

_collectives = torch.ops._c10d_functional
_wait = _collectives.wait_tensor


class Weights(NamedTuple):
    """What of a linear multiplies: all blocks, some, or its weight in one piece."""

    blocks: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    """The same blocks of the bias; none where it is not cut, or there is none."""


class _Cuttable:
    """What linears have whose weight may be cut into equal blocks of rows or of columns."""

    weight: Parameter | None
    weight_blocks: ParameterList
    bias_blocks: ParameterList | None
    matrices = 1
    """How many stand side by side in a weight that is cut by rows, each with its own blocks."""
    in_fp8 = False
    """Whether products are of numbers of 8 bits; the rest stays in the weights' type."""

    @torch.no_grad()
    def _cut(self, name: str, kind: int, of: int, dim: int) -> None:
        """Replace a parameter by its blocks, in a list that is called after it."""
        whole = getattr(self, name)
        blocks = []
        for number, numbers in enumerate(parted(whole, of, dim, self.matrices)):
            block = Parameter(numbers.clone())  # memory of its own
            set_tensor_model_parallel_attributes(block, is_parallel=whole.tensor_model_parallel, dim=dim, stride=self.matrices)
            block.block = Block(kind, number, of, tuple(whole.shape))  # type: ignore[attr-defined]
            blocks.append(block)
        setattr(self, name, None)
        setattr(self, f"{name}_blocks", ParameterList(blocks))

    def weights(self, numbers: Sequence[int] | None = None) -> Weights:
        """Return the blocks with these numbers, of those that this rank holds; all of the weight if None."""
        if self.weight is not None:
            assert numbers is None, "the weight is not cut"
            return Weights((self.weight,), ())
        weights, biases = self.weight_blocks, self.bias_blocks
        numbers = range(len(weights)) if numbers is None else numbers
        return Weights(tuple(weights[n] for n in numbers), () if biases is None else tuple(biases[n] for n in numbers))


class ColumnLinear(_Cuttable, ColumnParallelLinear):
    """Each tensor rank has rows of the weight, and makes columns of the output."""

    def cut(self, kind: int, of: int) -> None:
        """Cut the weight, and the bias if there is one, into blocks of rows.

        Args:
            kind: GROUPS or COLUMNS of subnetwork/width.py.
            of: how many blocks this rank holds.
        """
        assert self.weight is not None, "a weight is cut once"
        _, self.matrices = split_of(self.weight)
        self._cut("weight", kind, of, 0)
        if self.bias is None:
            self.bias_blocks = None
        else:
            self._cut("bias", kind, of, 0)

    def forward(self, input_: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor | None]:
        """Multiply; returns the output and, where it is added later, the bias.

        Args:
            input_: [s, b, h], or [s / tensor ranks, b, h] under sequence parallelism.
            weights: of the blocks that run, in a narrower product; all of them if None.
        """
        weights = weights or self.weights()
        bias = joined(weights.biases, 0, self.matrices) if weights.biases else self.bias
        size, name = self.tp_group.size(), self.tp_group.group_name
        now = None if self.skip_bias_add else bias
        splits = self.sequence_parallel
        output = _ColumnProduct.apply(input_, now, size, name, splits, self.matrices, self.in_fp8, *weights.blocks)
        return output, bias if self.skip_bias_add else None


class RowLinear(_Cuttable, RowParallelLinear):
    """Each tensor rank has columns of the weight and of the input; outputs are summed."""

    def cut(self, kind: int, of: int) -> None:
        """Cut the weight into blocks of columns; the bias is added to the sum and stays whole.

        Args:
            kind: GROUPS or COLUMNS of subnetwork/width.py.
            of: how many blocks this rank holds.
        """
        self._cut("weight", kind, of, 1)
        self.bias_blocks = None

    def forward(self, input_: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor | None]:
        """Multiply; returns the output and, where it is added later, the bias.

        Args:
            input_: [s, b, columns of the blocks that run].
            weights: of these blocks; all of them if None.
        """
        blocks, size = (weights or self.weights()).blocks, self.tp_group.size()
        if len(blocks) > 1 or self.in_fp8:
            output = _RowProduct.apply(input_, self.in_fp8, *blocks)
        else:
            output = F.linear(input_, blocks[0])
        if size > 1:
            output = _Sum.apply(output, size, self.tp_group.group_name, self.sequence_parallel)
        if self.bias is not None and not self.skip_bias_add:
            output = output + self.bias
        return output, self.bias if self.skip_bias_add else None


class Fp8ColumnLinear(ColumnLinear):
    """The same with products in FP8."""

    in_fp8 = True


class Fp8RowLinear(RowLinear):
    """The same with products in FP8."""

    in_fp8 = True


def joined(blocks: Sequence[Tensor], dim: int, matrices: int = 1) -> Tensor:
    """Return blocks side by side in a dimension, where each has its part of so many matrices, which stay apart."""
    if len(blocks) == 1:
        return blocks[0]
    if matrices == 1:
        return torch.cat(tuple(blocks), dim)
    assert dim == 0
    return torch.cat([block.view(matrices, -1, *block.shape[1:]) for block in blocks], 1).flatten(0, 1)


def joined_again(blocks: Sequence[Tensor], dim: int, matrices: int = 1) -> Tensor:
    """Return what `joined` returns, by an operation that no compiler takes for the same."""
    if len(blocks) == 1:
        return blocks[0]
    if matrices == 1:
        return torch.cat([block.t() for block in blocks], 1 - dim).t()
    return torch.cat([block.view(matrices, -1, block.shape[1]).permute(2, 0, 1) for block in blocks], 2).flatten(1, 2).t()


def parted(whole: Tensor, of: int, dim: int, matrices: int = 1) -> tuple[Tensor, ...]:
    """Return so many equal blocks; what `joined` makes whole."""
    if of == 1 or matrices == 1:
        return whole.chunk(of, dim)
    assert dim == 0
    return tuple(block.flatten(0, 1) for block in whole.view(matrices, of, -1, *whole.shape[1:]).unbind(1))


class _Context(FunctionCtx):
    size: int
    name: str
    splits: bool
    """Whether the input's positions are split over the ranks."""
    matrices: int
    has_bias: bool
    in_fp8: bool
    saved_tensors: tuple[Tensor, ...]


class _ColumnProduct(torch.autograd.Function):
    """input weight^T + bias, the weight being blocks of rows. The input's gradient is summed over ranks while the weight's is
    worked out."""

    @staticmethod
    def forward(ctx: _Context, *inputs: Any) -> Tensor:
        """inputs: the linear's, bias, tensor ranks, their group's name, whether positions are split, matrices, FP8, blocks.

        Not one by one: without gradients Dynamo takes as many inputs as there are parameters for a function without a context.
        """
        input_, bias, size, name, splits, matrices, in_fp8, *blocks = inputs
        ctx.save_for_backward(input_, *blocks)
        ctx.size, ctx.name, ctx.splits, ctx.matrices = size, name, splits, matrices
        ctx.has_bias, ctx.in_fp8 = bias is not None, in_fp8
        whole = _wait(_collectives.all_gather_into_tensor(input_, size, name)) if splits else input_
        return _product(whole, joined(blocks, 0, matrices), bias, in_fp8)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_, *blocks = ctx.saved_tensors
        whole = _collectives.all_gather_into_tensor(input_, ctx.size, ctx.name) if ctx.splits else input_
        rows = grad.flatten(0, -2)
        factor = fp8.scaled(rows, fp8.GRADIENTS) if ctx.in_fp8 else rows
        grad_input = _of_input(factor, joined_again(blocks, 0, ctx.matrices)).view(*grad.shape[:-1], -1)
        if ctx.splits:
            whole = _wait(whole)
            grad_input = _collectives.reduce_scatter_tensor(grad_input, "sum", ctx.size, ctx.name)
        elif ctx.size > 1:
            grad_input = _collectives.all_reduce(grad_input, "sum", ctx.name)
        grad_weight = _of_weight(factor, whole.flatten(0, -2))
        grad_bias = rows.sum(0) if ctx.has_bias else None
        if ctx.size > 1:
            grad_input = _wait(grad_input)
        return grad_input, grad_bias, None, None, None, None, None, *parted(grad_weight, len(blocks), 0, ctx.matrices)


class _RowProduct(torch.autograd.Function):
    """input weight^T, the weight being blocks of columns."""

    @staticmethod
    def forward(ctx: _Context, *inputs: Any) -> Tensor:
        """inputs: the linear's, FP8, blocks."""
        input_, ctx.in_fp8, *blocks = inputs
        ctx.save_for_backward(input_, *blocks)
        return _product(input_, joined(blocks, 1), None, ctx.in_fp8)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_, *blocks = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        factor = fp8.scaled(rows, fp8.GRADIENTS) if ctx.in_fp8 else rows
        grad_weight = _of_weight(factor, input_.flatten(0, -2))
        grad_input = _of_input(factor, joined_again(blocks, 1)).view(*grad.shape[:-1], -1)
        return grad_input, None, *parted(grad_weight, len(blocks), 1)


def _product(input_: Tensor, weight: Tensor, bias: Tensor | None, in_fp8: bool) -> Tensor:
    if not in_fp8:
        return F.linear(input_, weight, bias)
    output = fp8.multiplied(input_, weight)
    return output if bias is None else output + bias


def _of_input(grad: Tensor | fp8.Scaled, weight: Tensor) -> Tensor:
    return fp8.of_input(grad, weight) if isinstance(grad, fp8.Scaled) else grad.matmul(weight)


def _of_weight(grad: Tensor | fp8.Scaled, input_: Tensor) -> Tensor:
    return fp8.of_weight(grad, input_) if isinstance(grad, fp8.Scaled) else grad.t().matmul(input_)


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
