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
from operator import itemgetter, methodcaller
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from tivtok_kernels import backends, derivatives, operators
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Call, Direction, Forward, Problem
from tivtok_kernels.ranges import RangeLayout
from tivtok_kernels.tensors import accumulation_dtype

_TAGS = (torch.Tag.cudagraph_unsafe,)

Layout = SifLayout | RangeLayout

# q, k, v, and k_tiv and v_tiv or None twice; packed.
Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class Options(NamedTuple):
    """The last arguments of both operators."""

    scope: Scope
    scale: float
    backend: str
    deterministic: bool
    batch_invariant: bool = False


class Known:
    """What all calls have in common that have one layout and options, and tensors of the same shapes, strides, dtype
    and device: found out once.

    Raises:
        ValueError: the packed tensors do not have as many rows as the layout.
    """

    __slots__ = ("again", "is_empty", "options", "problems")

    def __init__(self, tensors: Tensors, layout: Layout, options: Options) -> None:
        _check_rows(tensors, layout.ranges(options.scope))
        q = tensors[0]
        self.options = options
        self.is_empty = q.numel() == 0
        self.problems: dict[Direction, Problem] = {
            direction: Problem(
                q.device, q.dtype, q.shape[-1], options.deterministic, direction, options.batch_invariant
            )
            for direction in ("forward", "backward")
        }
        self.again: tuple[str, Forward] | None = None  # the backend that ran it, and its `repeatable` forward

    def call(self, tensors: Tensors, layout: Layout, wants_lse: bool = True) -> Call:
        q, k, v, k_tiv, v_tiv = tensors
        tiv = None if k_tiv is None or v_tiv is None else (k_tiv, v_tiv)
        scope, scale, *_, batch_invariant = self.options
        return Call(q, k, v, tiv, layout, scope, scale, wants_lse, batch_invariant)


def attend(tensors: Tensors, layout: Layout | Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Call the operator or, for derivatives that no operator has, the reference backend itself, which is plain torch.

    Args:
        tensors: q, k, v, and k_tiv and v_tiv or None twice.
        layout: or its ``encoded`` tensor.

    Raises:
        ValueError: the packed tensors do not have as many rows as the layout.
        NotImplementedError: now or when it is differentiated: a derivative that the backend cannot give.
    """
    encoded = layout if isinstance(layout, Tensor) else layout.encoded
    inputs: tuple[Any, ...] = (*tensors, encoded, *options)
    if not torch.compiler.is_compiling():
        if not derivatives.transforms_active() and not operators.are_watched(tensors):
            layout = decode(layout, options.scope)
            return attend_plainly(tensors, layout, Known(tensors, layout, options))
        if operators.num_dispatch_modes() and "torch.utils.flop_counter" in sys.modules:
            import_module("tivtok_kernels.flops").tell_counters()
        if derivatives.transforms_active():
            if options.backend == "reference":
                return _forward(*inputs)
            if torch._C._are_functorch_transforms_active():
                return _Transformable.apply(*inputs)
    return sif_attention(*inputs)


def attend_plainly(tensors: Tensors, layout: Layout, known: Known, wants_lse: bool = True) -> tuple[Tensor, Tensor]:
    """`attend` past torch's dispatcher, where nobody can tell: nothing watches operators or transforms derivatives.

    Args:
        wants_lse: whether the LSE is read; if not, it may be anything unless gradients are wanted.
    """
    if derivatives.need_grad(tensors):
        return _PlainAttention.apply((layout, known), *(tensors if tensors[3] is not None else tensors[:3]))
    return _run_forward(tensors, layout, known, wants_lse)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, k_tiv: Tensor | None, v_tiv: Tensor | None, encoded: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    tensors, layout = (q, k, v, k_tiv, v_tiv), decode(encoded, options[0])
    return _run_forward(tensors, layout, Known(tensors, layout, Options(*options)), True)


def _run_forward(tensors: Tensors, layout: Layout, known: Known, wants_lse: bool) -> tuple[Tensor, Tensor]:
    question: tuple[backends.Operation, str, Problem] = "attention", known.options.backend, known.problems["forward"]
    if known.again is not None and backends.choose(*question) == known.again[0]:
        return known.again[1](*tensors, wants_lse)
    if known.is_empty:
        return _empty_results(tensors[0])
    call = known.call(tensors, layout, wants_lse)

    def forward(module: ModuleType) -> tuple[Tensor, Tensor]:
        if not hasattr(module, "repeatable"):
            return module.forward(call)
        run = module.repeatable(call)
        known.again = backends.choose(*question), run
        return run(*tensors, wants_lse)

    return backends.run(*question, forward)


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
    tensors, layout = (q, k, v, k_tiv, v_tiv), decode(encoded, options[0])
    return _run_backward(dout, dlse, tensors, out, lse, layout, Known(tensors, layout, Options(*options)))


def _run_backward(
    dout: Tensor, dlse: Tensor | None, tensors: Tensors, out: Tensor, lse: Tensor, layout: Layout, known: Known
) -> list[Tensor]:
    if known.is_empty:
        return operators.zero_gradients(*tensors)
    out, lse = out.contiguous(), lse.contiguous()  # hooks on saved tensors may have replaced them
    run = methodcaller("backward", known.call(tensors, layout), out, lse, dout, dlse)
    return backends.run("attention", known.options.backend, known.problems["backward"], run)


def plan(tensors: Tensors, layout: Layout, options: Options, directions: Sequence[Direction]) -> None:
    """What `attend` of such tensors would plan; their elements are not read.

    Raises:
        BackendUnavailable: the named backend cannot run this, with the reason.
    """
    known = Known(tensors, layout, options)
    for direction in directions:
        if not known.is_empty:
            chosen = backends.choose("attention", options.backend, known.problems[direction])
            backends.load(chosen).plan_call(known.call(tensors, layout), direction)


def decode(layout: Layout | Tensor, scope: Scope) -> Layout:
    """The layout itself, or the one whose ``encoded`` tensor this is."""
    if not isinstance(layout, Tensor):
        return layout
    decode = RangeLayout.from_tensor if scope == "ranges" else SifLayout.from_tensor
    if torch._C._are_functorch_transforms_active():
        with torch._C._DisableFuncTorch():  # under which no numbers can be read from a tensor, not even from this one
            return decode(layout)
    return decode(layout)


def _check_rows(tensors: Tensors, ranges: RangeLayout) -> None:
    q, k, _, k_tiv, _ = tensors
    if q.shape[0] != ranges.q_rows:
        raise ValueError(f"q must have the layout's {ranges.q_rows} rows, got {q.shape[0]}")
    if k.shape[0] != ranges.k_rows:
        raise ValueError(f"k and v must have the layout's {ranges.k_rows} rows, got {k.shape[0]}")
    if k_tiv is not None and k_tiv.shape[0] != ranges.a_rows:
        raise ValueError(f"k_tiv and v_tiv must have the layout's {ranges.a_rows} TIV rows, got {k_tiv.shape[0]}")


def _empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:2], dtype=accumulation_dtype(q.dtype))


def _fake_forward(q, k, v, k_tiv, v_tiv, *options):
    return _empty_results(q)


def _fake_backward(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, *options):
    return operators.empty_gradients(q, k, v, k_tiv, v_tiv)


# q (N, H, D), k and v (M, Hk, D) -> out (N, H, D) and LSE (N, H). With scope "broadcast" q, k and v hold frame rows
# alone and k_tiv and v_tiv the TIV rows; with the others they are None.
sif_attention = operators.define(
    "sif_attention(Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, Tensor encoded, "
    "str scope, float scale, str backend, bool deterministic, bool batch_invariant) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _TAGS,
)

# -> the gradients of q, k and v and, where they are given, of k_tiv and v_tiv.
sif_attention_backward = operators.define(
    "sif_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor? k_tiv, Tensor? v_tiv, "
    "Tensor out, Tensor lse, Tensor encoded, "
    "str scope, float scale, str backend, bool deterministic, bool batch_invariant) -> Tensor[]",
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


class _PlainAttention(torch.autograd.Function):
    """The derivative of `attend_plainly`. Takes no None: torch goes over all arguments several times."""

    @staticmethod
    def forward(
        ctx: Any, kind: tuple[Layout, Known], q: Tensor, k: Tensor, v: Tensor, *tiv: Tensor
    ) -> tuple[Tensor, Tensor]:
        output = _run_forward(_with_tiv(q, k, v, *tiv), *kind, True)
        ctx.save_for_backward(*output, q, k, v, *tiv)
        ctx.kind = kind
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        out, lse, *saved = ctx.saved_tensors
        layout, known = ctx.kind
        if dout is None and dlse is None:
            return (None,) * (1 + len(saved))
        dout = torch.zeros_like(out) if dout is None else dout
        tensors = _with_tiv(*saved)
        # create_graph=True is the operator's to refuse
        if torch.is_grad_enabled() or derivatives.transforms_active() or operators.are_watched((dout, dlse, *tensors)):
            return None, *_gradients(dout, dlse, *tensors, out, lse, layout.encoded, *known.options)
        return None, *_run_backward(dout, dlse, tensors, out, lse, layout, known)


def _with_tiv(q: Tensor, k: Tensor, v: Tensor, k_tiv: Tensor | None = None, v_tiv: Tensor | None = None) -> Tensors:
    return q, k, v, k_tiv, v_tiv


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output, inputs[5])
    ctx.options = Options(*inputs[6:])
    ctx.set_materialize_grads(False)


class _SifAttention(torch.autograd.Function):
    """The derivative of the operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = operators.below_autograd(sif_attention, *inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, k_tiv, v_tiv, out, lse, encoded = ctx.saved_tensors
        grads: list[Tensor | None] = []
        if dout is not None or dlse is not None:
            dout = torch.zeros_like(out) if dout is None else dout
            grads += _gradients(dout, dlse, q, k, v, k_tiv, v_tiv, out, lse, encoded, *ctx.options)
        return (*grads, *(None,) * (11 - len(grads)))


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
        tensors = cast(Tensors, tuple(_flat(info, in_dims[:5], inputs[:5])))
        results = attend(tensors, _repeat(info, *inputs[5:7]), Options(*inputs[6:]))
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in results), (0, 0)


def _gradients(*inputs: Any) -> list[Tensor]:
    if torch._C._are_functorch_transforms_active():
        return _gradients_once(*inputs)
    if torch.is_grad_enabled():  # create_graph=True: the operator's own derivative refuses
        return sif_attention_backward(*inputs)
    return operators.below_autograd(sif_attention_backward, *inputs)


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
