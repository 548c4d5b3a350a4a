"""The grid: which layouts, scopes and passes are measured on which kind of device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tivtok import TivTokConfig
from tivtok_kernels import RangeLayout, Scope, Segment, SifLayout

# What the scopes are called outside of the kernels.
SCOPE_NAMES: dict[Scope, str] = {"clip": "encoder", "tiv": "decoder", "broadcast": "broadcast", "ranges": "mask"}


@dataclass(frozen=True)
class Case:
    """One attention problem.

    Attributes:
        name: of layout and sizes; `title` adds scope and pass.
        scope: of a `SifLayout`; "ranges" with a `RangeLayout`.
        compiled: peers that compile one program per shape take part. On a CPU that is half a minute each.
    """

    name: str
    layout: SifLayout | RangeLayout
    scope: Scope
    dtype: torch.dtype
    backward: bool = False
    heads: int = 12
    head_dim: int = 64
    compiled: bool = True

    @property
    def title(self) -> str:
        direction = "forward+backward" if self.backward else "forward"
        return f"{self.name} {SCOPE_NAMES[self.scope]} {direction}"

    @property
    def flops(self) -> float:
        """FLOPs of the exact visible area: forward 4 * area * D per head, backward 2.5 times that."""
        forward = 4 * self.ranges.area * self.head_dim * self.heads
        return forward * 3.5 if self.backward else forward

    @property
    def ranges(self) -> RangeLayout:
        return self.layout.ranges(self.scope)

    @property
    def rows(self) -> int:
        """Query rows."""
        return self.ranges.q_rows

    @property
    def columns(self) -> int:
        """Key rows, the TIV keys included."""
        return self.ranges.k_rows + (self.ranges.a_rows or 0)

    def segments(self) -> list[Segment]:
        """The mask as runs of rows with two key ranges, all columns counted in `Inputs.keys`."""
        shift = self.ranges.a_rows or 0
        return [s._replace(b_start=s.b_start + shift) for s in self.ranges.segments]

    @cached_property
    def clips(self) -> list[tuple[int, SifLayout | RangeLayout]]:
        """The batch as (count, one clip): a single entry when all clips are equal, else one each."""
        layout = self.layout
        if isinstance(layout, RangeLayout):
            return [(1, layout)]
        clips = [SifLayout.from_lengths([m], [f]) for m, f in zip(layout.num_tiv, layout.frame_tokens, strict=True)]
        return [(len(clips), clips[0])] if layout.is_uniform else [(1, clip) for clip in clips]


class Inputs(NamedTuple):
    """q, k, v and the output's gradient, packed (rows, H, D); the TIV keys apart only for the broadcast scope."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    k_tiv: Tensor | None
    v_tiv: Tensor | None

    def keys(self) -> Tensor:
        """All keys in one tensor: a copy where the TIV keys come apart, for peers that cannot read two tensors."""
        return self.k if self.k_tiv is None else torch.cat([self.k_tiv, self.k])

    def values(self) -> Tensor:
        return self.v if self.v_tiv is None else torch.cat([self.v_tiv, self.v])

    def leaves(self) -> list[Tensor]:
        """Tensors that the backward pass differentiates."""
        return [x for x in (self.q, self.k, self.v, self.k_tiv, self.v_tiv) if x is not None]


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Standard normal inputs of a case, the same for everyone."""
    generator = torch.Generator(device).manual_seed(seed)

    def rows(count: int) -> Tensor:
        shape = count, case.heads, case.head_dim
        return torch.randn(shape, dtype=case.dtype, device=device, generator=generator)

    ranges = case.ranges
    tiv = [None if ranges.a_rows is None else rows(ranges.a_rows) for _ in range(2)]
    inputs = Inputs(rows(ranges.q_rows), rows(ranges.k_rows), rows(ranges.k_rows), rows(ranges.q_rows), *tiv)
    for x in inputs.leaves():
        x.requires_grad_(case.backward)
    return inputs


def cases(device: torch.device) -> list[Case]:
    """The grid of a kind of device."""
    return list(_gpu() if device.type == "cuda" else _cpu())


def _cpu() -> Iterator[Case]:
    """Float32, one clip of 16 frames and smaller ones: what a 2-core machine measures in a few minutes."""
    clip = preset_layout("t128", frames=16, clips=1)
    yield Case("t128 16f x1", clip, "clip", torch.float32)
    yield Case("t128 16f x1", clip, "clip", torch.float32, backward=True)
    yield Case("t128 16f x1 d128", clip, "clip", torch.float32, heads=6, head_dim=128, compiled=False)
    yield Case("t128 16f x1", clip, "tiv", torch.float32, compiled=False)
    yield Case("t128 16f x1 d128", clip, "clip", torch.float32, backward=True, heads=6, head_dim=128, compiled=False)
    for backward in (False, True):
        yield Case("t128 16f x1", clip, "broadcast", torch.float32, backward, compiled=False)
        yield Case("ragged x3", SMALL_RAGGED, "clip", torch.float32, backward, compiled=False)
        for name, layout, heads in SMALL_FRAMES:
            yield Case(name, layout, "clip", torch.float32, backward, heads, compiled=False)
    for name, mask in MASKS.items():
        yield Case(name, mask, "ranges", torch.float32, heads=8, compiled=False)


def _gpu() -> Iterator[Case]:
    """Forward, and forward + backward, of each GPU problem."""
    return (replace(case, backward=backward) for case in _gpu_problems() for backward in (False, True))


def _gpu_problems() -> Iterator[Case]:
    """Bfloat16: every preset, length and batch for the encoder; the corners of that grid for the other scopes."""
    bf16 = torch.bfloat16
    for preset in ("t128", "t512", "t1024"):
        for frames in (16, 32, 128):
            for clips in (1, 16):
                layout = preset_layout(preset, frames, clips)
                yield Case(f"{preset} {frames}f x{clips}", layout, "clip", bf16)
        for frames in (16, 128):
            layout = preset_layout(preset, frames, clips=1)
            yield Case(f"{preset} {frames}f x1", layout, "tiv", bf16)
            yield Case(f"{preset} {frames}f x1", layout, "broadcast", bf16)
            yield Case(f"{preset} {frames}f x1 d128", layout, "clip", bf16, heads=6, head_dim=128)
    for scope in ("clip", "tiv", "broadcast"):
        yield Case("ragged x8", RAGGED, scope, bf16)
    for name, mask in MASKS.items():
        yield Case(name, mask, "ranges", bf16, heads=8)


def preset_layout(preset: str, frames: int, clips: int) -> SifLayout:
    """The packed encoder batch of a paper preset at its native size, every video frame in one clip."""
    config = TivTokConfig.preset(preset)
    patches = math.prod(side // p for side, p in zip(config.native_size, config.patch[1:], strict=True))
    return SifLayout.uniform(clips, config.num_tiv, config.num_groups(frames), config.num_tv + patches)


# Frames so small that calls, copies and packing cost what attention itself does.
SMALL_FRAMES = [
    ("256-token frames x1", SifLayout.uniform(1, 128, 8, 256), 6),
    ("64-token frames x8", SifLayout.uniform(8, 16, 4, 64), 4),
    ("64-token frames x64", SifLayout.uniform(64, 16, 4, 64), 4),
]

# Mixed clip lengths, TIV counts and frame sizes.
SMALL_RAGGED = SifLayout.from_lengths([96, 24, 64], [[520, 520], [130, 0, 260], [264] * 3])
RAGGED = SifLayout.from_lengths(
    [96, 384, 96, 768, 96, 384, 96, 96],
    [[1032] * 4, [1056] * 8, [264] * 32, [1088] * 2, [1032, 520, 264], [416] * 5, [1032], [72] * 64],
)

# Other masks of two ranges (docs/masks.md), of a size that a CPU computes in a tenth of a second.
_FRAMES = SifLayout.uniform(1, 64, 16, 128)
MASKS = {
    "windows of 3 frames": _FRAMES.frame_windows(back=2, ahead=0),
    "causal over frames": _FRAMES.frame_windows(ahead=0),
    "prefix 1024 + 16 x 64": RangeLayout.shared_prefix([1024], [[64] * 16]),
    "cached prefix 2048 + 32 x 4": RangeLayout.shared_prefix([2048], [[4] * 32], prefix_queries=False),
    "block diffusion 1024 by 32": RangeLayout.block_diffusion([1024], 32),
    "documents 100 to 900": RangeLayout.documents([900, 300, 700, 100]),
    "cross-attention to 4 x 77": RangeLayout.cross([512] * 4, [77] * 4),
}
