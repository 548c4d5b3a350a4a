"""Scores against their definitions, and pictures pixel by pixel."""

from __future__ import annotations

import base64
import io
import math
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from tivtok.metrics import frame_changes, psnr, seams, ssim
from tivtok.views.page import write_page
from tivtok.views.pictures import (
    BACKGROUND,
    GAP,
    SCOPE_COLOURS,
    SET_COLOURS,
    TIMELINE_HEIGHT,
    added,
    contact_sheet,
    difference,
    scale_to_see,
    scope_picture,
    side_by_side,
    timeline,
)


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


def test_seams_are_changes_across_chunk_borders() -> None:
    levels = torch.tensor([0, 1, 2, 3, 13, 14, 15, 16, 21, 22], dtype=torch.uint8)  # chunks of 4: jumps of 10 and 5
    changes = frame_changes(levels[:, None, None, None].expand(-1, 4, 5, 3))
    assert changes.tolist() == [1, 1, 1, 10, 1, 1, 1, 5, 1]
    assert seams(changes, 4) == (7.5, 1.0)
    border, inside = seams(changes[:3], 4)
    assert math.isnan(border) and inside == 1
    assert math.isnan(seams(changes[:0], 4)[1])
    assert seams(changes, [4, 6]) == (10.0, 1.5)


def test_side_by_side_is_even_and_keeps_every_pixel() -> None:
    a, b = noise(0, (2, 5, 7, 3)), noise(1, (2, 5, 7, 3))
    joined = side_by_side(a, b)
    assert joined.shape == (2, 6, 7 + GAP + 7, 3)
    assert torch.equal(joined[:, :5, :7], a) and torch.equal(joined[:, :5, 7 + GAP : 14 + GAP], b)
    doubled = side_by_side(a, b, scale=2)
    assert torch.equal(doubled[:, :10:2, :14:2], a) and doubled.shape[1] == 10
    sizes = [(1, 1), (64, 64), (190, 100), (1080, 1920), (3, 4097), (10, 200)]
    assert [scale_to_see(*size) for size in sizes] == [192, 3, 1, 1, 1, 5]


def test_added() -> None:
    whole, part = torch.tensor([10, 10, 250, 0]), torch.tensor([10, 12, 0, 250])
    assert added(whole.to(torch.uint8), part.to(torch.uint8)).tolist() == [128, 126, 255, 0]


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
    contact_sheet(tmp_path / "b.png", rows, ["frame 0", "frame 9"], "title", 2, torch.tensor([0, 1]))
    with Image.open(tmp_path / "a.png") as without, Image.open(tmp_path / "b.png") as sheet:
        assert sheet.height == without.height + TIMELINE_HEIGHT + GAP
        assert sheet.getpixel((sheet.width - GAP - 1, sheet.height - GAP - 1)) == SET_COLOURS[1]
    with pytest.raises(FileNotFoundError):
        contact_sheet(tmp_path / "none" / "a.png", rows, ["", ""], "title")


def test_timeline_is_as_long_as_each_set_lasts() -> None:
    bar = timeline(torch.tensor([0, 0, 0, 1, 7]), width=50, height=2)
    assert bar.shape == (2, 50, 3)
    colours = [tuple(pixel) for pixel in bar[1].tolist()]
    assert colours == [SET_COLOURS[0]] * 30 + [SET_COLOURS[1]] * 20  # set 7 has the colour of set 1


def test_scope_picture_is_the_arrowhead() -> None:
    clip, tiv = scope_picture(2, 3, 4, "clip"), scope_picture(2, 3, 4, "tiv")
    sees, reads, own = SCOPE_COLOURS
    white = BACKGROUND
    first_rows = [[sees] * 14, [reads] * 2 + [own] * 4 + [white] * 8, [reads] * 2 + [white] * 8 + [own] * 4]
    assert [[tuple(p) for p in row] for row in clip[[0, 2, 13]].tolist()] == first_rows
    assert [tuple(p) for p in tiv[1].tolist()] == [sees] * 2 + [white] * 12
    assert torch.equal(clip[2:], tiv[2:])


def test_the_page_is_self_contained_and_well_formed(tmp_path: Path) -> None:
    """Every tag closed, every picture inside and the right size, no text taken for markup."""
    rows = {"one": noise(0, (2, 16, 24, 3)), "two": noise(1, (2, 16, 24, 3))}
    scopes = {"encoder": scope_picture(2, 3, 4, "clip")}
    page = tmp_path / "a.html"
    write_page(page, "<b>&.mp4", {"tokens": "5 < 6"}, rows, ["frame 0", "frame 9"], torch.tensor([0, 0, 1]), scopes)
    text = page.read_text(encoding="utf-8")
    reader = PageReader()
    reader.feed(text)
    assert reader.open == [] and "<b>" not in text and "http" not in text and "<script" not in text
    assert {"<b>&.mp4", "5 < 6", "frame 9", "encoder"} <= set(reader.texts) and "2 TIV sets" in text
    sizes = [Image.open(io.BytesIO(data)).size for data in reader.pictures]
    assert sizes == [(24, 16)] * 4 + [(960, TIMELINE_HEIGHT), (14, 14)]
    assert os.listdir(tmp_path) == ["a.html"]


class PageReader(HTMLParser):
    """The tags still open, the texts and the pictures of a page."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[bytes] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            kind, data = str(dict(attributes)["src"]).split(",")
            assert kind == "data:image/png;base64" and dict(attributes)["alt"]
            self.pictures.append(base64.b64decode(data))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
