"""The operators of query and key preparation by a kernel. The eager way needs none: torch.compile sees through it.

It takes over inside them where "auto" finds that a kernel does not compile.
"""

from __future__ import annotations

from operator import itemgetter, methodcaller
from typing import Any

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, operators
from tivtok_kernels.problem import Direction, Preparation, Problem

# The fields of a `Preparation`, and by whom it is run: the last arguments of both operators.
_INPUTS = "Tensor qk, Tensor? cos, Tensor? sin, Tensor? q_weight, Tensor? k_weight, float eps, str backend"


def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    *fields, backend = inputs
    call = Preparation(*fields)
    if call.qk.numel() == 0:
        return _fake_forward(*inputs)
    return _run(backend, call, "forward", "prepare_qk", call)


def _backward(dq: Tensor, dk: Tensor, *inputs: Any) -> list[Tensor]:
    *fields, backend = inputs
    call = Preparation(*fields)
    if call.qk.numel() == 0:
        return operators.zero_gradients(call.qk, call.q_weight, call.k_weight)
    return _run(backend, call, "backward", "prepare_qk_backward", call, dq, dk)


def _run(backend: str, call: Preparation, direction: Direction, method: str, *inputs: Any) -> Any:
    problem = Problem(call.qk.device, call.qk.dtype, call.qk.shape[-1], direction=direction)
    return backends.run("prepare_qk", backend, problem, methodcaller(method, *inputs))


def _fake_forward(qk: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    shape = (qk.shape[0], *qk.shape[2:])
    return qk.new_empty(shape), qk.new_empty(shape)


def _fake_backward(dq: Tensor, dk: Tensor, *inputs: Any) -> list[Tensor]:
    qk, _, _, q_weight, k_weight, *_ = inputs
    return operators.empty_gradients(qk, q_weight, k_weight)


# -> q, k (N, H, D).
prepare_qk = operators.define(f"prepare_qk({_INPUTS}) -> (Tensor, Tensor)", _forward, _fake_forward)

# -> the gradients of qk and, where they are given, of q_weight and k_weight.
prepare_qk_backward = operators.define(
    f"prepare_qk_backward(Tensor dq, Tensor dk, {_INPUTS}) -> Tensor[]", _backward, _fake_backward
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
