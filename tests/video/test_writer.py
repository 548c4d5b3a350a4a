"""Writing videos and files, and turning frames into the model's video and back."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tivtok.files import replacing
from tivtok.video import VideoError, VideoReader, VideoWriter, fit, frames_to_video, resize, video_to_frames


def colours(num_frames: int, height: int, width: int) -> torch.Tensor:
    """uint8 (F, H, W, 3): four large patches of saturated colour that change over time."""
    frames = torch.zeros(num_frames, height, width, 3, dtype=torch.uint8)
    top, left = max(1, height // 2), max(1, width // 2)
    for index in range(num_frames):
        frames[index, :top, :left] = torch.tensor([220, 20, 10 * index])
        frames[index, :top, left:] = torch.tensor([10, 200, 40])
        frames[index, top:, :left] = torch.tensor([30, 60, 230])
        frames[index, top:, left:] = torch.tensor([240, 230, 20])
    return frames


def read(path: Path) -> torch.Tensor:
    return torch.cat(list(VideoReader(path).chunks(16)))


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63), (1, 1), (4, 4)])
@pytest.mark.parametrize("fps", [25, 30000 / 1001, Fraction(1000000, 66667)])
def test_written_frames_come_back(tmp_path: Path, size: tuple[int, int], fps: float) -> None:
    frames = colours(10, *size)
    with VideoWriter(tmp_path / "a.mp4", fps, size[1], size[0], crf=1) as writer:
        writer.write(frames[0])
        writer.write(frames[1:].numpy())
    got = read(tmp_path / "a.mp4")
    assert got.shape == frames.shape
    assert (got.int() - frames.int()).abs().float().mean() < 4
    reader = VideoReader(tmp_path / "a.mp4")
    assert reader.fps == Fraction(fps).limit_denominator(100_000)


def test_even_sizes_play_everywhere_and_colours_are_declared(tmp_path: Path) -> None:
    for size, pix_fmt in (((48, 64), "yuv420p"), ((47, 64), "yuv444p")):
        with VideoWriter(tmp_path / "a.mp4", 25, size[1], size[0]) as writer:
            writer.write(colours(2, *size))
        with av.open(str(tmp_path / "a.mp4")) as container:
            context = container.streams.video[0].codec_context
            assert (context.name, context.pix_fmt, context.colorspace) == ("h264", pix_fmt, 1)  # 1: BT.709


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(path, 25, 8, 8) as writer:
        writer.write(np.zeros((8, 8, 3), np.uint8))
        raise RuntimeError("stop")
    with pytest.raises(VideoError, match="there were no frames"), VideoWriter(path, 25, 8, 8):
        pass
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif", "a.webm", "none/a.mp4", "."])
def test_outputs_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(VideoError, match="cannot be written"), VideoWriter(tmp_path / name, 25, 8, 8) as writer:
        writer.write(np.zeros((8, 8, 3), np.uint8))
    assert os.listdir(tmp_path) == []


def test_wrong_frames_and_rates(tmp_path: Path) -> None:
    for frame in (np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(VideoError, match="frames must be uint8"), VideoWriter(tmp_path / "a.mp4", 25, 8, 8) as out:
            out.write(frame)
    for fps in (0, -1, float("nan"), float("inf"), 1e-9):
        with pytest.raises(VideoError, match="fps must be between"):
            VideoWriter(tmp_path / "a.mp4", fps, 8, 8)
    assert os.listdir(tmp_path) == []


def test_frames_to_video_and_back_is_exact() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(4, 8, 8, 3)
    video = frames_to_video(frames)
    assert video.shape == (3, 4, 8, 8) and video.min() == -1 and video.max() == 1
    assert torch.equal(video_to_frames(video), frames)
    outside = torch.tensor([-5.0, 5.0]).reshape(1, 1, 2, 1).expand(3, 1, 2, 1)
    assert video_to_frames(outside)[0, :, 0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_fit_cuts_the_centre_then_resizes() -> None:
    frames = torch.zeros(2, 40, 100, 3, dtype=torch.uint8)
    frames[:, :, 30:70] = 200  # the centre square
    assert torch.equal(fit(frames, 40, 40), frames[:, :, 30:70])
    assert torch.equal(fit(frames, 10, 10), torch.full((2, 10, 10, 3), 200, dtype=torch.uint8))
    assert fit(frames, 7, 300).shape == (2, 7, 300, 3)
    assert torch.equal(fit(frames, 40, 100), frames)


@pytest.mark.parametrize("size", [(31, 50), (100, 60), (7, 300)])
def test_resizing_on_8_bits_is_that_in_floating_point(size: tuple[int, int]) -> None:
    """To half a level for each pass, the first one enlarged by the second; overshoots beyond black and white differ."""
    frames = torch.randint(64, 192, (2, 72, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    exact = F.interpolate(frames.permute(0, 3, 1, 2).double(), size, mode="bicubic", antialias=True)
    off = resize(frames, *size).permute(0, 3, 1, 2) - exact
    assert off.abs().max() < 1.5 and off.mean().abs() < 0.05


def test_replacing_keeps_links_and_refuses_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    with pytest.raises(FileExistsError, match="not a regular file"), replacing("/dev/null"):
        pass
