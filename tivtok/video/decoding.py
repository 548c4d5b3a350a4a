"""Decoding of packets to frames, in order, each with what its packet says of it, up to where the file is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from tivtok.video.opening import check_clear
from tivtok.video.orientation import PICTURE_CODECS, Matrix, exif_matrix

# Matroska states how long a track is, and a file cut between two packets reads like a shorter one without this.
MAX_MISSING_SECONDS = 0.5


class Damage(Exception):
    """A file stops being readable; the message says how."""


class Origin(NamedTuple):
    """What the packet says that a frame was made of."""

    time: int | None = None  # when it is shown, in ticks
    corrupt: bool = False
    exif: Matrix | None = None


class Decoded(NamedTuple):
    frame: av.VideoFrame
    origin: Origin

    @property
    def damaged(self) -> bool:
        """Whether the decoder made up some of it, or the packet was not whole."""
        return self.frame.is_corrupt or self.origin.corrupt


def whole_frames(container: InputContainer, stream: VideoStream, threads: int = 0) -> Iterator[Decoded]:
    """The frames of all packets that are whole, from where ``container`` is.

    Args:
        threads: of the decoder, 0 is as many as there are cores.

    Raises:
        Damage: after the last of them, when the file ends early or a packet cannot be decoded.
    """
    _prepare(stream, threads)
    damage: Damage | None = None
    try:
        for packet in whole_packets(container, stream):
            yield from map(_decoded, _decode(packet))
    except (Damage, av.FFmpegError) as error:
        damage = error if isinstance(error, Damage) else Damage(error.strerror)
    try:
        yield from map(_decoded, stream.decode(None))  # what the decoder still holds
    except av.FFmpegError as error:
        damage = damage or Damage(error.strerror)
    if damage:
        raise damage


def whole_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The packets that hold something and are whole, from where ``container`` is.

    Raises:
        Damage: after the last of them, when the file ends early or cannot be read on.
    """
    stated, end = _stated_seconds(container, stream), 0.0
    packets = _packets(container, stream)
    while True:
        try:
            packet, is_last = next(packets, (None, True))
        except av.FFmpegError as error:
            raise Damage(error.strerror) from None
        if packet is None:
            break
        if packet.is_corrupt and is_last:
            raise Damage("it ends within a frame")
        end = max(end, float(((packet.pts or 0) + (packet.duration or 0)) * (packet.time_base or 0)))
        yield packet
    if _index_goes_on(container, stream):
        raise Damage("it ends between frames that its index names")
    if stated - end > MAX_MISSING_SECONDS:
        raise Damage(f"it states {stated:.2f} s and ends after {end:.2f} s")


def frames_from(container: InputContainer, stream: VideoStream, time: int, threads: int = 0) -> Iterator[Decoded]:
    """The frames from a key frame at ``time`` ticks or before on, without those that need what comes before it.

    Raises:
        Damage: the file ends within a frame.
        av.FFmpegError: a packet cannot be read or decoded, or the place cannot be found.
    """
    container.seek(time, stream=stream)
    _prepare(stream, threads)
    key: int | None = None
    for packet, is_last in _packets(container, stream):
        if packet.is_corrupt and is_last:
            raise Damage
        if key is None and not packet.is_keyframe:
            continue
        key = packet.pts if key is None else key
        yield from _shown_from(key, _decode(packet))
    yield from _shown_from(key, stream.decode(None))


def _shown_from(key: int | None, frames: list[av.VideoFrame]) -> Iterator[Decoded]:
    for decoded in map(_decoded, frames):
        if key is not None and decoded.origin.time is not None and decoded.origin.time >= key:
            yield decoded


def _prepare(stream: VideoStream, threads: int) -> None:
    context = stream.codec_context
    if not context.is_open:
        context.thread_type, context.thread_count = "AUTO", threads
        context.copy_opaque = True


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Packet[VideoStream], bool]]:
    """The packets that hold something, and whether each is the last one.

    Those without anything mean that a frame is repeated, and FFmpeg gives none for them; the one after all others is
    PyAV's own.
    """
    held, error = None, None
    packets = container.demux(stream)
    while True:
        try:
            packet = next((packet for packet in packets if packet.size), None)
        except av.FFmpegError as damage:
            packet, error = None, damage
        if held is not None:
            yield held, packet is None
        if packet is None:
            break
        held = packet
    if error is not None:
        raise error


def _decode(packet: Packet[VideoStream]) -> list[av.VideoFrame]:
    picture = packet.stream.codec_context.name in PICTURE_CODECS
    check_clear(packet)
    packet.opaque = Origin(packet.pts, packet.is_corrupt, exif_matrix(bytes(packet)) if picture else None)
    return packet.decode()


def _decoded(frame: av.VideoFrame) -> Decoded:
    return Decoded(frame, frame.opaque if isinstance(frame.opaque, Origin) else Origin(frame.pts))


def _index_goes_on(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the index of an MP4 or QuickTime file names frames beyond the end of the file."""
    size = container.size  # negative where it is not known
    if size < 0 or not container.format.name.startswith("mov,"):
        return False
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Length of the track as a Matroska file states it ("00:00:01.600000000"), 0 where it does not."""
    stated = stream.metadata.get("DURATION", "") if "matroska" in container.format.name else ""
    try:
        hours, minutes, seconds = stated.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0
