"""From tensors to launches: cached plans, workspaces, kernel arguments.

A call with a layout seen before does no work per clip or frame and never waits for the device: its work list is there
already, and only shapes are read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Call, Direction
from tivtok_kernels.ranges import RangeLayout
from tivtok_kernels.schedule import WorkList, hold, key_work, query_work
from tivtok_kernels.tensors import STRIDE_UNIT, aligned
from tivtok_kernels.triton import configs
from tivtok_kernels.triton.backward import DELTA_ROWS, delta_kernel, key_gradient_kernel, query_gradient_kernel
from tivtok_kernels.triton.combine import MERGE_ROWS, merge_outputs_kernel, sum_gradients_kernel
from tivtok_kernels.triton.configs import Config, Math, Pass
from tivtok_kernels.triton.forward import forward_kernel
from tivtok_kernels.triton.primitives import LOG2_E

# In elements: kernels take strides as 32-bit numbers, and count the offsets within a block, of up to 256 rows, in such.
MAX_ROW_STRIDE, MAX_HEAD_STRIDE = 1 << 23, 1 << 31

_LAUNCH = {"enable_fp_fusion": True}  # scale and maximum enter exponents as one multiply-add


class Shape(NamedTuple):
    """What kernels are compiled for, besides their tiles."""

    head_dim: int
    group: int  # query heads per key head
    tiv_apart: bool
    math: Math
    negative: bool = False  # the sign of the scale; forward only


class Plan(NamedTuple):
    """One pass over one layout, ready to launch."""

    work: WorkList
    block: int  # rows per tile
    constants: dict[str, object]  # compile-time arguments and launch options of the main kernel
    merge_constants: dict[str, object]  # and of the one that puts split tiles together
    nothing: Tensor  # float32, no elements: the partial results of a plan without split tiles


def constants(kernel: Pass, shape: Shape, config: Config) -> dict[str, object]:
    """The compile-time arguments of the kernel of a pass."""
    values: dict[str, object] = {
        "GROUP": shape.group,
        "D": shape.head_dim,
        "BLOCK_D": configs.padded(shape.head_dim),
        "BLOCK_Q": config.block_q,
        "BLOCK_K": config.block_k,
        "STAGES": config.stages,
        "TIV_APART": shape.tiv_apart,
        "PRECISION": "tf32" if shape.math == "tf32" else "ieee",
    }
    return values | {"SHORT_Q": config.short_q, "NEGATIVE": shape.negative} if kernel == "forward" else values


def merge_constants(shape: Shape, block: int) -> dict[str, object]:
    """The compile-time arguments of both merge kernels."""
    return {"D": shape.head_dim, "BLOCK_D": configs.padded(shape.head_dim), "BLOCK": block, "ROWS": MERGE_ROWS}


def plan_call(call: Call, direction: Direction) -> None:
    if direction == "forward":
        _plan("forward", call, call.q.shape[1])
    else:
        _plan("dq", call, call.q.shape[1])
        _plan("dkdv", call, call.k.shape[1])


def forward(call: Call) -> tuple[Tensor, Tensor]:
    heads, padded = call.q.shape[1], configs.padded(call.q.shape[2])
    plan = _plan("forward", call, heads)
    q, k, v, k_tiv, v_tiv = map(addressable, (call.q, call.k, call.v, *call.tiv_or_own))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    part_out, part_lse = _partials(plan, heads, padded), _partials(plan, heads)
    forward_kernel[(plan.work.num_tiles * heads,)](
        *(q, k, v, k_tiv, v_tiv, out, lse, part_out, part_lse, plan.work.tiles),
        *(call.scale * LOG2_E.value, heads, *_strides(q, k, v, k_tiv, v_tiv)),
        **plan.constants,
    )
    if plan.work.num_merges:
        merge_outputs_kernel[_merge_grid(plan, heads)](
            part_out, part_lse, out, lse, plan.work.merges, heads, **plan.merge_constants
        )
    return out, lse


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    dout, q, k, v, k_tiv, v_tiv = map(addressable, (dout, call.q, call.k, call.v, *call.tiv_or_own))
    stats = _row_statistics(out, dout, lse, dlse)
    inputs = (q, k, v, k_tiv, v_tiv, dout, *stats)
    strides = (stats.shape[2] // STRIDE_UNIT, *_strides(q, k, v, k_tiv, v_tiv, dout))

    dq = _query_gradients(_plan("dq", call, q.shape[1]), inputs, strides, call.scale)
    plan = _plan("dkdv", call, k.shape[1])
    return [dq, *_key_gradients(plan, inputs, strides, call.scale, apart=call.tiv is not None)]


def _query_gradients(plan: Plan, inputs: tuple[Tensor, ...], strides: tuple[int, ...], scale: float) -> Tensor:
    q = inputs[0]
    heads = q.shape[1]
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    part = _partials(plan, heads, configs.padded(q.shape[2]))
    query_gradient_kernel[(plan.work.num_tiles * heads,)](
        *inputs, dq, part, plan.work.tiles, scale, heads, *strides, **plan.constants
    )
    if plan.work.num_merges:
        _sum_gradients(plan, part, dq, dq)
    return dq


def _key_gradients(
    plan: Plan, inputs: tuple[Tensor, ...], strides: tuple[int, ...], scale: float, *, apart: bool
) -> list[Tensor]:
    """dk, dv and, with the TIV keys apart, dk_tiv, dv_tiv."""
    k, k_tiv = inputs[1], inputs[3]
    heads = k.shape[1]
    grads = [torch.empty(x.shape, dtype=k.dtype, device=k.device) for x in ((k, k, k_tiv, k_tiv) if apart else (k, k))]
    dk, dv, dk_tiv, dv_tiv = grads if apart else (*grads, *grads)
    part_dk, part_dv = (_partials(plan, heads, configs.padded(k.shape[2])) for _ in range(2))
    key_gradient_kernel[(plan.work.num_tiles * heads,)](
        *(*inputs, dk, dv, dk_tiv, dv_tiv, part_dk, part_dv, plan.work.tiles, scale, heads, *strides),
        **plan.constants,
    )
    if plan.work.num_merges:
        _sum_gradients(plan, part_dk, dk, dk_tiv)
        _sum_gradients(plan, part_dv, dv, dv_tiv)
    return grads


def _shape(kernel: Pass, call: Call) -> Shape:
    q, k, negative = call.q, call.k, kernel == "forward" and call.scale < 0
    return Shape(q.shape[2], q.shape[1] // k.shape[1], call.tiv is not None, math_of(q.dtype), negative)


def math_of(dtype: torch.dtype) -> Math:
    return float32_math() if dtype == torch.float32 else "half"


def float32_math() -> Math:
    """What torch does with float32 matrix products. The newer of its two switches shows the older one's setting too."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _plan(kernel: Pass, call: Call, heads: int) -> Plan:
    shape, device = _shape(kernel, call), call.q.device
    config = configs.select(kernel, device, configs.padded(shape.head_dim), shape.math)
    workers = None if call.batch_invariant else configs.workers(device, config)
    plan = _cached_plan(kernel, shape, call.layout, call.scope, heads, config, workers, device)
    return hold(plan, device, plan.work)


@lru_cache(maxsize=1024)
def _cached_plan(
    kernel: Pass,
    shape: Shape,
    layout: SifLayout | RangeLayout,
    scope: Scope,
    heads: int,
    config: Config,
    workers: int | None,
    device: torch.device,
) -> Plan:
    if kernel == "dkdv":
        block, step, work_list = config.block_k, config.block_q, key_work
    else:
        block, step, work_list = config.block_q, config.block_k, query_work
    return Plan(
        work_list(layout, scope, block, step, heads, workers, device),
        block,
        {**constants(kernel, shape, config), **config.options, **_LAUNCH},
        {**merge_constants(shape, block), **_LAUNCH},
        torch.empty(0, dtype=torch.float32, device=device),
    )


def addressable(x: Tensor) -> Tensor:
    """x (rows, heads, head_dim) itself if the kernels can read it where it lies, else a copy."""
    return aligned(x, max_row_stride=MAX_ROW_STRIDE, max_head_stride=MAX_HEAD_STRIDE)


def _strides(*tensors: Tensor) -> list[int]:
    """Row and head stride of each tensor, as the kernels take them."""
    return [stride // STRIDE_UNIT for x in tensors for stride in x.stride()[:2]]


def _row_statistics(out: Tensor, dout: Tensor, lse: Tensor, dlse: Tensor | None) -> Tensor:
    """LSE in base 2 and delta = rowsum(dO * O) - dLSE, float32 (2, H, N padded)."""
    rows, heads, head_dim = out.shape
    stats = torch.empty((2, heads, -(-rows // STRIDE_UNIT) * STRIDE_UNIT), dtype=torch.float32, device=out.device)
    delta_kernel[(-(-rows // DELTA_ROWS) * heads,)](
        *(out, dout, lse, lse if dlse is None else dlse.contiguous(), stats[0], stats[1]),
        *(rows, stats.shape[2] // STRIDE_UNIT, heads, *_strides(dout)),
        D=head_dim,
        BLOCK_D=configs.padded(head_dim),
        ROWS=DELTA_ROWS,
        HAS_DLSE=dlse is not None,
        **_LAUNCH,
    )
    return stats


def _partials(plan: Plan, heads: int, *columns: int) -> Tensor:
    """Room for the pieces of split tiles: float32 (slots, heads, block, *columns)."""
    if plan.work.num_slots == 0:
        return plan.nothing
    return torch.empty(
        (plan.work.num_slots, heads, plan.block, *columns), dtype=torch.float32, device=plan.nothing.device
    )


def _merge_grid(plan: Plan, heads: int) -> tuple[int]:
    return (plan.work.num_merges * (plan.block // MERGE_ROWS) * heads,)


def _sum_gradients(plan: Plan, part: Tensor, grad: Tensor, grad_tiv: Tensor) -> None:
    heads = grad.shape[1]
    sum_gradients_kernel[_merge_grid(plan, heads)](
        part, grad, grad_tiv, plan.work.merges, heads, **plan.merge_constants
    )
