"""Which program decodes a video, by name."""

from __future__ import annotations

import os

from tivtok.video.reader import VideoReader


def open_video(
    path: str | os.PathLike[str],
    reader: str = "pyav",
    allow_truncated: bool = False,
    *,
    strict: bool = False,
    member: tuple[int, int] | None = None,
    threads: int = 0,
) -> VideoReader:
    """Open a video file.

    Args:
        path: the file.
        reader: "pyav" (`VideoReader`), "torchcodec" (`tivtok.video.torchcodec_reader.TorchcodecReader`), or
            "torchcodec:DEVICE" with one of torch's devices, "torchcodec:cuda" for NVDEC.
        allow_truncated: as of `VideoReader`.
        strict: as of `VideoReader`.
        member: as of `VideoReader`.
        threads: as of `VideoReader`.

    Raises:
        VideoError: as of the reader.
        ValueError: there is no such reader, what it needs is not installed, or it is not for these options.
    """
    device = _torchcodec_device(reader)
    if device is None:
        return VideoReader(path, allow_truncated, strict=strict, member=member, threads=threads)
    from tivtok.video.torchcodec_reader import TorchcodecReader

    return TorchcodecReader(path, allow_truncated, strict=strict, member=member, threads=threads, device=device)


def check_reader(reader: str, strict: bool = False) -> None:
    """Check what `open_video` needs that is the same for all videos.

    Raises:
        ValueError: as of `open_video`.
    """
    device = _torchcodec_device(reader)
    if device is not None:
        from tivtok.video.torchcodec_reader import check_usable

        check_usable(device, strict)


def _torchcodec_device(reader: str) -> str | None:
    """The device that a reader's name asks torchcodec for; None of "pyav"."""
    if reader == "pyav":
        return None
    name, colon, device = reader.partition(":")
    if name != "torchcodec" or bool(colon) != bool(device):
        raise ValueError(
            f'reader must be pyav, torchcodec, or torchcodec:DEVICE such as torchcodec:cuda, got "{reader}"'
        )
    return device or "cpu"
