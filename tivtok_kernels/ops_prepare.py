"""The operators of query and key preparation by a kernel. The eager way needs none: torch.compile sees through it.

It takes over inside them where "auto" finds that a kernel does not compile.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, operators
from tivtok_kernels.problem import Direction, Problem


def _forward(
    qk: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if qk.numel() == 0:
        return _empty(qk), _empty(qk)
    inputs = (qk, cos, sin, q_weight, k_weight, eps)
    return backends.run("prepare_qk", backend, _problem(qk, "forward"), lambda module: module.prepare_qk(*inputs))


def _backward(
    dq: Tensor,
    dk: Tensor,
    qk: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    backend: str,
) -> list[Tensor]:
    if qk.numel() == 0:
        return operators.zero_gradients(qk, q_weight, k_weight)
    inputs = (dq, dk, qk, cos, sin, q_weight, k_weight, eps)
    problem = _problem(qk, "backward")
    return backends.run("prepare_qk", backend, problem, lambda module: module.prepare_qk_backward(*inputs))


def _problem(qk: Tensor, direction: Direction) -> Problem:
    return Problem(qk.device, qk.dtype, qk.shape[-1], direction=direction)


def _fake_forward(qk, cos, sin, q_weight, k_weight, eps, backend):
    return _empty(qk), _empty(qk)


def _fake_backward(dq, dk, qk, cos, sin, q_weight, k_weight, eps, backend):
    return operators.empty_gradients(qk, q_weight, k_weight)


# qk (N, 2, H, D) -> q, k (N, H, D). cos and sin (rows, D / 2), N a multiple of rows; weights (D,).
prepare_qk = operators.define(
    "prepare_qk(Tensor qk, Tensor? cos, Tensor? sin, Tensor? q_weight, Tensor? k_weight, float eps, str backend) "
    "-> (Tensor, Tensor)",
    _forward,
    _fake_forward,
)

# -> the gradients of qk and, where they are given, of q_weight and k_weight.
prepare_qk_backward = operators.define(
    "prepare_qk_backward(Tensor dq, Tensor dk, Tensor qk, Tensor? cos, Tensor? sin, Tensor? q_weight, "
    "Tensor? k_weight, float eps, str backend) -> Tensor[]",
    _backward,
    _fake_backward,
)


class _PrepareQk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs[:5])
        ctx.options = inputs[5:]
        return operators.below_autograd(prepare_qk, *inputs)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        dqk, *dweights = prepare_qk_backward(dq, dk, *ctx.saved_tensors, *ctx.options)
        return dqk, None, None, *(dweights or (None, None)), None, None


def _backward_once(*inputs: Any) -> list[Tensor]:
    return derivatives.differentiable_once("prepare_qk", inputs[8], "eager", prepare_qk_backward, inputs)


_NAMES = {"function": "prepare_qk", "better": "eager"}
operators.set_derivative(prepare_qk, _PrepareQk.apply, tensors=5, backend=itemgetter(6), **_NAMES)
operators.set_derivative(prepare_qk_backward, _backward_once, tensors=7, backend=itemgetter(8), **_NAMES)


def _empty(qk: Tensor) -> Tensor:
    return qk.new_empty((qk.shape[0], *qk.shape[2:]))
