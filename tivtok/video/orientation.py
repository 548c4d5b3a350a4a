"""Orientation of pictures: display matrices and EXIF orientations, mirrored ones included."""

from __future__ import annotations

import io

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from PIL import ExifTags, Image

# Codecs whose packets are whole picture files, which may have EXIF data.
PICTURE_CODECS = frozenset({"mjpeg", "png", "tiff", "webp"})

# (a, b, c, d) of the display matrix that each EXIF orientation stands for: see `orient`.
EXIF_MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
Matrix = tuple[int, int, int, int]


def exif_matrix(picture: bytes) -> Matrix | None:
    """Matrix of a picture file's EXIF orientation, None where it states none."""
    try:
        with Image.open(io.BytesIO(picture)) as image:
            return EXIF_MATRICES.get(image.getexif().get(ExifTags.Base.Orientation, 0))
    except Exception:  # Pillow raises all sorts of errors, and whether this is a picture is for the decoder to say
        return None


def upright(frame: av.VideoFrame, exif: Matrix | None = None) -> np.ndarray:
    """uint8 RGB (H, W, 3), turned and mirrored as the file says, to the nearest quarter turn.

    Args:
        exif: for a frame of a picture file, by `exif_matrix`.
    """
    rgb = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(orient(rgb, exif or display_matrix(frame)))


def orient(rgb: np.ndarray, matrix: Matrix) -> np.ndarray:
    """A view of (H, W, 3) where column x and row y are at column a x + c y, row b x + d y (ISO/IEC 14496-12, 6.2.2)."""
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        rgb, across, down = rgb.swapaxes(0, 1), c, b
    return rgb[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """(a, b, c, d) as of `orient`: how the frame's file says that it lies."""
    try:
        # Not `frame.side_data`: the frame keeps that one, which keeps the frame, and memory waits for the collector.
        data = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg, call-overload]
    except ValueError:  # there is also a kind of data that PyAV has no name for: it still tells turns
        turns = round(frame.rotation / 90) % 4
        return tuple(EXIF_MATRICES[exif] for exif in (1, 8, 3, 6))[turns]
    if data is None:
        return EXIF_MATRICES[1]
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return a, b, c, d
