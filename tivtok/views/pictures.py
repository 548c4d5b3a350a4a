"""Pictures that compare a reconstruction with its original."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tivtok.attention import SifLayout
from tivtok.files import printable, replacing

GAP = 4
FONT_SIZE = 14
DIFFERENCE_GAIN = 4
BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)
SET_COLOURS = ((68, 119, 170), (238, 102, 119), (34, 136, 51), (204, 187, 68), (102, 204, 238), (170, 51, 119))
SCOPE_COLOURS = ((68, 119, 170), (238, 153, 51), (34, 136, 51))
TIMELINE_HEIGHT = 18


def difference(reconstruction: Tensor, original: Tensor) -> Tensor:
    """|reconstruction - original| times `DIFFERENCE_GAIN`: uint8 (F, H, W, 3), black where they are equal."""
    return ((reconstruction.int() - original.int()).abs() * DIFFERENCE_GAIN).clamp(max=255).to(torch.uint8)


def added(whole: Tensor, part: Tensor) -> Tensor:
    """What ``whole`` has beyond ``part``, both uint8 (F, H, W, 3): the difference on grey, 128 where they are equal."""
    return (whole.int() - part.int() + 128).clamp(0, 255).to(torch.uint8)


def side_by_side(*videos: Tensor, scale: int = 1) -> Tensor:
    """uint8 (F, H, W, 3) each -> one (F, H * scale, about (W * scale + GAP) * n, 3), white between them.

    Height and width are padded to even numbers, which H.264 players expect.
    """
    frames, height, _, _ = videos[0].shape
    gap = videos[0].new_full((frames, height * scale, GAP, 3), 255)
    parts: list[Tensor] = []
    for video in videos:
        parts += [enlarge(video, scale), gap]
    joined = torch.cat(parts[:-1], dim=2)
    bottom, right = joined.shape[1] % 2, joined.shape[2] % 2
    return torch.nn.functional.pad(joined, (0, 0, 0, right, 0, bottom), value=255)


def enlarge(video: Tensor, scale: int) -> Tensor:
    """Every pixel of uint8 (F, H, W, 3) becomes scale x scale pixels."""
    return video.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def scale_to_see(height: int, width: int) -> int:
    """Integer factor that makes a small picture about 192 pixels high and at most 1024 wide; 1 for large ones."""
    return max(1, min(round(192 / height), 1024 // width))


def contact_sheet(
    path: str | os.PathLike[str],
    rows: dict[str, Tensor],
    labels: Sequence[str],
    title: str,
    scale: int = 1,
    tiv_index: Tensor | None = None,
) -> None:
    """Write a PNG: one labelled row per entry of ``rows``, one labelled column per frame, and a timeline of TIV sets.

    Args:
        rows: label -> uint8 (F, H, W, 3), all of one shape.
        labels: of the F columns.
        title: one line on top.
        tiv_index: (T,) int64, for the `timeline`; none without it.

    Raises:
        OSError: the file cannot be written.
    """
    title = printable(title)
    font = ImageFont.load_default(FONT_SIZE)
    frames, height, width, _ = next(iter(rows.values())).shape
    height, width = height * scale, width * scale
    margin = GAP + max(round(font.getlength(label)) for label in (*rows, "TIV sets")) + GAP
    top = 2 * (FONT_SIZE + 2 * GAP)
    size = (
        max(margin + frames * (width + GAP), round(font.getlength(title)) + 2 * GAP),
        top + len(rows) * (height + GAP) + (0 if tiv_index is None else TIMELINE_HEIGHT + GAP),
    )
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, font)
    for column, label in enumerate(labels):
        draw.text((margin + column * (width + GAP), GAP + top // 2), label, INK, font)
    for row, (label, video) in enumerate(rows.items()):
        y = top + row * (height + GAP)
        draw.text((GAP, y + (height - FONT_SIZE) // 2), label, INK, font)
        for column, frame in enumerate(enlarge(video, scale)):
            sheet.paste(Image.fromarray(frame.numpy()), (margin + column * (width + GAP), y))
    if tiv_index is not None:
        y = top + len(rows) * (height + GAP)
        draw.text((GAP, y), "TIV sets", INK, font)
        bar = timeline(tiv_index, frames * (width + GAP) - GAP)
        sheet.paste(Image.fromarray(bar.numpy()), (margin, y))
    with replacing(path) as temporary:
        sheet.save(Path(temporary), format="PNG")


def timeline(tiv_index: Tensor, width: int, height: int = TIMELINE_HEIGHT) -> Tensor:
    """A bar of uint8 (height, width, 3) from the first frame group to the last, a colour for each TIV set.

    Args:
        tiv_index: int64 (T,). Neighbouring sets differ in colour, which repeats after `len(SET_COLOURS)` sets.
    """
    groups = torch.arange(width) * len(tiv_index) // width
    colours = torch.tensor(SET_COLOURS, dtype=torch.uint8)[tiv_index[groups] % len(SET_COLOURS)]
    return colours.expand(height, -1, -1).contiguous()


def scope_picture(num_tiv: int, num_frames: int, frame_tokens: int, tiv_scope: Literal["clip", "tiv"]) -> Tensor:
    """Draw who sees whom in a clip, as uint8 (N, N, 3): queries down, keys across, white where a key is not seen.

    Blue: what TIV queries see. Orange: the TIV keys that all others see. Green: their own frames.
    """
    layout = SifLayout.uniform(1, num_tiv, num_frames, frame_tokens)
    is_tiv = torch.arange(layout.total_tokens) < num_tiv
    kind = torch.where(is_tiv[:, None], 1, torch.where(is_tiv[None, :], 2, 3)) * layout.visibility(tiv_scope)
    return torch.tensor([BACKGROUND, *SCOPE_COLOURS], dtype=torch.uint8)[kind]
