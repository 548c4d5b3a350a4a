"""Scores against their definitions, and pictures pixel by pixel."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tivtok.metrics import psnr, ssim
from tivtok.pictures import GAP, contact_sheet, difference, scale_to_see, side_by_side


def noise(seed: int, shape: tuple[int, ...] = (3, 20, 24, 3)) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_psnr_is_that_of_each_frame() -> None:
    a, b = noise(0), noise(1)
    want = [10 * math.log10(255**2 / ((x.double() - y.double()) ** 2).mean()) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(psnr(a, b), torch.tensor(want))
    assert psnr(a, a).isinf().all()


def test_ssim_is_one_for_equal_frames_and_known_for_flat_ones() -> None:
    a = noise(0)
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    dark, light = torch.full_like(a, 50), torch.full_like(a, 100)
    c1 = (0.01 * 255) ** 2  # without variance only the luminance term is left
    torch.testing.assert_close(
        ssim(dark, light), torch.full((3,), (2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)), rtol=1e-3, atol=1e-3
    )
    small = noise(0, (2, 8, 24, 3))
    assert ssim(small, small).isnan().all()


def test_scores_want_equal_uint8_frames() -> None:
    with pytest.raises(ValueError, match="reconstruction must have the shape of original"):
        psnr(noise(0), noise(0)[:2])
    with pytest.raises(ValueError, match="original must be uint8"):
        ssim(noise(0), noise(0).float())


def test_side_by_side_is_even_and_keeps_every_pixel() -> None:
    a, b = noise(0, (2, 5, 7, 3)), noise(1, (2, 5, 7, 3))
    joined = side_by_side(a, b)
    assert joined.shape == (2, 6, 7 + GAP + 7, 3)
    assert torch.equal(joined[:, :5, :7], a) and torch.equal(joined[:, :5, 7 + GAP : 14 + GAP], b)
    doubled = side_by_side(a, b, scale=2)
    assert torch.equal(doubled[:, :10:2, :14:2], a) and doubled.shape[1] == 10
    sizes = [(1, 1), (64, 64), (190, 100), (1080, 1920), (3, 4097), (10, 200)]
    assert [scale_to_see(*size) for size in sizes] == [192, 3, 1, 1, 1, 5]


def test_difference() -> None:
    a, b = torch.tensor([10, 10, 200, 5]), torch.tensor([10, 12, 0, 0])
    assert difference(a.to(torch.uint8), b.to(torch.uint8)).tolist() == [0, 8, 255, 20]


def test_contact_sheet_shows_the_frames(tmp_path: Path) -> None:
    rows = {"one": noise(0, (2, 16, 24, 3)), "two": noise(1, (2, 16, 24, 3))}
    contact_sheet(tmp_path / "a.png", rows, ["frame 0", "frame 9"], "title", scale=2)
    assert os.listdir(tmp_path) == ["a.png"]
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = torch.frombuffer(bytearray(sheet.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = pixels.reshape(sheet.height, sheet.width, 3)
    last = rows["two"][1].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(pixels[-GAP - 32 : -GAP, -GAP - 48 : -GAP], last)
    with pytest.raises(FileNotFoundError):
        contact_sheet(tmp_path / "none" / "a.png", rows, ["", ""], "title")
