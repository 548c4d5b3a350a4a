"""The torch.library operators of query and key preparation: the Triton kernels as torch sees them.

There is no operator for the eager way: it is plain torch, and torch.compile should see through it.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor


@torch.library.custom_op("tivtok::qk_prepare", mutates_args=())
def qk_prepare(
    qk: Tensor, cos: Tensor | None, sin: Tensor | None, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """qk (N, 2, H, D) -> q, k (N, H, D). cos and sin (rows, D / 2), N a multiple of rows; weights (D,)."""
    if qk.numel() == 0:
        return _empty(qk), _empty(qk)
    return import_module("tivtok_kernels.triton.qk_prepare").forward(qk, cos, sin, q_weight, k_weight, eps)


@torch.library.custom_op("tivtok::qk_prepare_backward", mutates_args=())
def qk_prepare_backward(
    dq: Tensor,
    dk: Tensor,
    qk: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> list[Tensor]:
    """Gradients of qk and, where they are given, of q_weight and k_weight."""
    if qk.numel() == 0:
        return [
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in _differentiable(qk, q_weight, k_weight)
        ]
    module = import_module("tivtok_kernels.triton.qk_prepare")
    return module.backward(dq, dk, qk, cos, sin, q_weight, k_weight, eps)


@qk_prepare.register_fake
def _(qk, cos, sin, q_weight, k_weight, eps):
    return _empty(qk), _empty(qk)


@qk_prepare_backward.register_fake
def _(dq, dk, qk, cos, sin, q_weight, k_weight, eps):
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in _differentiable(qk, q_weight, k_weight)]


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dq: Tensor, dk: Tensor):
    grads = qk_prepare_backward(dq, dk, *ctx.saved_tensors, ctx.eps)
    dqk, dq_weight, dk_weight = grads if len(grads) == 3 else (*grads, None, None)
    return dqk, None, None, dq_weight, dk_weight, None


qk_prepare.register_autograd(_backward, setup_context=_setup_context)


def _differentiable(qk: Tensor, q_weight: Tensor | None, k_weight: Tensor | None) -> list[Tensor]:
    return [x for x in (qk, q_weight, k_weight) if x is not None]


def _empty(qk: Tensor) -> Tensor:
    return qk.new_empty((qk.shape[0], *qk.shape[2:]))
