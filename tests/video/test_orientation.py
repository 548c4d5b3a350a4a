"""All eight ways that a picture can lie, in EXIF data and in display matrices; Pillow says what is right."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from tivtok.video import VideoReader, VideoWriter
from tivtok.video.clips import read_video
from tivtok.video.orientation import EXIF_MATRICES
from tivtok.video.sources import VideoRef

FOUR = np.kron(np.array([[250, 170], [90, 10]], np.uint8), np.ones((16, 24), np.uint8))  # a level for each quarter
PICTURE = np.repeat(FOUR[:, :, None], 3, axis=2)
UNITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def as_pillow_has_it(orientation: int) -> np.ndarray:
    image = Image.fromarray(PICTURE)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PICTURE).save(path, exif=exif, **({"quality": 95} if suffix != ".png" else {}))
    (frame,) = VideoReader(path)
    right = as_pillow_has_it(orientation)
    assert frame.shape == right.shape and np.abs(frame.astype(int) - right).max() < 40


def write_turned(path: Path, orientation: int) -> Path:
    """A video of `PICTURE` with a matrix in the track header of an MP4, big-endian, 16.16 fixed point."""
    with VideoWriter(path, 25, PICTURE.shape[1], PICTURE.shape[0], crf=1) as writer:
        writer.write(PICTURE)
    a, b, c, d = (value << 16 for value in EXIF_MATRICES[orientation])
    data = path.read_bytes()
    at = data.index(UNITY, data.index(b"tkhd"))
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_display_matrix(tmp_path: Path, orientation: int) -> None:
    path = write_turned(tmp_path / "a.mp4", orientation)
    (frame,) = VideoReader(path)
    right = as_pillow_has_it(orientation)
    assert frame.shape == right.shape and np.abs(frame.astype(int) - right).max() < 12
    assert np.array_equal(read_video(VideoRef("a", path))[0], frame)
