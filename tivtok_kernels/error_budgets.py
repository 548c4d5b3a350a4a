"""Bounds of the rounding errors of attention and its gradients, element by element; docs/numerics.md derives them.

A sum of n terms is off by at most n roundings of the sum of their magnitudes, in whatever order it is taken. Every
bound follows from that, from the magnitudes of the inputs, and from what `Arithmetic` says of a backend.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tivtok_kernels.reference import row_groups
from tivtok_kernels.tensors import accumulation_dtype


class Arithmetic(NamedTuple):
    """What the budget of a backend depends on.

    Attributes:
        dtype: of inputs and results, and of softmax weights and score gradients where they enter products.
        exp_ulps: largest error of its exponential, in units in the last place of the dtype of sums.
        key_block: fewest keys between two changes of a running maximum.
        query_block: rows of a partial sum over rows that is rounded to ``dtype``, at least; 0 if only final sums are.
        operand: relative error with which products read their operands (TF32); 0 if they read them as they are.
    """

    dtype: torch.dtype
    exp_ulps: float = 4
    key_block: int = 16
    query_block: int = 0
    operand: float = 0.0

    @classmethod
    def of(cls, backend: str, dtype: torch.dtype) -> Arithmetic:
        if backend != "sdpa":
            return cls(dtype)
        # torch's CPU kernel: exp_u20, in 16 bits with AVX a polynomial of third degree (1.1e-4 off, measured); blocks
        # of 512 keys and of 32 rows or more; gradients are summed in the dtype of the tensors.
        exp_ulps = 1024 if torch.finfo(dtype).bits == 16 else 20
        return cls(dtype, exp_ulps, key_block=512, query_block=32)

    @property
    def unit(self) -> float:
        """Largest relative error of rounding to ``dtype``."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def sum_unit(self) -> float:
        """The same of the dtype in which sums are taken."""
        return torch.finfo(accumulation_dtype(self.dtype)).eps / 2

    @property
    def weight_unit(self) -> float:
        """Largest relative error that weights and score gradients get on their way into a product."""
        return 2 * self.operand + (0.0 if self.dtype == accumulation_dtype(self.dtype) else self.unit)

    @property
    def smallest(self) -> float:
        """Largest absolute error of a number that underflows: to 0, or in 16 bits to a multiple of the smallest."""
        info = torch.finfo(self.dtype)
        return info.smallest_normal * (info.eps if info.bits == 16 else 1)


@torch.no_grad()
def budgets(
    arithmetic: Arithmetic,
    visible: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    dout: Tensor,
    dlse: Tensor | None,
    scale: float,
) -> dict[str, Tensor]:
    """The largest errors of out (N, H, D), lse (N, H), dq (N, H, D), dk and dv (M, Hk, D), in float64.

    Args:
        visible: bool (N, M). inputs: q (N, H, D), k and v (M, Hk, D) as they enter, in any dtype.
        dout: (N, H, D). dlse: (N, H), or None if the LSE has no gradient.
    """
    q, k, v = (x.double() for x in inputs)
    group = q.shape[1] // k.shape[1]
    found = {"out": torch.zeros_like(q), "lse": q.new_zeros(q.shape[:2]), "dq": torch.zeros_like(q)}
    errors, sizes = ({"dk": torch.zeros_like(k), "dv": torch.zeros_like(v)} for _ in range(2))
    rows_summed, parts_rounded = k.new_zeros(len(k)), k.new_zeros(len(k))
    for rows, keys in row_groups(visible):
        row_part = (q[rows], dout[rows].double(), None if dlse is None else dlse[rows].double())
        k_seen, v_seen = (x[keys].repeat_interleave(group, dim=1) for x in (k, v))
        for name, x in _group_budgets(arithmetic, *row_part, k_seen, v_seen, scale).items():
            match name.split():
                case [result]:
                    found[result][rows] = x
                case [result, kind]:
                    (errors if kind == "error" else sizes)[result][keys] += x.unflatten(1, (-1, group)).sum(2)
        rows_summed[keys] += len(rows) * group
        if arithmetic.query_block:
            parts_rounded[keys] += (math.ceil(len(rows) / arithmetic.query_block) + 1) * group
    roundings = (rows_summed + 4) * arithmetic.sum_unit + (parts_rounded + 1) * arithmetic.unit
    found |= {name: errors[name] + roundings[:, None, None] * sizes[name] for name in errors}
    factor = 1 + 16 * arithmetic.unit  # terms of second order
    if arithmetic.dtype == torch.float64:
        factor *= 2  # the truth, in float64 too, may be off by as much
    return {name: factor * x + arithmetic.smallest for name, x in found.items()}


def _group_budgets(
    arithmetic: Arithmetic, q: Tensor, dout: Tensor, dlse: Tensor | None, k: Tensor, v: Tensor, scale: float
) -> dict[str, Tensor]:
    """For rows that all see the same keys: q, dout (rows, H, D), dlse (rows, H), k, v (keys, H, D).

    Returns:
        The budgets of "out", "lse" and "dq" of these rows, and "dk error", "dk size", "dv error", "dv size": their
        part in the errors of dk and dv, and the sums of magnitudes that the roundings of these sums refer to.
    """
    unit, sum_unit, tiny = arithmetic.unit, arithmetic.sum_unit, arithmetic.smallest
    n, head_dim = len(k), q.shape[-1]
    blocks = math.ceil(n / arithmetic.key_block) + 1
    q, k, v, dout = (x.transpose(0, 1) for x in (q, k, v, dout))  # (H, rows or keys, D)

    # Exponents: products of head_dim terms, scaled; a maximum or the LSE is subtracted.
    scores = scale * q @ k.mT
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    products = abs(scale) * q.abs() @ k.abs().mT
    size = scores.abs().amax(-1) + math.log(n) + 1
    one_exp = 2 * arithmetic.exp_ulps * sum_unit
    exponents = ((head_dim + 3) * sum_unit + 2 * arithmetic.operand) * products + 8 * sum_unit * size[..., None]
    exponents += one_exp

    # Forward: weights change by these factors, and once more for every new maximum.
    changes = weights * torch.expm1(exponents + blocks * one_exp)
    change = changes.sum(-1)
    out = weights @ v
    out_size = weights @ v.abs()
    rounded = arithmetic.weight_unit + (2 * n + 4 * blocks + 6) * sum_unit
    out_error = changes @ v.abs() + change[..., None] * out.abs() + rounded * out_size
    out_error = out_error / (1 - change[..., None]).clamp(min=0) + tiny * v.abs().sum(-2, keepdim=True)
    out_error += unit * out.abs()
    lse_error = change / (1 - change).clamp(min=0) + (n + 2 * blocks + 4) * sum_unit + 4 * sum_unit * size

    # Backward: dS = scale * P * (dO V - rowsum(dO * O) + dLSE).
    factor = torch.expm1(exponents + lse_error[..., None])
    delta, delta_size = ((dout * out).sum(-1), (dout.abs() * out.abs()).sum(-1))
    minus_dlse = torch.zeros_like(delta) if dlse is None else -dlse.T
    d_weights, d_size = dout @ v.mT, dout.abs() @ v.abs().mT
    d_weights = d_weights - (delta + minus_dlse)[..., None]
    row_error = (dout.abs() * out_error).sum(-1) + (head_dim + 5) * sum_unit * delta_size
    row_error += (3 * sum_unit + (unit if arithmetic.query_block else 0)) * minus_dlse.abs()
    d_error = ((head_dim + 5) * sum_unit + 2 * arithmetic.operand) * d_size + row_error[..., None]
    d_scores = abs(scale) * weights * d_weights.abs()
    score_error = abs(scale) * weights * (factor * d_weights.abs() + (1 + factor) * d_error)
    score_error += (4 * sum_unit + arithmetic.weight_unit) * d_scores + tiny * (1 + abs(scale))

    dq_size = d_scores @ k.abs()
    dq = scale * (weights * d_weights) @ k
    partial = (blocks + 3) * unit if arithmetic.query_block else 0
    dq_error = score_error @ k.abs() + ((n + 2 * blocks + 4) * sum_unit + partial) * dq_size + unit * dq.abs()
    weight_error = weights * (factor + arithmetic.weight_unit) + tiny
    found = {
        "out": out_error,
        "dq": dq_error,
        "dk error": score_error.mT @ q.abs(),
        "dk size": d_scores.mT @ q.abs(),
        "dv error": weight_error.mT @ dout.abs(),
        "dv size": weights.mT @ dout.abs(),
    }
    return {name: x.transpose(0, 1) for name, x in found.items()} | {"lse": lse_error.T}


@torch.no_grad()
def prepare_budgets(
    dtype: torch.dtype,
    qk: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    norm: tuple[Tensor, Tensor] | None,
    grads: tuple[Tensor, Tensor],
    eps: float,
) -> dict[str, Tensor]:
    """The largest errors of `prepare_qk`, in float64: "q", "k" (..., rows, H, D), "dq", "dk" as parts of the gradient
    of qkv, of the same shape, and with norm "dq_weight" and "dk_weight" (D,).

    Args:
        dtype: of qkv. qk: its queries and keys (2, ..., rows, H, D). grads: of q and k.
    """
    unit, sum_unit = torch.finfo(dtype).eps / 2, torch.finfo(accumulation_dtype(dtype)).eps / 2
    head_dim = qk.shape[-1]
    cos, sin = (x.double()[:, None] for x in rotary) if rotary else (torch.ones(()), torch.zeros(()))
    found = {}
    for name, x, grad, weight in zip("qk", qk.double(), grads, norm or (None, None), strict=True):
        scale, scale_error, weights = torch.ones(()), 0.0, torch.ones(())
        if weight is not None:
            scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
            scale_error = (head_dim / 2 + 6) * sum_unit  # half that of a sum of squares; rsqrt by 2 ulps
            weights = weight.double()
        normed = x * scale

        def turned(y: Tensor, back: int, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
            a, b = y.chunk(2, dim=-1)
            return torch.cat([a * cos - back * b * sin, back * a * sin + b * cos], dim=-1)

        def turned_size(y: Tensor, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
            a, b = y.abs().chunk(2, dim=-1)
            return torch.cat([a * cos.abs() + b * sin.abs(), a * sin.abs() + b * cos.abs()], dim=-1)

        size = turned_size(normed * weights)
        found[name] = (scale_error + 6 * sum_unit) * size + unit * turned(normed * weights, 1).abs()

        back, back_size = turned(grad.double(), -1), turned_size(grad.double())
        if weight is None:
            found[f"d{name}"] = 4 * sum_unit * back_size + unit * back.abs()
            continue
        mean = (back * weights * normed).mean(-1, keepdim=True)
        mean_size = (back_size * weights.abs() * normed.abs()).mean(-1, keepdim=True)
        error = (2 * scale_error + 10 * sum_unit) * (back_size * weights.abs() + normed.abs() * mean_size)
        error += normed.abs() * mean_size * (head_dim + 2 * scale_error / sum_unit) * sum_unit
        found[f"d{name}"] = scale * error + unit * (scale * (back * weights - normed * mean)).abs()
        terms = x[..., 0].numel()
        dweight_size = (back_size * normed.abs()).flatten(0, -2).sum(0)
        found[f"d{name}_weight"] = (terms + 8 + scale_error / sum_unit) * sum_unit * dweight_size
    factor, tiny = 1 + 16 * unit, torch.finfo(dtype).smallest_normal
    return {name: factor * x + tiny for name, x in found.items()}
