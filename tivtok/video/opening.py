"""Opening files with FFmpeg. A path is a path, even where it looks like a URL or a pattern."""

from __future__ import annotations

import io
import os
from typing import Any

import av
from av.container import Container, InputContainer
from av.packet import Packet
from av.stream import Stream

from tivtok.video.errors import VideoError

_FILE = "file:"

# Titles in other encodings do not matter here. PyAV raises an error for them up to 18, and never since 19.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def file_url(path: str | os.PathLike[str]) -> str:
    """``path`` for `av.open`, which takes what stands before a colon ("http:x.mp4", "pipe:0") for a protocol."""
    return f"{_FILE}{os.fspath(path)}"


def path_of(container: Container) -> str:
    return container.name.removeprefix(_FILE)


def open_input(source: str | os.PathLike[str] | io.RawIOBase) -> InputContainer:
    """Open a file to read, by its path or as something that reads like one.

    Raises:
        av.FFmpegError, OSError: it cannot be opened, or FFmpeg does not know its format.
    """
    # A picture named "%03d.png" or "a*.png" is no sequence.
    file = source if isinstance(source, io.RawIOBase) else file_url(source)
    return av.open(file, "r", options={"pattern_type": "none"}, **_LENIENT)


def check_decodable(stream: Stream) -> None:
    """Raises VideoError: by the file's header the stream is encrypted, or of a codec unknown here."""
    if stream.codec_context is None:
        raise VideoError(f"{path_of(stream.container)} cannot be read: there is no decoder for its {stream.type} codec")
    # Matroska gives the key's name, MP4 files of one shop have a codec tag of their own.
    if "enc_key_id" in stream.metadata or stream.codec_context.codec_tag == "drmi":
        raise _encrypted(stream)


def check_clear(packet: Packet) -> None:
    """Raises VideoError: the packet is encrypted (MP4 says so for each)."""
    if packet.has_sidedata("encryption_info"):
        raise _encrypted(packet.stream)


def _encrypted(stream: Stream) -> VideoError:
    return VideoError(f"{path_of(stream.container)} cannot be read: its {stream.type} is encrypted")
