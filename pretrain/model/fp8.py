"""Products of matrices in 8 bits a number, each matrix scaled to the format's range by its largest number (arXiv 2209.05433).

A scale is worked out in every micro-batch, and nothing of it is kept for others: a layer that was skipped for a while has no
scale that is out of date, no rank has to hear of another's, and a checkpoint has nothing more to hold.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

NUMBERS = torch.float8_e4m3fn
"""Inputs and weights: more digits."""
GRADIENTS = torch.float8_e5m2
"""Gradients of outputs, which spread further: more range."""
SMALLEST = 1e-12
"""The largest number of a matrix is taken for no smaller: one of zeros has a scale, too."""


class Scaled(NamedTuple):
    """A matrix in 8 bits."""

    numbers: Tensor
    scale: Tensor
    """0-d, float32: what the numbers are to be multiplied with."""


def scaled(matrix: Tensor, kind: torch.dtype) -> Scaled:
    """Round a matrix. A number in it that is not finite makes all of its products not finite."""
    largest = torch.finfo(kind).max
    factor = largest / matrix.abs().amax().float().clamp(min=SMALLEST)
    return Scaled((matrix.float() * factor).clamp(-largest, largest).to(kind), factor.reciprocal())


def multiplied(input_: Tensor, weight: Tensor) -> Tensor:
    """Return input weight^T, [..., out], in the weight's type.

    Args:
        input_: [..., in].
        weight: [out, in].
    """
    rows = scaled(input_.flatten(0, -2), NUMBERS)
    numbers, scale = scaled(weight, NUMBERS)
    # Sums of few bits, which GPUs make quicker, are enough where nothing is summed again: not in gradients.
    return _product(rows, Scaled(numbers.t(), scale), weight.dtype, fast=True).view(*input_.shape[:-1], -1)


def of_input(grad: Scaled, weight: Tensor) -> Tensor:
    """Return the input's gradient, [n, in], of the output's, [n, out]."""
    return _product(grad, _by_columns(scaled(weight, NUMBERS)), weight.dtype)


def of_weight(grad: Scaled, input_: Tensor) -> Tensor:
    """Return the weight's gradient, [out, in], of the output's, [n, out], and the input, [n, in]."""
    turned = Scaled(grad.numbers.t().contiguous(), grad.scale)
    return _product(turned, _by_columns(scaled(input_, NUMBERS)), input_.dtype)


def _by_columns(matrix: Scaled) -> Scaled:
    """The same numbers with those of a column side by side, as GPUs want a product's second matrix."""
    return Scaled(matrix.numbers.t().contiguous().t(), matrix.scale)


def _product(first: Scaled, second: Scaled, kind: torch.dtype, fast: bool = False) -> Tensor:
    whole = ScalingType.TensorWise
    return F.scaled_mm(
        first.numbers, second.numbers, first.scale, whole, second.scale, whole, output_dtype=kind, use_fast_accum=fast
    )
