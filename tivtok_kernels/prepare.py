"""From a fused projection to the queries, keys and values of attention: split, then normalise and rotate on demand."""

from __future__ import annotations

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, eager, ops_prepare
from tivtok_kernels.caching import constant_when_compiled
from tivtok_kernels.problem import Problem
from tivtok_kernels.tensors import check_dtype


def prepare_qk(
    qkv: Tensor,
    heads: int,
    rotary: tuple[Tensor, Tensor] | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
    *,
    eps: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv into heads; normalise (RMS) and then rotate those of q and k. Accumulates in float32 or better.

    Args:
        qkv: (..., rows, 3 * H * D), contiguous last dimension: what a linear layer makes of (..., rows, width). Any
            of float16, bfloat16, float32, float64.
        heads: H.
        rotary: cos and sin, each (rows, D / 2); the halves of a head form the pairs. Rows that are not to be rotated
            have cos 1 and sin 0. They are constants: they get no gradient, and must not require one.
        norm: the weights (D,) of q and of k, in any floating dtype.
        eps: of the norm; by default the machine epsilon of qkv's dtype, as in torch.nn.RMSNorm.
        backend: "eager" (plain torch), "triton" (one kernel for all of it), or "auto": triton on GPUs it supports, and
            eager, after a warning, should its kernels not compile.

    Returns:
        q, k, v, each (..., rows, H, D) in the dtype of qkv. v is a view of qkv, never copied. q and k of the kernel are
        two contiguous tensors rather than one: the gradients that attention hands back then are what its backward
        reads, without a copy to join them.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
        BackendUnavailable: the named backend cannot run here, with the reason.
        NotImplementedError: now or in its backward, a derivative of "triton" other than the first in reverse mode;
            "eager" has all.
    """
    _check(qkv, heads, rotary, norm, backend)
    *leading, rows, _ = qkv.shape
    qk, v = qkv.unflatten(-1, (3, heads, -1)).split((2, 1), dim=-3)  # one split: its gradient is one concatenation
    v = v.squeeze(-3)
    eps = torch.finfo(qkv.dtype).eps if eps is None else eps
    if _choose(backend, qkv.device, qkv.dtype, v.shape[-1]) == "eager":
        return *eager.prepare(qk, rotary, norm, eps), v
    if rotary is None and norm is None:
        return *qk.unbind(-3), v
    cos, sin = (None, None) if rotary is None else (table.detach() for table in rotary)
    packed = qk.reshape(-1, *qk.shape[-3:])
    q, k = ops_prepare.prepare_qk(packed, cos, sin, *((None, None) if norm is None else norm), eps, backend)
    return q.view(*leading, rows, *q.shape[1:]), k.view(*leading, rows, *k.shape[1:]), v


@constant_when_compiled
def _choose(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    return backends.choose("prepare_qk", backend, Problem(device, dtype, head_dim))


def _check(
    qkv: Tensor,
    heads: int,
    rotary: tuple[Tensor, Tensor] | None,
    norm: tuple[Tensor, Tensor] | None,
    backend: str,
) -> None:
    backends.check_name("prepare_qk", backend)
    if not isinstance(qkv, Tensor):
        raise TypeError(f"qkv must be a torch.Tensor, got {type(qkv).__name__}")
    check_dtype("qkv", qkv)
    if qkv.ndim < 2:
        raise ValueError(f"qkv must have at least 2 dimensions (rows, 3 * H * D), got shape {tuple(qkv.shape)}")
    if qkv.stride(-1) != 1 and qkv.shape[-1] > 1:
        raise ValueError(f"qkv must have a contiguous last dimension, got strides {qkv.stride()}")
    if heads < 1 or qkv.shape[-1] == 0 or qkv.shape[-1] % (3 * heads):
        raise ValueError(
            f"the last dimension of qkv must be 3 * heads * head_dim, got {qkv.shape[-1]} and heads={heads}"
        )
    head_dim = qkv.shape[-1] // (3 * heads)
    if rotary is not None and head_dim % 2:
        raise ValueError(f"rotary needs an even head_dim, got {head_dim}")
    if rotary is not None and derivatives.need_grad(rotary):
        raise ValueError("rotary tables are constants and get no gradient, but one of them requires grad")
    tables = () if rotary is None else zip(("cos", "sin"), rotary, strict=True)
    weights = () if norm is None else zip(("q", "k"), norm, strict=True)
    for name, x, shape in [
        *((f"rotary {name}", x, (qkv.shape[-2], head_dim // 2)) for name, x in tables),
        *((f"norm weight of {name}", x, (head_dim,)) for name, x in weights),
    ]:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name} must be a floating torch.Tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
        if x.device != qkv.device:
            raise ValueError(f"{name} must be on the device of qkv, {qkv.device}, got {x.device}")
