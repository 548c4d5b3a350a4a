"""Sound of one file into another: packets are copied as they are, nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from types import TracebackType

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from tivtok.files import missing_hint
from tivtok.video.errors import AudioError, VideoError
from tivtok.video.opening import check_clear, check_decodable, open_input
from tivtok.video.reader import VideoReader, video_stream
from tivtok.video.timing import Clock


class AudioCopy(AbstractContextManager["AudioCopy"]):
    """The first audio track of ``source``, added to ``target`` and copied in step with its pictures.

    Sound keeps its place beside the pictures: the first picture of ``source`` is where ``target`` begins. Of the sound
    before it two packets are kept, the one that the beginning falls into and the one that decoders need to get going;
    MP4 and MOV tell players to leave out what comes too early, in Matroska the pictures begin later by as much.

    Raises:
        AudioError: ``source`` cannot be read, or has no sound.
        VideoError: its sound is encrypted, or of a codec unknown here.
        ValueError: ``target`` cannot hold sound of this codec.
    """

    def __init__(self, source: str | os.PathLike[str], target: OutputContainer) -> None:
        try:
            self._source = open_input(source)
        except (av.FFmpegError, OSError) as error:
            raise AudioError(f"the sound of {source} cannot be read: {error.strerror}{missing_hint(source)}") from None
        try:
            if not self._source.streams.audio:
                raise AudioError(f"{source} has no sound to copy")
            check_decodable(self._source.streams.audio[0])
            self._start, self._clock = _beginning(source, self._source)
            self._target = target
            self._stream = target.add_stream_from_template(self._source.streams.audio[0])
        except BaseException:
            self._source.close()
            raise
        self._packets = self._read()
        self._next = next(self._packets, None)

    def copy_until(self, seconds: float) -> None:
        """Copy all packets that begin before ``seconds``; what begins after the last picture is left out."""
        while self._next is not None and float((self._next.pts or 0) * (self._next.time_base or 0)) < seconds:
            self._next.stream = self._stream
            self._target.mux(self._next)
            self._next = next(self._packets, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._source.close()

    def _read(self) -> Iterator[Packet]:
        """The packets from the first picture on, at the times they have beside the pictures.

        Up to where the file is damaged: the pictures' own reader has reported that.
        """
        end = 0
        try:
            for packet in self._source.demux(self._source.streams.audio[0]):
                check_clear(packet)
                if not packet.size:
                    continue
                time = self._clock.time(packet)
                time = end if time is None else time - round(self._start / packet.time_base)
                duration = packet.duration or 0
                end = time + duration
                if end + duration > 0 or time >= 0:
                    packet.pts = packet.dts = time
                    yield packet
        except av.FFmpegError:
            return


def _beginning(source: str | os.PathLike[str], container: InputContainer) -> tuple[Fraction, Clock]:
    """Find when the first picture is shown, or without pictures the sound begins, and the clock that says so."""
    if video_stream(container) is None:
        return Fraction(container.start_time or 0, av.time_base), Clock()
    try:
        timeline = VideoReader(source).timeline
    except VideoError as error:
        raise AudioError(f"the sound of {source} has no place: {error}") from None
    return timeline.start, Clock(timeline.jumps)
