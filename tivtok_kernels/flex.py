"""FlexAttention, torch's compiler of masks: for GPUs that none of our kernels run on (docs/kernels/flex.md).

The mask is a function of four numbers per query row, and its blocks come from the layout, not from a dense mask. On the
CPU FlexAttention has a forward only, and that without torch.compile: it is there to be tested. The backward here runs
the forward once more, for autograd to differentiate.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tivtok_kernels.operators import recorded
from tivtok_kernels.problem import NOT_INVARIANT, Call, Direction, Problem
from tivtok_kernels.ranges import RangeLayout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128

# Masked scores are still multiplied by values and keys: 0 * NaN.
CAVEAT = f"unlike in the others, NaN and infinity of a key can reach rows of its block of {BLOCK} that do not see it"


def why_not(problem: Problem) -> str | None:
    if problem.device.type not in ("cpu", "cuda", "xpu"):
        return f"FlexAttention has no kernels for {problem.device.type} tensors"
    if problem.batch_invariant:
        return NOT_INVARIANT
    if problem.device.type == "cpu":
        return "FlexAttention has no backward on the CPU" if problem.direction == "backward" else None
    if problem.dtype == torch.float64:
        return "FlexAttention has no float64 kernels"
    if problem.deterministic:
        return "nobody has checked that FlexAttention's gradients repeat bit for bit"
    return None


def compile_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return (TorchDynamoException, InductorError)


def plan_call(call: Call, direction: Direction) -> None:
    _block_mask(call.ranges, call.q.device)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    out, lse = _attend(call, *(x.detach() for x in (call.q, call.k, call.v, *(call.tiv or ()))))
    return out.contiguous(), lse.contiguous()


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (call.q, call.k, call.v, *(call.tiv or ()))]
    with recorded():
        again, lse_again = _attend(call, *inputs)
        results, grads = ([again], [dout]) if dlse is None else ([again, lse_again], [dout, dlse])
        found = torch.autograd.grad(results, inputs, grads)
    return [x.contiguous() for x in found]


def _attend(call: Call, q: Tensor, k: Tensor, v: Tensor, *tiv: Tensor) -> tuple[Tensor, Tensor]:
    """out (N, H, D) and LSE (N, H)."""
    from torch.nn.attention.flex_attention import AuxRequest

    if tiv:
        k, v = torch.cat([tiv[0], k]), torch.cat([tiv[1], v])
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    out, aux = _flex_attention(q.device.type)(
        *heads_first,
        block_mask=_block_mask(call.ranges, q.device),
        scale=call.scale,
        enable_gqa=True,
        return_aux=AuxRequest(lse=True),
    )
    return out[0].transpose(0, 1), aux.lse[0].T


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    if device != "cpu":
        return torch.compile(flex_attention, dynamic=True)

    def unfused(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
            return flex_attention(*args, **options)

    return unfused


@lru_cache(maxsize=256)
def _block_mask(layout: RangeLayout, device: torch.device) -> BlockMask:
    """Which blocks of the mask are empty, full, or to be masked element by element."""
    from torch.nn.attention.flex_attention import BlockMask

    counts = visible_per_block(layout)
    full = counts == BLOCK * BLOCK
    mixed, full_ones = (_listed(blocks, device) for blocks in ((counts > 0) & ~full, full))
    a, a_end, b, b_end = (torch.from_numpy(x).to(device) for x in _columns(layout))

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return ((key >= a[row]) & (key < a_end[row])) | ((key >= b[row]) & (key < b_end[row]))

    lengths = (layout.q_rows, layout.k_rows + (layout.a_rows or 0))
    return BlockMask.from_kv_blocks(*mixed, *full_ones, BLOCK, visible, lengths)


def visible_per_block(layout: RangeLayout) -> np.ndarray:
    """int64 (blocks of rows, blocks of keys): visible pairs, of each segment its rows times its keys in the block."""
    row, rows, a, a_len, b, b_len = layout.table.T
    apart = layout.a_rows or 0
    keys = layout.k_rows + apart
    seen = _overlap(a, a + a_len, keys) + _overlap(apart + b, apart + b + b_len, keys)
    return _overlap(row, row + rows, layout.q_rows).T @ seen


def _overlap(start: np.ndarray, end: np.ndarray, length: int) -> np.ndarray:
    """(ranges, blocks): elements that each of [start, end) has in each block of [0, length)."""
    block = np.arange(0, length, BLOCK)
    return np.maximum(0, np.minimum(end[:, None], block + BLOCK) - np.maximum(start[:, None], block))


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """int32 (1, 1, blocks of rows, ...): how many blocks of keys each has, and which, before all other numbers."""
    number, order = blocks.sum(1, dtype=np.int32), np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(number).to(device)[None, None], torch.from_numpy(order).to(device)[None, None]


def _columns(layout: RangeLayout) -> list[np.ndarray]:
    """int32 (rows,) four times: A, its end, B and its end for each query row."""
    _, rows, a, a_len, b, b_len = layout.table.T
    apart = layout.a_rows or 0
    columns = (a, a + a_len, apart + b, apart + b + b_len)
    return [np.repeat(x, rows).astype(np.int32) for x in columns]
