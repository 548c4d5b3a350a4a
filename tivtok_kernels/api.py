"""The public functions: shapes and validation, then one operator that dispatches."""

from __future__ import annotations

import math
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, operators, ops, parallel
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Direction, Problem
from tivtok_kernels.ranges import RangeLayout
from tivtok_kernels.tensors import check_dtype, is_autocast_on

# Kinds of calls that a layout remembers.
_MOST_CALLS = 64


@overload
def sif_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SifLayout,
    *,
    tiv_scope: Scope = "clip",
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[False] = False,
    deterministic: bool = False,
    batch_invariant: bool = False,
    group: parallel.Group | None = None,
) -> Tensor: ...
@overload
def sif_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SifLayout,
    *,
    tiv_scope: Scope = "clip",
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[True],
    deterministic: bool = False,
    batch_invariant: bool = False,
    group: parallel.Group | None = None,
) -> tuple[Tensor, Tensor]: ...
def sif_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SifLayout,
    *,
    tiv_scope: Scope = "clip",
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    deterministic: bool = False,
    batch_invariant: bool = False,
    group: parallel.Group | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scope-induced attention (TivTok Eq. 3-4): frame rows see their clip's TIV tokens and their own frame.

    Args:
        q: (N, H, D), packed clip after clip as [TIV | frame 1 | ... | frame T], or (B, N / B, H, D) for a uniform
            layout of B clips. Any strides with a contiguous last dimension; float16, bfloat16, float32 or float64.
        k: (N, Hk, D) or (B, N / B, Hk, D), H a multiple of Hk.
        v: as k.
        layout: the lengths of all clips. Other masks of two ranges: `range_attention`.
        tiv_scope: "clip": TIV rows see their whole clip (encoder). "tiv": they see the TIV rows only (decoder).
        scale: multiplies the scores; 1 / sqrt(D) by default.
        backend: "auto" or one of `available_backends`. A named backend runs or raises.
        return_lse: also return the log-sum-exp of each row's scaled scores. Differentiable.
        deterministic: only backends whose gradients repeat bit for bit; torch.use_deterministic_algorithms(True) asks
            for the same.
        batch_invariant: results and gradients of a clip are the same bit for bit, whatever else is in the batch; only
            backends that promise it (docs/numerics.md).
        group: processes (a group, or a mesh of one dimension) over which the frames of clips that are larger than one
            device are spread. Each passes the same clips with all their TIV rows and with the frames that it has, and
            gets its rows of the result. Gradients are shares: the sum over the processes is that of one process.
            torch.compile breaks its graph at such a call, so it cannot be within fullgraph=True.

    Returns:
        out with the shape and dtype of q, and with ``return_lse`` the natural-log LSE of shape q.shape[:-1], float32
        (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type, or q, k, v are not of one supported dtype.
        ValueError: shapes, strides, devices or options do not fit; the message names the argument.
        BackendUnavailable: the named backend cannot run here, with the reason.
        RuntimeError: in its backward, when ``group`` has been destroyed meanwhile.
        NotImplementedError: now or in its backward, for a derivative that the backend cannot give. All give first
            derivatives in reverse mode (torch.autograd, torch.func.grad, vjp and jacrev); "reference" also forward
            mode and higher ones.

    torch.func.vmap packs its samples as so many times the clips, in one call. Under torch.autocast, q, k and v are cast
    as `torch.nn.functional.scaled_dot_product_attention` casts them.
    """
    signature = (
        None if group is not None else _signature((q, k, v), tiv_scope, scale, backend, deterministic, batch_invariant)
    )
    if (known := _known(layout, SifLayout, signature)) is not None:
        return _attend_again((q, k, v, None, None), layout, known, return_lse)
    _check_options(layout, SifLayout, backend, scale)
    if tiv_scope not in ("clip", "tiv"):
        raise ValueError(f'tiv_scope must be "clip" or "tiv", got {tiv_scope!r}')
    q, k, v = _check_tensors(q=q, k=k, v=v)
    if q.ndim not in (3, 4):
        raise ValueError(f"q must be (N, H, D), or (B, N / B, H, D) for a uniform layout, got shape {tuple(q.shape)}")
    _check_shapes(q, k, v)
    if not torch.compiler.is_compiling():  # reading the layout's numbers there would compile one program for each
        _check_batch(layout, q)
    options = _options(tiv_scope, scale, q, backend, deterministic, batch_invariant)
    if group is not None and tiv_scope == "clip":  # with scope "tiv" each process has the keys that its rows see
        packed = _packed((q, k, v, None, None))[:3]
        return _shaped(q, *parallel.attend(*packed, layout, options, group), return_lse)
    return _attend((q, k, v, None, None), layout, options, signature, return_lse)


@overload
def range_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: RangeLayout,
    *,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[False] = False,
    deterministic: bool = False,
    batch_invariant: bool = False,
) -> Tensor: ...
@overload
def range_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: RangeLayout,
    *,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[True],
    deterministic: bool = False,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]: ...
def range_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: RangeLayout,
    *,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    deterministic: bool = False,
    batch_invariant: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention under any mask of two key ranges per run of query rows.

    Args:
        q: (N, H, D). Dtypes and strides as in `sif_attention`.
        k: (M, Hk, D), H a multiple of Hk; M need not be N.
        v: as k.
        layout: which rows see which keys.
        scale: as in `sif_attention`, like the other options.
        backend: likewise.
        return_lse: likewise.
        deterministic: likewise.
        batch_invariant: likewise.

    Returns:
        out (N, H, D) in the dtype of q, and with ``return_lse`` the LSE (N, H).

    Raises:
        TypeError, ValueError, BackendUnavailable, NotImplementedError: as `sif_attention`.
    """
    signature = _signature((q, k, v), "ranges", scale, backend, deterministic, batch_invariant)
    if (known := _known(layout, RangeLayout, signature)) is not None:
        return _attend_again((q, k, v, None, None), layout, known, return_lse)
    _check_options(layout, RangeLayout, backend, scale)
    q, k, v = _check_tensors(q=q, k=k, v=v)
    if q.ndim != 3 or k.ndim != 3:
        raise ValueError(f"q must be (N, H, D) and k (M, Hk, D), got shapes {tuple(q.shape)} and {tuple(k.shape)}")
    if layout.a_rows is not None:
        raise ValueError("layout must count both ranges in the rows of k, but range A is of another tensor")
    _check_shapes(q, k, v, same_rows=False)
    options = _options("ranges", scale, q, backend, deterministic, batch_invariant)
    return _attend((q, k, v, None, None), layout, options, signature, return_lse)


@overload
def broadcast_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tiv: Tensor,
    v_tiv: Tensor,
    *,
    layout: SifLayout | None = None,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[False] = False,
    deterministic: bool = False,
    batch_invariant: bool = False,
) -> Tensor: ...
@overload
def broadcast_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tiv: Tensor,
    v_tiv: Tensor,
    *,
    layout: SifLayout | None = None,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[True],
    deterministic: bool = False,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]: ...
def broadcast_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tiv: Tensor,
    v_tiv: Tensor,
    *,
    layout: SifLayout | None = None,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    deterministic: bool = False,
    batch_invariant: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Decoding with broadcast TIV tokens (TivTok Eq. 5): each frame's rows see the clip's TIV keys and their own frame.

    The TIV keys and values are read where they lie, never copied per frame.

    Args:
        q: (B, T, L, H, D), or with ``layout`` packed: (sum of frame lengths, H, D). Dtypes and strides as in
            `sif_attention`.
        k: (B, T, L, Hk, D), or packed (sum of frame lengths, Hk, D).
        v: as k.
        k_tiv: (B, M, Hk, D), or packed (sum of num_tiv, Hk, D).
        v_tiv: as k_tiv.
        layout: the lengths of ragged clips.
        scale: as in `sif_attention`, like the other options.
        backend: likewise.
        return_lse: likewise.
        deterministic: likewise.
        batch_invariant: likewise.

    Returns:
        out with the shape and dtype of q, and with ``return_lse`` the LSE of shape q.shape[:-1].

    Raises:
        TypeError, ValueError, BackendUnavailable, NotImplementedError: as `sif_attention`.
    """
    signature = _signature((q, k, v, k_tiv, v_tiv), "broadcast", scale, backend, deterministic, batch_invariant)
    if layout is not None and (known := _known(layout, SifLayout, signature)) is not None and q.ndim == 3:
        return _attend_again((q, k, v, k_tiv, v_tiv), layout, known, return_lse)
    _check_options(layout, type(None) if layout is None else SifLayout, backend, scale)
    q, k, v, k_tiv, v_tiv = _check_tensors(q=q, k=k, v=v, k_tiv=k_tiv, v_tiv=v_tiv)
    _check_shapes(q, k, v)
    if layout is not None:
        if q.ndim != 3 or k_tiv.ndim != 3:
            raise ValueError(
                "with a layout, q must be packed as (frame tokens, H, D) and k_tiv as (TIV tokens, Hk, D), "
                f"got shapes {tuple(q.shape)} and {tuple(k_tiv.shape)}"
            )
        lengths: SifLayout | Tensor = layout
    else:
        if q.ndim != 5 or k_tiv.ndim != 4 or q.shape[0] != k_tiv.shape[0]:
            raise ValueError(
                "without a layout, q must be (B, T, L, H, D) and k_tiv (B, M, Hk, D) with the same B, "
                f"got shapes {tuple(q.shape)} and {tuple(k_tiv.shape)}"
            )
        batch, frames, tokens = q.shape[:3]
        if torch.compiler.is_compiling():
            lengths = ops.uniform_layout(batch, k_tiv.shape[1], frames, tokens)
        else:
            lengths = SifLayout.uniform(batch, k_tiv.shape[1], frames, tokens)
    if k_tiv.shape != v_tiv.shape or k_tiv.shape[-2:] != k.shape[-2:]:
        raise ValueError(
            "k_tiv and v_tiv must have one shape, and the heads and head_dim of k, "
            f"got {tuple(k_tiv.shape)} and {tuple(v_tiv.shape)} for k {tuple(k.shape)}"
        )
    options = _options("broadcast", scale, q, backend, deterministic, batch_invariant)
    return _attend((q, k, v, k_tiv, v_tiv), lengths, options, signature, return_lse)


def plan_attention(
    layout: SifLayout | RangeLayout,
    *,
    heads: int,
    head_dim: int,
    kv_heads: int | None = None,
    tiv_scope: Scope = "clip",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    backward: bool = True,
    deterministic: bool = False,
    batch_invariant: bool = False,
) -> None:
    """Plan calls with a layout before they come, so that the first one does no more than those after it.

    Plans are kept with the layout's lengths, as a first call keeps them: work lists on their device, masks in blocks. A
    data loader can plan the next batch, and a CUDA graph can be captured without a call before. Kernels are still
    compiled at their first call.

    Args:
        layout: of `sif_attention` or `broadcast_attention`, or a `RangeLayout` of `range_attention`.
        heads: H of these calls.
        head_dim: D.
        kv_heads: Hk, by default H.
        tiv_scope: of a `SifLayout`; "broadcast" plans `broadcast_attention`.
        dtype: of q.
        device: of q.
        backend: as in the calls.
        backward: plan the backward, too.
        deterministic: as in the calls.
        batch_invariant: likewise.

    Raises:
        TypeError, ValueError, BackendUnavailable: as the calls.
    """
    _check_options(layout, RangeLayout if isinstance(layout, RangeLayout) else SifLayout, backend, None)
    scope: Scope = "ranges" if isinstance(layout, RangeLayout) else tiv_scope
    mask = layout.ranges(scope)
    unset = torch.empty((), dtype=dtype, device=device)
    q, k, k_tiv = (
        unset.expand(rows, count, head_dim)
        for rows, count in (
            (mask.q_rows, heads),
            (mask.k_rows, kv_heads or heads),
            (mask.a_rows or 0, kv_heads or heads),
        )
    )
    check_dtype("q", q)
    _check_shapes(q, k, k, same_rows=False)
    tensors = (q, k, k, k_tiv, k_tiv) if scope == "broadcast" else (q, k, k, None, None)
    directions: tuple[Direction, ...] = ("forward", "backward") if backward else ("forward",)
    ops.plan(tensors, layout, _options(scope, None, q, backend, deterministic, batch_invariant), directions)


def available_backends(
    device: torch.device | str | None = None, dtype: torch.dtype | None = None, head_dim: int | None = None
) -> dict[str, str]:
    """Backend name -> "ok", or the reason why it cannot run such a call.

    Args:
        device: of the tensors; by default the GPU where there is one, else the CPU.
        dtype: of the tensors; None asks about the backend in general.
        head_dim: likewise.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = Problem(torch.device(device), dtype, head_dim)
    return {name: backends.why_not(name, problem) or "ok" for name in backends.NAMES["attention"]}


def _signature(tensors: tuple[Tensor, ...], *options: object) -> tuple[object, ...] | None:
    """What checks and plans of a call depend on beside the layout; None where every call is checked and passed to the
    operators: in compiled programs, under modes, tracers, transforms and autocast, for tensors of other types."""
    if (
        torch.compiler.is_compiling()
        or operators.are_watched(tensors)
        or derivatives.transforms_active()
        or torch._C._is_any_autocast_enabled()
    ):
        return None
    facts = [*options, torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()]
    try:
        for x in tensors:
            facts += (x.shape, x.stride(), x.dtype, x.device)
    except AttributeError:  # None in the place of a tensor
        return None
    return tuple(facts)


def _known(layout: Any, kind: type[Any], signature: tuple[object, ...] | None) -> ops.Known | None:
    """What is known of a call like one that passed its checks before; None if there was none with this layout."""
    if signature is None or not isinstance(layout, kind):
        return None
    try:
        return layout.calls.get(signature)
    except TypeError:  # an option that cannot be looked up: the checks will name it
        return None


def _attend_again(
    tensors: ops.Tensors, layout: ops.Layout, known: ops.Known, return_lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    if tensors[0].ndim == 3:
        out, lse = ops.attend_plainly(tensors, layout, known, return_lse)
        return (out, lse) if return_lse else out
    return _shaped(tensors[0], *ops.attend_plainly(_packed(tensors), layout, known, return_lse), return_lse)


def _attend(
    tensors: ops.Tensors,
    layout: ops.Layout | Tensor,
    options: ops.Options,
    signature: tuple[object, ...] | None,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """A call that passed its checks; what is found out of it is kept with the layout where it has a signature."""
    packed = _packed(tensors)
    if signature is None or isinstance(layout, Tensor):
        return _shaped(tensors[0], *ops.attend(packed, layout, options), return_lse)
    if (known := layout.calls.get(signature)) is None:
        if len(layout.calls) >= _MOST_CALLS:
            layout.calls.clear()
        known = layout.calls[signature] = ops.Known(packed, layout, options)
    return _shaped(tensors[0], *ops.attend_plainly(packed, layout, known, return_lse), return_lse)


def _packed(tensors: ops.Tensors) -> ops.Tensors:
    """Rows of all clips behind one another."""
    if tensors[0].ndim == 3:
        return tensors
    return cast(ops.Tensors, tuple(x if x is None else x.flatten(0, -3) for x in tensors))


def _shaped(q: Tensor, out: Tensor, lse: Tensor, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Results with the leading dimensions of q."""
    if q.ndim > 3:
        out = out.view(q.shape)
        lse = lse.view(q.shape[:-1]) if return_lse else lse
    return (out, lse) if return_lse else out


def _check_options(layout: object, kind: type, backend: str, scale: float | None) -> None:
    if not isinstance(layout, kind):
        raise TypeError(f"layout must be a {kind.__name__}, got {type(layout).__name__}")
    backends.check_name("attention", backend)
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")


def _check_tensors(**tensors: Tensor) -> list[Tensor]:
    """The tensors, in autocast's dtype where it is on and they are not float64, as `scaled_dot_product_attention`."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    autocast = torch.get_autocast_dtype(first.device.type) if is_autocast_on(first.device.type) else None
    for name, x in tensors.items():
        if autocast is not None and x.dtype in (torch.float32, torch.float16, torch.bfloat16):
            tensors[name] = x = x.to(autocast)
        if name == first_name:
            first = x
            check_dtype(name, x)
        if x.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name} must be on the device of {first_name}, {first.device}, got {x.device}")
        if x.ndim < 3:
            raise ValueError(f"{name} must have at least 3 dimensions (rows, heads, head_dim), got {tuple(x.shape)}")
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(f"{name} must have a contiguous last dimension, got strides {x.stride()}")
    return list(tensors.values())


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, *, same_rows: bool = True) -> None:
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if same_rows and q.shape[:-2] != k.shape[:-2]:
        raise ValueError(f"q and k must have the same rows, got shapes {tuple(q.shape)} and {tuple(k.shape)}")
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"q and k must have the same head_dim > 0, got {q.shape[-1]} and {k.shape[-1]}")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"heads of q must be a multiple of the heads of k, got {q.shape[-2]} and {k.shape[-2]}")


def _check_batch(layout: SifLayout, q: Tensor) -> None:
    if q.ndim == 4 and not (layout.is_uniform and layout.num_clips == q.shape[0]):
        raise ValueError(
            f"q of shape {tuple(q.shape)} needs a uniform layout of {q.shape[0]} clips, "
            f"got {'a uniform' if layout.is_uniform else 'a ragged'} one of {layout.num_clips}"
        )


def _options(
    scope: Scope, scale: float | None, q: Tensor, backend: str, deterministic: bool, batch_invariant: bool
) -> ops.Options:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return ops.Options(scope, scale, backend, deterministic or _must_be_deterministic(), batch_invariant)


def _must_be_deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
