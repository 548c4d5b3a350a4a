"""Query and key preparation in plain torch: differentiable forwards and to any order, transparent to torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from tivtok_kernels.operators import present, recorded
from tivtok_kernels.problem import Preparation, Problem
from tivtok_kernels.tensors import accumulation_dtype


def why_not(problem: Problem) -> str | None:
    """Runs wherever torch runs."""
    return None


def prepare(
    qk: Tensor, rotary: tuple[Tensor, Tensor] | None, norm: tuple[Tensor, Tensor] | None, eps: float
) -> tuple[Tensor, ...]:
    """qk (..., rows, 2, H, D) -> q, k (..., rows, H, D), rounded once, at the end."""
    x = qk.to(accumulation_dtype(qk.dtype))
    if norm is not None:
        weights = torch.stack([weight.to(x.dtype) for weight in norm])[:, None]  # (2, 1, D)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weights
    if rotary is not None:
        cos, sin = (table.detach()[:, None, None].to(x.dtype) for table in rotary)  # (rows, 1, 1, D / 2)
        a, b = x.chunk(2, dim=-1)
        x = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return x.to(qk.dtype).unbind(-3)


def prepare_qk(call: Preparation) -> tuple[Tensor, Tensor]:
    """q, k (N, H, D), in the place of a kernel that does not compile."""
    qk, cos, sin, q_weight, k_weight, eps = call
    rows = qk if cos is None else qk.unflatten(0, (-1, len(cos)))
    rotary = None if cos is None or sin is None else (cos, sin)
    norm = None if q_weight is None or k_weight is None else (q_weight, k_weight)
    q, k = (x.reshape(-1, *x.shape[-2:]) for x in prepare(rows, rotary, norm, eps))
    return q.clone(memory_format=torch.contiguous_format), k.clone(memory_format=torch.contiguous_format)


def prepare_qk_backward(call: Preparation, dq: Tensor, dk: Tensor) -> list[Tensor]:
    """The gradients of qk and, where they are given, of q_weight and k_weight."""
    qk = call.qk.detach().requires_grad_()
    q_weight, k_weight = (None if x is None else x.detach().requires_grad_() for x in (call.q_weight, call.k_weight))
    with recorded():
        results = prepare_qk(call._replace(qk=qk, q_weight=q_weight, k_weight=k_weight))
        grads = torch.autograd.grad(results, present(qk, q_weight, k_weight), (dq, dk))
    return [x.contiguous() for x in grads]
