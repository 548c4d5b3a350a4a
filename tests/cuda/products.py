"""The error budget of matrix products of 16-bit operands, whoever computes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Hold out (M, N) against a (M, K) @ b (K, N) in float64.

    K products and sums in float32, then one rounding to the dtype of out, in which small numbers are not exact.
    """
    a, b = a.double(), b.double()
    info = torch.finfo(out.dtype)
    sums = a.shape[1] * torch.finfo(torch.float32).eps / 2 * (a.abs() @ b.abs())
    budget = sums + info.eps / 2 * ((a @ b).abs() + sums) + info.smallest_normal * info.eps
    worst = ((out.double() - a @ b).abs() / budget).nan_to_num(nan=math.inf).max()
    assert worst <= 1, f"{worst:.3g} of the budget"
