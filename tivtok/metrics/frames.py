"""PSNR and SSIM per frame, on the 8-bit RGB frames that a file holds; seams between chunks.

`PROTOCOL` says what the numbers mean and is printed beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

PROTOCOL = (
    "8-bit RGB frames, data range 255, every frame of a video counts once; "
    "PSNR: mean of the frames' PSNR; SSIM: Gaussian window 11x11, sigma 1.5, mean of the channels"
)
SSIM_MIN_SIDE = 11


def psnr(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each frame.

    Args:
        reconstruction, original: uint8 (F, H, W, 3).

    Returns:
        (F,) float32; infinite where a frame is equal.

    Raises:
        ValueError: shapes or dtypes differ, or are others.
    """
    a, b = _planes(reconstruction, original)
    return peak_signal_noise_ratio(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Structural similarity of each frame, as `psnr`; NaN where a side is shorter than the window of 11 pixels."""
    a, b = _planes(reconstruction, original)
    if min(a.shape[2:]) < SSIM_MIN_SIDE:
        return a.new_full((a.shape[0],), float("nan"))
    return cast(Tensor, structural_similarity_index_measure(a, b, data_range=255.0, reduction="none"))


def frame_changes(frames: Tensor) -> Tensor:
    """Mean absolute change from each frame to the next, in levels of 8 bits: uint8 (F, H, W, 3) -> (F - 1,) float32."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3))


def seams(changes: Tensor, chunk_frames: int | Sequence[int]) -> tuple[float, float]:
    """Measure flicker at chunk borders: the mean change across them, and inside chunks.

    Their ratio is about 1 where chunks join invisibly. A reconstruction has seams as far as its ratio exceeds the
    original's. (Inside a chunk there are borders of frame groups, too: ask with their length to see those.)

    Args:
        changes: (F - 1,) of a whole video, by `frame_changes`.
        chunk_frames: the length of all chunks but the last, or of each.

    Returns:
        Levels of 8 bits; NaN where there is no border, or nothing inside.
    """
    starts = torch.arange(1, len(changes) + 1)
    if isinstance(chunk_frames, int):
        at_border = starts % chunk_frames == 0
    else:
        at_border = torch.isin(starts, torch.tensor(chunk_frames).cumsum(0))
    return float(changes[at_border].mean()), float(changes[~at_border].mean())


def _planes(reconstruction: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    for name, x in (("reconstruction", reconstruction), ("original", original)):
        if x.ndim != 4 or x.shape[3] != 3 or x.dtype != torch.uint8:
            raise ValueError(f"{name} must be uint8 (F, H, W, 3), got {x.dtype} {tuple(x.shape)}")
    if reconstruction.shape != original.shape:
        raise ValueError(
            f"reconstruction must have the shape of original, {tuple(original.shape)}, "
            f"got {tuple(reconstruction.shape)}"
        )
    a, b = (x.permute(0, 3, 1, 2).float() for x in (reconstruction, original))
    return a, b
