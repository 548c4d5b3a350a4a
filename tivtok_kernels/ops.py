"""The operators of attention. Which backend runs is decided at the call, by `backends`.

The layout crosses the operator boundary as its ``lengths`` tensor, so that torch.compile traces one program for all
lengths; the checks that need the numbers inside therefore live here, at run time.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, operators
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Call, Problem
from tivtok_kernels.tensors import accumulation_dtype


def attend(call: Call, backend: str, deterministic: bool) -> tuple[Tensor, Tensor]:
    """The operator; for derivatives that no operator has, the reference backend itself, which is plain torch.

    Raises:
        ValueError: the packed tensors have not the rows that the layout counts.
        NotImplementedError: now or when it is differentiated: a derivative that the backend cannot give.
    """
    if backend == "reference" and derivatives.transforms_active():
        return _run(call, backend, deterministic)
    q, k, v, tiv, layout, scope, scale = call
    return sif_attention(q, k, v, *(tiv or (None, None)), layout.lengths, scope, scale, backend, deterministic)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tiv: Tensor | None,
    v_tiv: Tensor | None,
    lengths: Tensor,
    scope: Scope,
    scale: float,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    call = Call(q, k, v, _tiv(k_tiv, v_tiv), SifLayout.from_tensor(lengths), scope, scale)
    return _run(call, backend, deterministic)


def _run(call: Call, backend: str, deterministic: bool) -> tuple[Tensor, Tensor]:
    q = call.q
    check_rows(call.layout, q, call.k, None if call.tiv is None else call.tiv[0])
    if q.numel() == 0:
        return _empty_results(q)
    problem = Problem(q.device, q.dtype, q.shape[-1], deterministic)
    return backends.select("attention", backend, problem).forward(call)


def _backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tiv: Tensor | None,
    v_tiv: Tensor | None,
    out: Tensor,
    lse: Tensor,
    lengths: Tensor,
    scope: Scope,
    scale: float,
    backend: str,
    deterministic: bool,
) -> list[Tensor]:
    if q.numel() == 0:
        return operators.zero_gradients(q, k, v, k_tiv, v_tiv)
    call = Call(q, k, v, _tiv(k_tiv, v_tiv), SifLayout.from_tensor(lengths), scope, scale)
    problem = Problem(q.device, q.dtype, q.shape[-1], deterministic, "backward")
    return backends.select("attention", backend, problem).backward(call, out, lse, dout, dlse)


def _fake_forward(q, k, v, k_tiv, v_tiv, lengths, scope, scale, backend, deterministic):
    return _empty_results(q)


def _fake_backward(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, lengths, scope, scale, backend, deterministic):
    return operators.empty_gradients(q, k, v, k_tiv, v_tiv)


# q (N, H, D), k and v (M, Hk, D) -> out (N, H, D) and LSE (N, H). With scope "broadcast" q, k and v hold frame rows
# alone and k_tiv and v_tiv the TIV rows; with the others they are None.
sif_attention = operators.define(
    "sif_attention(Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, Tensor lengths, "
    "str scope, float scale, str backend, bool deterministic) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
)

# -> the gradients of q, k and v and, where they are given, of k_tiv and v_tiv.
sif_attention_backward = operators.define(
    "sif_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, "
    "Tensor out, Tensor lse, Tensor lengths, "
    "str scope, float scale, str backend, bool deterministic) -> Tensor[]",
    _backward,
    _fake_backward,
)


class _SifAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        out, lse = operators.below_autograd(sif_attention, *inputs)
        ctx.save_for_backward(*inputs[:5], out, lse, inputs[5])
        ctx.options = inputs[6:]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, k_tiv, v_tiv, out, lse, lengths = ctx.saved_tensors
        grads: list[Tensor | None] = []
        if dout is not None or dlse is not None:
            dout = torch.zeros_like(out) if dout is None else dout
            grads += _gradients(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, lengths, *ctx.options)
        return (*grads, *(None,) * (10 - len(grads)))


def _backward_once(*inputs: Any) -> list[Tensor]:
    backend = inputs[12]
    if backend == "reference":  # plain torch, which can be differentiated again
        return _backward(*inputs)
    return derivatives.differentiable_once("attention", backend, "reference", sif_attention_backward, inputs)


_NAMES = {"function": "attention", "better": "reference"}
operators.set_derivative(sif_attention, _SifAttention.apply, tensors=5, backend=itemgetter(8), **_NAMES)
_gradients = operators.set_derivative(
    sif_attention_backward, _backward_once, tensors=9, backend=itemgetter(12), **_NAMES
)


def check_rows(layout: SifLayout, q: Tensor, k: Tensor, k_tiv: Tensor | None) -> None:
    """The packed tensors must have the rows that the layout counts.

    Raises:
        ValueError: one of them does not.
    """
    rows = layout.total_tokens if k_tiv is None else layout.local_tokens
    if q.shape[0] != rows:
        raise ValueError(f"q must have the layout's {rows} rows, got {q.shape[0]}")
    if k.shape[0] != rows:
        raise ValueError(f"k and v must have the layout's {rows} rows, got {k.shape[0]}")
    if k_tiv is not None and k_tiv.shape[0] != layout.tiv_tokens:
        raise ValueError(f"k_tiv and v_tiv must have the layout's {layout.tiv_tokens} TIV rows, got {k_tiv.shape[0]}")


def _tiv(k_tiv: Tensor | None, v_tiv: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if k_tiv is None or v_tiv is None else (k_tiv, v_tiv)


def _empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:2], dtype=accumulation_dtype(q.dtype))
