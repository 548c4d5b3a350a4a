"""The torch.library operators of query and key preparation: the Triton kernels as torch sees them.

There is no operator for the eager way: it is plain torch, and torch.compile should see through it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tivtok_kernels import derivatives

_library = torch.library.Library("tivtok", "FRAGMENT")

# qk (N, 2, H, D) -> q, k (N, H, D). cos and sin (rows, D / 2), N a multiple of rows; weights (D,).
_library.define(
    "qk_prepare(Tensor qk, Tensor? cos, Tensor? sin, Tensor? q_weight, Tensor? k_weight, float eps) -> (Tensor, Tensor)"
)
# -> the gradients of qk and, where they are given, of q_weight and k_weight.
_library.define(
    "qk_prepare_backward(Tensor dq, Tensor dk, Tensor qk, Tensor? cos, Tensor? sin, Tensor? q_weight, "
    "Tensor? k_weight, float eps) -> Tensor[]"
)
qk_prepare = torch.ops.tivtok.qk_prepare.default
qk_prepare_backward = torch.ops.tivtok.qk_prepare_backward.default


def _forward(
    qk: Tensor, cos: Tensor | None, sin: Tensor | None, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    if qk.numel() == 0:
        return _empty(qk), _empty(qk)
    return import_module("tivtok_kernels.triton.qk_prepare").forward(qk, cos, sin, q_weight, k_weight, eps)


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
        return [
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in _differentiable(qk, q_weight, k_weight)
        ]
    module = import_module("tivtok_kernels.triton.qk_prepare")
    return module.backward(dq, dk, qk, cos, sin, q_weight, k_weight, eps)


class _QkPrepare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs[:5])
        ctx.eps = inputs[5]
        with torch._C._AutoDispatchBelowAutograd():
            return qk_prepare(*inputs)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        dqk, *dweights = _backward_autograd(dq, dk, *ctx.saved_tensors, ctx.eps)
        return dqk, None, None, *(dweights or (None, None)), None


def _autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
    if derivatives.transforms_active():
        derivatives.refuse_transforms("prepare_qk", "triton", "eager", inputs[:5])
    if derivatives.need_grad(inputs[:5]):
        return _QkPrepare.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return qk_prepare(*inputs)


def _backward_autograd(*inputs: Any) -> list[Tensor]:
    if derivatives.transforms_active():
        derivatives.refuse_transforms("prepare_qk", "triton", "eager", inputs[:7])
    if derivatives.need_grad(inputs[:7]):
        return derivatives.differentiable_once("prepare_qk", "triton", "eager", qk_prepare_backward, inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return qk_prepare_backward(*inputs)


_library.impl("qk_prepare", _forward, "CompositeExplicitAutograd")
_library.impl("qk_prepare", _autograd, "Autograd")
_library.impl("qk_prepare_backward", _backward, "CompositeExplicitAutograd")
_library.impl("qk_prepare_backward", _backward_autograd, "Autograd")


@torch.library.register_fake("tivtok::qk_prepare", lib=_library)
def _(qk, cos, sin, q_weight, k_weight, eps):
    return _empty(qk), _empty(qk)


@torch.library.register_fake("tivtok::qk_prepare_backward", lib=_library)
def _(dq, dk, qk, cos, sin, q_weight, k_weight, eps):
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in _differentiable(qk, q_weight, k_weight)]


def _differentiable(qk: Tensor, q_weight: Tensor | None, k_weight: Tensor | None) -> list[Tensor]:
    return [x for x in (qk, q_weight, k_weight) if x is not None]


def _empty(qk: Tensor) -> Tensor:
    return qk.new_empty((qk.shape[0], *qk.shape[2:]))
