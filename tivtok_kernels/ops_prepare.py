"""The operators of query and key preparation by a kernel. The eager way needs none: torch.compile sees through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, operators

BACKEND = "triton"  # the one that has kernels


def _forward(
    qk: Tensor, cos: Tensor | None, sin: Tensor | None, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    if qk.numel() == 0:
        return _empty(qk), _empty(qk)
    return backends.load(BACKEND).prepare_qk(qk, cos, sin, q_weight, k_weight, eps)


def _backward(
    dq: Tensor,
    dk: Tensor,
    qk: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> list[Tensor]:
    if qk.numel() == 0:
        return operators.zero_gradients(qk, q_weight, k_weight)
    return backends.load(BACKEND).prepare_qk_backward(dq, dk, qk, cos, sin, q_weight, k_weight, eps)


def _fake_forward(qk, cos, sin, q_weight, k_weight, eps):
    return _empty(qk), _empty(qk)


def _fake_backward(dq, dk, qk, cos, sin, q_weight, k_weight, eps):
    return operators.empty_gradients(qk, q_weight, k_weight)


# qk (N, 2, H, D) -> q, k (N, H, D). cos and sin (rows, D / 2), N a multiple of rows; weights (D,).
prepare_qk = operators.define(
    "prepare_qk(Tensor qk, Tensor? cos, Tensor? sin, Tensor? q_weight, Tensor? k_weight, float eps) -> "
    "(Tensor, Tensor)",
    _forward,
    _fake_forward,
)

# -> the gradients of qk and, where they are given, of q_weight and k_weight.
prepare_qk_backward = operators.define(
    "prepare_qk_backward(Tensor dq, Tensor dk, Tensor qk, Tensor? cos, Tensor? sin, Tensor? q_weight, "
    "Tensor? k_weight, float eps) -> Tensor[]",
    _backward,
    _fake_backward,
)


class _PrepareQk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs[:5])
        ctx.eps = inputs[5]
        return operators.below_autograd(prepare_qk, *inputs)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        dqk, *dweights = prepare_qk_backward(dq, dk, *ctx.saved_tensors, ctx.eps)
        return dqk, None, None, *(dweights or (None, None)), None


def _backward_once(*inputs: Any) -> list[Tensor]:
    return derivatives.differentiable_once("prepare_qk", BACKEND, "eager", prepare_qk_backward, inputs)


def _backend(inputs: Sequence[Any]) -> str:
    return BACKEND


_NAMES = {"function": "prepare_qk", "better": "eager"}
operators.set_derivative(prepare_qk, _PrepareQk.apply, tensors=5, backend=_backend, **_NAMES)
operators.set_derivative(prepare_qk_backward, _backward_once, tensors=7, backend=_backend, **_NAMES)


def _empty(qk: Tensor) -> Tensor:
    return qk.new_empty((qk.shape[0], *qk.shape[2:]))
