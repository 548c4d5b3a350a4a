"""The operators of attention. Which backend runs is decided at the call, by `backends`.

The layout crosses the operator boundary as its ``encoded`` tensor, so that torch.compile traces one program for all
lengths; the checks that need the numbers inside therefore live here, at run time.

A CUDA graph would replay the work list of the layout that it was captured with. torch.compile(mode="reduce-overhead")
therefore has to leave these operators out of its graphs, which their tag says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, operators
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Call, Direction, Problem
from tivtok_kernels.ranges import RangeLayout
from tivtok_kernels.tensors import accumulation_dtype

_TAGS = (torch.Tag.cudagraph_unsafe,)


class Options(NamedTuple):
    """The last arguments of both operators."""

    scope: Scope
    scale: float
    backend: str
    deterministic: bool


def attend(tensors: Sequence[Tensor | None], encoded: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Call the operator or, for derivatives that no operator has, the reference backend itself, which is plain torch.

    Args:
        tensors: q, k, v, and k_tiv and v_tiv or None twice.

    Raises:
        ValueError: the packed tensors do not have as many rows as the layout.
        NotImplementedError: now or when it is differentiated: a derivative that the backend cannot give.
    """
    inputs: tuple[Any, ...] = (*tensors, encoded, *options)
    if not torch.compiler.is_compiling():
        if not derivatives.transforms_active() and not operators.are_watched(tensors):
            if derivatives.need_grad(tensors):
                return _SifAttention.apply(*inputs)
            return operators.below_autograd(_forward, *inputs)
        if operators.num_dispatch_modes() and "torch.utils.flop_counter" in sys.modules:
            import_module("tivtok_kernels.flops").tell_counters()
        if derivatives.transforms_active():
            if options.backend == "reference":
                return _forward(*inputs)
            if torch._C._are_functorch_transforms_active():
                return _Transformable.apply(*inputs)
    return sif_attention(*inputs)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, k_tiv: Tensor | None, v_tiv: Tensor | None, encoded: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    call, problem, backend = _describe(q, k, v, k_tiv, v_tiv, encoded, Options(*options), "forward")
    check_rows(call)
    if q.numel() == 0:
        return _empty_results(q)
    return backends.run("attention", backend, problem, lambda module: module.forward(call))


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
    encoded: Tensor,
    *options: Any,
) -> list[Tensor]:
    if q.numel() == 0:
        return operators.zero_gradients(q, k, v, k_tiv, v_tiv)
    call, problem, backend = _describe(q, k, v, k_tiv, v_tiv, encoded, Options(*options), "backward")
    out, lse = out.contiguous(), lse.contiguous()  # hooks on saved tensors may have replaced them
    return backends.run("attention", backend, problem, lambda module: module.backward(call, out, lse, dout, dlse))


def _describe(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tiv: Tensor | None,
    v_tiv: Tensor | None,
    encoded: Tensor,
    options: Options,
    direction: Direction,
) -> tuple[Call, Problem, str]:
    tiv = None if k_tiv is None or v_tiv is None else (k_tiv, v_tiv)
    call = Call(q, k, v, tiv, decode(encoded, options.scope), options.scope, options.scale)
    return call, Problem(q.device, q.dtype, q.shape[-1], options.deterministic, direction), options.backend


def plan(tensors: Sequence[Tensor | None], encoded: Tensor, options: Options, directions: Sequence[Direction]) -> None:
    """What `attend` of such tensors would plan; their elements are not read.

    Raises:
        BackendUnavailable: the named backend cannot run this, with the reason.
    """
    q, k, v, k_tiv, v_tiv = tensors
    assert q is not None and k is not None and v is not None
    for direction in directions:
        call, problem, backend = _describe(q, k, v, k_tiv, v_tiv, encoded, options, direction)
        if q.numel():
            backends.load(backends.choose("attention", backend, problem)).plan_call(call, direction)


def decode(encoded: Tensor, scope: Scope) -> SifLayout | RangeLayout:
    decode = RangeLayout.from_tensor if scope == "ranges" else SifLayout.from_tensor
    if torch._C._are_functorch_transforms_active():
        with torch._C._DisableFuncTorch():  # under which no numbers can be read from a tensor, not even from this one
            return decode(encoded)
    return decode(encoded)


def check_rows(call: Call) -> None:
    """Check that the packed tensors have as many rows as the layout.

    Raises:
        ValueError: one of them does not.
    """
    ranges = call.ranges
    if call.q.shape[0] != ranges.q_rows:
        raise ValueError(f"q must have the layout's {ranges.q_rows} rows, got {call.q.shape[0]}")
    if call.k.shape[0] != ranges.k_rows:
        raise ValueError(f"k and v must have the layout's {ranges.k_rows} rows, got {call.k.shape[0]}")
    if call.tiv is not None and call.tiv[0].shape[0] != ranges.a_rows:
        raise ValueError(f"k_tiv and v_tiv must have the layout's {ranges.a_rows} TIV rows, got {call.tiv[0].shape[0]}")


def _empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:2], dtype=accumulation_dtype(q.dtype))


def _fake_forward(q, k, v, k_tiv, v_tiv, encoded, scope, scale, backend, deterministic):
    return _empty_results(q)


def _fake_backward(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, encoded, scope, scale, backend, deterministic):
    return operators.empty_gradients(q, k, v, k_tiv, v_tiv)


# q (N, H, D), k and v (M, Hk, D) -> out (N, H, D) and LSE (N, H). With scope "broadcast" q, k and v hold frame rows
# alone and k_tiv and v_tiv the TIV rows; with the others they are None.
sif_attention = operators.define(
    "sif_attention(Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, Tensor encoded, "
    "str scope, float scale, str backend, bool deterministic) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _TAGS,
)

# -> the gradients of q, k and v and, where they are given, of k_tiv and v_tiv.
sif_attention_backward = operators.define(
    "sif_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, "
    "Tensor out, Tensor lse, Tensor encoded, "
    "str scope, float scale, str backend, bool deterministic) -> Tensor[]",
    _backward,
    _fake_backward,
    _TAGS,
)


def _uniform(batch: int, num_tiv: int, num_frames: int, frame_tokens: int) -> Tensor:
    return SifLayout.uniform(batch, num_tiv, num_frames, frame_tokens).lengths


def _fake_uniform(batch, num_tiv, num_frames, frame_tokens):
    return torch.empty(batch * (2 + num_frames), dtype=torch.int64, device="cpu")


# `SifLayout.uniform` as its ``encoded`` tensor, for torch.compile: one program for all sizes.
uniform_layout = operators.define(
    "uniform_layout(SymInt batch, SymInt num_tiv, SymInt num_frames, SymInt frame_tokens) -> Tensor",
    _uniform,
    _fake_uniform,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output, inputs[5])
    ctx.options = Options(*inputs[6:])
    ctx.set_materialize_grads(False)


class _SifAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = operators.run(sif_attention, _forward, inputs, 5)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, k_tiv, v_tiv, out, lse, encoded = ctx.saved_tensors
        grads: list[Tensor | None] = []
        if dout is not None or dlse is not None:
            dout = torch.zeros_like(out) if dout is None else dout
            grads += _gradients(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, encoded, *ctx.options)
        return (*grads, *(None,) * (10 - len(grads)))


class _Transformable(torch.autograd.Function):
    """`_SifAttention` as torch.func wants it: a forward without ctx, for which torch takes 100 us more per call."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return operators.below_autograd(sif_attention, *inputs)

    setup_context = staticmethod(_keep)
    backward = staticmethod(_SifAttention.backward)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise derivatives.no_forward_mode("attention", ctx.options.backend, "reference")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """B samples are B times the clips, in one call."""
        results = attend(_flat(info, in_dims[:5], inputs[:5]), _repeat(info, *inputs[5:7]), Options(*inputs[6:]))
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in results), (0, 0)


def _gradients(*inputs: Any) -> list[Tensor]:
    if torch._C._are_functorch_transforms_active():
        return _gradients_once(*inputs)
    if torch.is_grad_enabled():  # create_graph=True: the operator's own derivative refuses
        return sif_attention_backward(*inputs)
    return operators.run(sif_attention_backward, _backward, inputs, 9)


def _gradients_once(*inputs: Any) -> list[Tensor]:
    backend = inputs[12]
    if backend == "reference":  # plain torch, which can be differentiated again
        return _backward(*inputs)
    names = ("attention", backend, "reference")
    return derivatives.differentiable_once(*names, sif_attention_backward, inputs, _vmap_gradients)


def _vmap_gradients(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    grads = _gradients(*_flat(info, in_dims[:9], inputs[:9]), _repeat(info, *inputs[9:11]), *inputs[10:])
    return tuple(x.unflatten(0, (info.batch_size, -1)) for x in grads), (0,) * len(grads)


def _flat(info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """(rows, ...) of every sample, packed sample after sample."""
    return [
        x if x is None else _batch_first(info, dim, x).flatten(0, 1) for dim, x in zip(in_dims, tensors, strict=True)
    ]


def _batch_first(info: Any, dim: int | None, x: Tensor) -> Tensor:
    return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


def _repeat(info: Any, encoded: Tensor, scope: Scope) -> Tensor:
    return decode(encoded, scope).repeat(info.batch_size).encoded


operators.set_derivative(
    sif_attention, _SifAttention.apply, tensors=5, function="attention", backend=itemgetter(8), better="reference"
)
operators.set_derivative(
    sif_attention_backward,
    _gradients_once,
    tensors=9,
    function="attention",
    backend=itemgetter(12),
    better="reference",
)
