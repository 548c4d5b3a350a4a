"""Peers from FlashAttention, in torch and on its own, that are measured on NVIDIA GPUs.

They have not run yet: this was written without a GPU. Each is checked against the truth before it is timed, so a wrong
call is reported as refused, never as a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.attention.cases import Case
from benchmarks.attention.peers import Attention, Peer, flex
from tivtok_kernels import RangeLayout, Segment


def library_peers() -> list[Peer]:
    return [
        Peer("torch varlen flash, 3 calls + LSE merge", _needs_tiv, lambda case, device: three_calls(case, device)),
        Peer("flash-attn 2 varlen, TIV copied", _needs("flash_attn.flash_attn_interface"), _flash_attention_2),
        Peer("flash-attn 4, mask_mod + block sparse", _needs("flash_attn.cute"), _flash_attention_4),
    ]


def _needs(module: str) -> Callable[[Case, torch.device], str | None]:
    """The predicate of a library that is importable as ``module``."""

    def why_not(case: Case, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "needs an NVIDIA GPU"
        return None if _installed(module) else f"{module} is not installed"

    return why_not


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def _needs_tiv(case: Case, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    if isinstance(case.layout, RangeLayout):
        return "written for clips alone"
    return "a clip without TIV tokens leaves a call without keys" if 0 in case.layout.num_tiv else None


# FlashAttention-2 as torch ships it, over packed sequences: TIV rows, frame rows x own frame, frame rows x TIV.


class Sequences(NamedTuple):
    """Packed sequences for one call: which rows and columns, and where each sequence starts."""

    rows: Tensor | slice
    columns: Tensor | slice
    row_starts: Tensor
    column_starts: Tensor
    longest_row: int
    longest_column: int


def sequences(pairs: Sequence[tuple[int, int, int, int]], device: torch.device) -> Sequences:
    """Sequences from (row start, rows, column start, columns) of each."""
    row_starts, rows, column_starts, columns = zip(*pairs, strict=True)
    return Sequences(
        _where(row_starts, rows, device),
        _where(column_starts, columns, device),
        _offsets(rows, device),
        _offsets(columns, device),
        max(rows),
        max(columns),
    )


def _where(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Tensor | slice:
    """Runs of a packed tensor one after the other: a slice, so a view, where they already lie that way."""
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    if all(end == start for end, start in zip(ends, starts[1:], strict=False)):
        return slice(starts[0], ends[-1])
    return torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)]).to(device)


def _offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def flash_forward(q: Tensor, k: Tensor, v: Tensor, s: Sequences) -> tuple[Tensor, Tensor]:
    """Out (rows, H, D) and LSE (H, rows) of gathered rows."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, s.row_starts, s.column_starts, s.longest_row, s.longest_column, 0.0, False, False
    )
    return out, lse


def flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, s: Sequences
) -> tuple[Tensor, ...]:
    random_state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # no dropout: never read
    bounds = s.row_starts, s.column_starts, s.longest_row, s.longest_column
    unused = torch.empty(0, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse.contiguous(), *bounds, 0.0, False, random_state, unused
    )


class _ThreeCalls(torch.autograd.Function):
    """Calls merged by their LSE. Given the merged output and LSE, the backward pass can take each call alone."""

    @staticmethod
    def forward(
        ctx, q: Tensor, keys: Tensor, values: Tensor, first: list[Sequences], merged: list[Sequences]
    ) -> Tensor:
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        for s in first:
            out[s.rows], lse[:, s.rows] = flash_forward(q[s.rows], keys[s.columns], values[s.columns], s)
        for s in merged:
            part_out, part_lse = flash_forward(q[s.rows], keys[s.columns], values[s.columns], s)
            weight = torch.sigmoid(part_lse - lse[:, s.rows]).T[..., None]
            out[s.rows] = torch.lerp(out[s.rows].float(), part_out.float(), weight).to(q.dtype)
            lse[:, s.rows] = torch.logaddexp(lse[:, s.rows], part_lse)
        ctx.save_for_backward(q, keys, values, out, lse)
        ctx.calls = first + merged
        return out

    @staticmethod
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, values, out, lse = ctx.saved_tensors
        dq, dkeys, dvalues = (torch.zeros_like(x) for x in (q, keys, values))
        for s in ctx.calls:
            gathered = dout[s.rows], q[s.rows], keys[s.columns], values[s.columns], out[s.rows], lse[:, s.rows]
            grads = flash_backward(*gathered, s)
            for target, where, grad in zip((dq, dkeys, dvalues), (s.rows, s.columns, s.columns), grads, strict=True):
                target[where] += grad  # no call lists a row or column twice
        return dq, dkeys, dvalues, None, None


def three_calls(case: Case, device: torch.device) -> Attention:
    segments = case.segments()
    frames = [s for s in segments if s.b_len]
    tiv_rows = [(s.q_start, s.q_len, s.a_start, s.a_len) for s in segments if not s.b_len]
    own_frame = [(s.q_start, s.q_len, s.b_start, s.b_len) for s in frames]
    first = [sequences(pairs, device) for pairs in (tiv_rows, own_frame) if pairs]
    merged = [sequences(_rows_per_clip(frames), device)]
    return lambda x: _ThreeCalls.apply(x.q, x.keys(), x.values(), first, merged)


def _rows_per_clip(frames: list[Segment]) -> list[tuple[int, int, int, int]]:
    """Frame rows x TIV: the frames of a clip lie side by side and see the same TIV keys, so they are one sequence."""
    by_tiv: dict[tuple[int, int], list[Segment]] = {}
    for s in frames:
        by_tiv.setdefault((s.a_start, s.a_len), []).append(s)
    return [(of_clip[0].q_start, sum(s.q_len for s in of_clip), *tiv) for tiv, of_clip in by_tiv.items()]


# One call over packed sequences, with the keys that each run of rows sees copied next to one another.


def copied_sequences(case: Case, device: torch.device) -> Sequences:
    segments = case.segments()
    starts = [start for s in segments for start in (s.a_start, s.b_start)]
    lengths = [length for s in segments for length in (s.a_len, s.b_len)]
    rows, columns = [s.q_len for s in segments], [s.a_len + s.b_len for s in segments]
    return Sequences(
        slice(0, case.rows),  # segments come in row order and leave no row out
        _where(starts, lengths, device),
        _offsets(rows, device),
        _offsets(columns, device),
        max(rows),
        max(columns),
    )


def _flash_attention_2(case: Case, device: torch.device) -> Attention:
    from flash_attn import flash_attn_varlen_func

    s = copied_sequences(case, device)
    bounds = s.row_starts, s.column_starts, s.longest_row, s.longest_column
    return lambda x: flash_attn_varlen_func(x.q, x.keys()[s.columns], x.values()[s.columns], *bounds)


def _flash_attention_4(case: Case, device: torch.device) -> Attention:
    return flex(case, device, {"BACKEND": "FLASH"})
