"""The torch.library operators: schema, fake kernel, autograd. Implementations are found at the call, in `backends`.

The layout crosses the operator boundary as its ``lengths`` tensor, so that torch.compile traces one program for all
lengths; the checks that need the numbers inside therefore live here, at run time.

Written against `torch.library.Library` and not with the ``custom_op`` decorator, whose generic wrappers would add to
the host time of every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Call, Problem
from tivtok_kernels.reference import accumulation_dtype

_library = torch.library.Library("tivtok", "DEF")

# q (N, H, D), k and v (M, Hk, D) -> out (N, H, D) and LSE (N, H). With scope "broadcast" q, k and v hold frame rows
# alone and k_tiv and v_tiv the TIV rows; with the others they are None.
_library.define(
    "sif_attention(Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, Tensor lengths, "
    "str scope, float scale, str backend, bool deterministic) -> (Tensor, Tensor)"
)
# -> the gradients of q, k and v and, where they are given, of k_tiv and v_tiv.
_library.define(
    "sif_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, "
    "Tensor out, Tensor lse, Tensor lengths, "
    "str scope, float scale, str backend, bool deterministic) -> Tensor[]"
)
sif_attention = torch.ops.tivtok.sif_attention.default
sif_attention_backward = torch.ops.tivtok.sif_attention_backward.default


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
    module = backends.select(backend, Problem(q.device, q.dtype, q.shape[-1], deterministic))
    return module.forward(call)


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
    tiv = _tiv(k_tiv, v_tiv)
    if q.numel() == 0:
        return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, *(tiv or ()))]
    module = backends.select(backend, Problem(q.device, q.dtype, q.shape[-1], deterministic, "backward"))
    return module.backward(Call(q, k, v, tiv, SifLayout.from_tensor(lengths), scope, scale), out, lse, dout, dlse)


class _SifAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = sif_attention(*inputs)
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
            grads += _backward_autograd(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, lengths, *ctx.options)
        return (*grads, *(None,) * (10 - len(grads)))


def _autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
    if derivatives.transforms_active():
        derivatives.refuse_transforms("attention", inputs[8], "reference", inputs[:5])
    if derivatives.need_grad(inputs[:5]):
        return _SifAttention.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return sif_attention(*inputs)


def _backward_autograd(*inputs: Any) -> list[Tensor]:
    tensors, backend = inputs[:9], inputs[12]
    if derivatives.transforms_active():
        derivatives.refuse_transforms("attention", backend, "reference", tensors)
    if derivatives.need_grad(tensors):
        if backend == "reference":
            return _backward(*inputs)
        return derivatives.differentiable_once("attention", backend, "reference", sif_attention_backward, inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return sif_attention_backward(*inputs)


_library.impl("sif_attention", _forward, "CompositeExplicitAutograd")
_library.impl("sif_attention", _autograd, "Autograd")
_library.impl("sif_attention_backward", _backward, "CompositeExplicitAutograd")
_library.impl("sif_attention_backward", _backward_autograd, "Autograd")


@torch.library.register_fake("tivtok::sif_attention", lib=_library)
def _(q, k, v, k_tiv, v_tiv, lengths, scope, scale, backend, deterministic):
    return _empty_results(q)


@torch.library.register_fake("tivtok::sif_attention_backward", lib=_library)
def _(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, lengths, scope, scale, backend, deterministic):
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, k_tiv, v_tiv) if x is not None
    ]


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
