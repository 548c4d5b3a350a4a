"""Sound of one file into another: packets are copied as they are, nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType

import av
from av.container import OutputContainer
from av.packet import Packet

from tivtok.files import missing_hint
from tivtok.video.errors import AudioError
from tivtok.video.opening import check_clear, check_decodable, open_input


class AudioCopy(AbstractContextManager["AudioCopy"]):
    """The first audio track of ``source``, added to ``target`` and copied in step with its pictures.

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
            self._target = target
            self._stream = target.add_stream_from_template(self._source.streams.audio[0])
        except BaseException:
            self._source.close()
            raise
        self._packets = self._read()
        self._next = next(self._packets, None)

    def copy_until(self, seconds: float) -> None:
        """Copy all packets that begin before ``seconds``; what begins after the last picture is left out."""
        while self._next is not None and float((self._next.dts or 0) * (self._next.time_base or 0)) < seconds:
            self._next.stream = self._stream
            self._target.mux(self._next)
            self._next = next(self._packets, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._source.close()

    def _read(self) -> Iterator[Packet]:
        """Up to where the file is damaged: the pictures' own reader has reported that."""
        try:
            for packet in self._source.demux(self._source.streams.audio[0]):
                check_clear(packet)
                if packet.dts is not None:
                    yield packet
        except av.FFmpegError:
            return
