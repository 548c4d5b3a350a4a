"""The torch.library operators: schema, fake kernel, autograd. Implementations are found at the call, in `backends`.

The layout crosses the operator boundary as its ``lengths`` tensor, so that torch.compile traces one program for all
lengths; the checks that need the numbers inside therefore live here, at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tivtok_kernels import backends
from tivtok_kernels.layout import SifLayout
from tivtok_kernels.problem import Problem
from tivtok_kernels.reference import accumulation_dtype


@torch.library.custom_op("tivtok::sif_attention", mutates_args=())
def sif_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tiv: Tensor | None,
    v_tiv: Tensor | None,
    lengths: Tensor,
    scope: str,
    scale: float,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Packed attention of every scope. q (N, H, D), k and v (M, Hk, D) -> out (N, H, D), LSE (N, H).

    ``k_tiv`` and ``v_tiv`` come with scope "broadcast" only; q, k, v then hold frame rows alone.
    """
    layout = SifLayout.from_tensor(lengths)
    check_rows(layout, q, k, k_tiv)
    if q.numel() == 0:
        return torch.empty_like(q, memory_format=torch.contiguous_format), _empty_lse(q)
    module = backends.select(backend, _problem(q, deterministic))
    return module.forward(q, k, v, _tiv(k_tiv, v_tiv), layout, scope, scale)


@torch.library.custom_op("tivtok::sif_attention_backward", mutates_args=())
def sif_attention_backward(
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
    scope: str,
    scale: float,
    backend: str,
    deterministic: bool,
) -> list[Tensor]:
    """Gradients of q, k, v and, where they are given, of k_tiv and v_tiv."""
    layout = SifLayout.from_tensor(lengths)
    tiv = _tiv(k_tiv, v_tiv)
    if q.numel() == 0:
        return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, *(tiv or ()))]
    module = backends.select(backend, _problem(q, deterministic))
    return module.backward(dout, dlse, q, k, v, tiv, out, lse, layout, scope, scale)


@sif_attention.register_fake
def _(q, k, v, k_tiv, v_tiv, lengths, scope, scale, backend, deterministic):
    return torch.empty_like(q, memory_format=torch.contiguous_format), _empty_lse(q)


@sif_attention_backward.register_fake
def _(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, lengths, scope, scale, backend, deterministic):
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, k_tiv, v_tiv) if x is not None
    ]


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, k_tiv, v_tiv, lengths, scope, scale, backend, deterministic = inputs
    ctx.save_for_backward(q, k, v, k_tiv, v_tiv, *output, lengths)
    ctx.options = scope, scale, backend, deterministic
    ctx.set_materialize_grads(False)


def _backward(ctx, dout: Tensor | None, dlse: Tensor | None):
    q, k, v, k_tiv, v_tiv, out, lse, lengths = ctx.saved_tensors
    not_differentiable = (None,) * 5  # lengths, scope, scale, backend, deterministic
    if dout is None and dlse is None:
        return (None,) * 5 + not_differentiable
    dout = torch.zeros_like(out) if dout is None else dout
    grads = sif_attention_backward(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, lengths, *ctx.options)
    return (*grads, *(None,) * (5 - len(grads)), *not_differentiable)


sif_attention.register_autograd(_backward, setup_context=_setup_context)


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


def _problem(q: Tensor, deterministic: bool) -> Problem:
    return Problem(q.device, q.dtype, q.shape[-1], deterministic)


def _tiv(k_tiv: Tensor | None, v_tiv: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if k_tiv is None or v_tiv is None else (k_tiv, v_tiv)


def _empty_lse(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[:2], dtype=accumulation_dtype(q.dtype))
