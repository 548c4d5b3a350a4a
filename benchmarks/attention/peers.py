"""Everyone who can compute the mask: our backends and what torch offers. Other libraries are in `libraries`.

A peer says why it cannot express a case, or prepares a function from `Inputs` to the packed output (rows, H, D). What
`prepare` does (masks, plans) is not timed with the call; it is reported apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.attention.cases import Case, Inputs
from tivtok_kernels import (
    RangeLayout,
    Scope,
    Segment,
    SifLayout,
    available_backends,
    backends,
    broadcast_attention,
    range_attention,
    sif_attention,
)
from tivtok_kernels.problem import Problem

Attention = Callable[[Inputs], Tensor]

DENSE = "SDPA, dense mask"
COPIED = "SDPA per scope, TIV copied"

# The largest score-shaped temporary, in bytes, that a peer may need on each kind of device.
_LARGEST = {"cpu": 5 << 28, "cuda": 8 << 30}


class Peer(NamedTuple):
    """One way to compute a case."""

    name: str
    why_not: Callable[[Case, torch.device], str | None]
    prepare: Callable[[Case, torch.device], Attention]


def own_peers() -> list[Peer]:
    """Each backend of `tivtok_kernels`, whether or not it runs here."""
    return [_own(name) for name in backends.NAMES["attention"]]


def own_name(backend: str) -> str:
    return f"tivtok {backend}"


def default_peer(case: Case, device: torch.device) -> str:
    """The peer that ``backend="auto"`` amounts to."""
    return own_name(backends.choose("attention", "auto", Problem(device, case.dtype, case.head_dim)))


def torch_peers() -> list[Peer]:
    return [
        Peer(DENSE, _dense_why_not, lambda case, device: _dense(case, device, None)),
        Peer(COPIED, lambda case, device: None, lambda case, device: _copied(case)),
        Peer("FlexAttention, compiled", _flex_why_not, lambda case, device: flex(case, device, None)),
        Peer("cuDNN SDPA, dense mask", _cudnn_why_not, lambda case, device: _dense(case, device, _CUDNN)),
    ]


_CUDNN = SDPBackend.CUDNN_ATTENTION


def _own(backend: str) -> Peer:
    def why_not(case: Case, device: torch.device) -> str | None:
        status = available_backends(device, case.dtype, case.head_dim)[backend]
        if status != "ok":
            return status
        if backend == "triton" and device.type == "cpu":
            return "Triton's interpreter is for tests"
        if backend == "flex" and device.type == "cpu":
            return "FlexAttention has no backward on the CPU"
        if backend == "reference":  # scores and weights live at once
            return _too_large(2 * case.heads * case.rows * case.columns, device)
        return None

    return Peer(own_name(backend), why_not, lambda case, device: own_attention(case, backend))


def own_attention(case: Case, backend: str) -> Attention:
    """One call of ``tivtok_kernels``."""
    layout, scope = case.layout, case.scope
    if isinstance(layout, RangeLayout):
        return lambda x: range_attention(x.q, x.k, x.v, layout, backend=backend)
    if scope == "broadcast":
        return lambda x: broadcast_attention(x.q, x.k, x.v, x.k_tiv, x.v_tiv, layout=layout, backend=backend)
    return lambda x: sif_attention(x.q, x.k, x.v, layout, tiv_scope=scope, backend=backend)


def _too_large(elements: int, device: torch.device) -> str | None:
    needed, limit = 4 * elements, _LARGEST[device.type]
    return f"needs {needed / 2**30:.1f} GiB for dense scores or masks" if needed > limit else None


# Dense mask: one call for all clips if they are equal, else one per clip.


def _dense_why_not(case: Case, device: torch.device) -> str | None:
    masks = [clip.ranges(case.scope) for _, clip in case.clips]
    return _too_large(sum(mask.q_rows * (mask.k_rows + (mask.a_rows or 0)) for mask in masks), device)


def _cudnn_why_not(case: Case, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    return _dense_why_not(case, device)


def _dense(case: Case, device: torch.device, backend: SDPBackend | None) -> Attention:
    clips = case.clips
    masks = [clip.ranges(case.scope).visibility(device) for _, clip in clips]

    def attention(x: Inputs) -> Tensor:
        outs = [
            F.scaled_dot_product_attention(*_heads_first(_key_joined(part)), attn_mask=mask)
            for part, mask in zip(_per_clip(x, case), masks, strict=True)
        ]
        return _packed(outs)

    if backend is None:
        return attention

    def attention_with_backend(x: Inputs) -> Tensor:
        with sdpa_kernel(backend):
            return attention(x)

    return attention_with_backend


def _per_clip(x: Inputs, case: Case) -> Iterator[Inputs]:
    """Views of the clips as (count, rows, H, D), equal clips together."""
    row = key = tiv_key = 0
    for count, clip in case.clips:
        mask = clip.ranges(case.scope)
        tiv_keys = mask.a_rows or 0

        def of_clips(t: Tensor, start: int, length: int, count: int = count) -> Tensor:
            return t[start : start + count * length].unflatten(0, (count, length))

        q, dout = (of_clips(t, row, mask.q_rows) for t in (x.q, x.dout))
        k, v = (of_clips(t, key, mask.k_rows) for t in (x.k, x.v))
        tiv = [None if t is None else of_clips(t, tiv_key, tiv_keys) for t in (x.k_tiv, x.v_tiv)]
        yield Inputs(q, k, v, dout, *tiv)
        row, key, tiv_key = row + count * mask.q_rows, key + count * mask.k_rows, tiv_key + count * tiv_keys


def _key_joined(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    if x.k_tiv is None or x.v_tiv is None:
        return x.q, x.k, x.v
    return x.q, torch.cat([x.k_tiv, x.k], dim=1), torch.cat([x.v_tiv, x.v], dim=1)


def _heads_first(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(B, rows, H, D) -> (B, H, rows, D)."""
    return tuple(t.transpose(1, 2) for t in tensors)


def _packed(outs: list[Tensor]) -> Tensor:
    """Outputs (B, H, rows, D) of consecutive blocks of rows -> (all rows, H, D)."""
    flat = [out.transpose(1, 2).flatten(0, 1) for out in outs]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


# Per scope, the TIV keys and values copied in front of each frame's own: what one writes without a kernel.


def _copied(case: Case) -> Attention:
    layout = case.layout
    if isinstance(layout, SifLayout) and layout.is_uniform and len(set(layout.frame_tokens[0])) == 1:
        return lambda x: _copied_uniform(next(_per_clip(x, case)), layout, case.scope)

    segments = case.segments()

    def attention(x: Inputs) -> Tensor:
        keys, values = x.keys(), x.values()
        outs = []
        for s in segments:
            ranges = [(s.a_start, s.a_start + s.a_len), (s.b_start, s.b_start + s.b_len)]
            k, v = (torch.cat([t[start:end] for start, end in ranges]) for t in (keys, values))
            q = x.q[s.q_start : s.q_start + s.q_len]
            outs.append(F.scaled_dot_product_attention(*_heads_first((q[None], k[None], v[None]))))
        return _packed(outs)

    return attention


def _copied_uniform(x: Inputs, layout: SifLayout, scope: Scope) -> Tensor:
    """Equal clips of equal frames: one call for the TIV rows, one for all frames."""
    num_tiv, frames = layout.num_tiv[0], len(layout.frame_tokens[0])
    own_tiv = 0 if scope == "broadcast" else num_tiv  # TIV rows among the packed rows

    def with_tiv(tiv: Tensor, local: Tensor) -> Tensor:  # (B, M, H, D), (B, T * L, H, D) -> (B * T, M + L, H, D)
        local = local.unflatten(1, (frames, -1))
        return torch.cat([tiv[:, None].expand(-1, frames, -1, -1, -1), local], dim=2).flatten(0, 1)

    k_tiv = x.k[:, :own_tiv] if x.k_tiv is None else x.k_tiv
    v_tiv = x.v[:, :own_tiv] if x.v_tiv is None else x.v_tiv
    q = x.q[:, own_tiv:].unflatten(1, (frames, -1)).flatten(0, 1)
    k, v = with_tiv(k_tiv, x.k[:, own_tiv:]), with_tiv(v_tiv, x.v[:, own_tiv:])
    local = F.scaled_dot_product_attention(*_heads_first((q, k, v))).transpose(1, 2)
    local = local.unflatten(0, (-1, frames)).flatten(1, 2)
    if not own_tiv:
        return local.flatten(0, 1)
    seen = slice(None) if scope == "clip" else slice(own_tiv)
    tiv = F.scaled_dot_product_attention(*_heads_first((x.q[:, :own_tiv], x.k[:, seen], x.v[:, seen]))).transpose(1, 2)
    return torch.cat([tiv, local], dim=1).flatten(0, 1)


# FlexAttention: the two key ranges of a row as a mask_mod, and a block mask from it.


def _flex_why_not(case: Case, device: torch.device) -> str | None:
    if device.type == "cpu":
        if case.backward:
            return "FlexAttention has no backward pass on CPUs"
        if not case.compiled:
            return "compiles for half a minute per shape on a CPU: measured on one case only"
        if shutil.which("c++") is None and shutil.which("g++") is None:
            return "torch.compile needs a C++ compiler"
    return _too_large(case.rows * case.columns // _equal_clips(case) ** 2, device)


def _equal_clips(case: Case) -> int:
    """How many clips share one mask; 1 where they are not equal."""
    return case.layout.num_clips if isinstance(case.layout, SifLayout) and case.layout.is_uniform else 1


def _bounds(s: Segment) -> tuple[int, int, int, int]:
    return s.a_start, s.a_start + s.a_len, s.b_start, s.b_start + s.b_len


def flex(case: Case, device: torch.device, kernel_options: dict[str, str] | None) -> Attention:
    """FlexAttention with a block mask: equal clips as a batch that shares one mask, ragged ones as one packed row."""
    count = _equal_clips(case)
    one = Case(case.name, case.clips[0][1] if count > 1 else case.layout, case.scope, case.dtype)
    segments = one.segments()
    lengths = torch.tensor([s.q_len for s in segments])
    a_start, a_end, b_start, b_end = (
        torch.tensor(bounds).repeat_interleave(lengths).to(device)
        for bounds in zip(*map(_bounds, segments), strict=True)
    )

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        in_a = (column >= a_start[row]) & (column < a_end[row])
        return in_a | (column >= b_start[row]) & (column < b_end[row])

    mask = create_block_mask(visible, None, None, one.rows, one.columns, device=device)
    torch.compiler.reset()  # each case is a program of its own: no recompilation limit between them
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def attention(x: Inputs) -> Tensor:
        part = next(_per_clip(x, case)) if count > 1 else Inputs(*(None if t is None else t[None] for t in x))
        out = compiled(*_heads_first(_key_joined(part)), block_mask=mask, kernel_options=kernel_options)
        return _packed([out])

    return attention
