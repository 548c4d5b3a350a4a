"""Reading video files by torchcodec: FFmpeg's own libraries, or NVDEC on a GPU.

What a file is, how many frames it has and when they are shown is read as `VideoReader` does. The frames are decoded by
torchcodec, and each must be the one that the file's timestamps say: what cannot be told so is refused, and named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tivtok.video.decoding import Damage, whole_packets
from tivtok.video.errors import VideoError
from tivtok.video.opening import check_clear, file_url
from tivtok.video.orientation import PICTURE_CODECS, orient
from tivtok.video.part import FilePart
from tivtok.video.reader import Picture, VideoReader

OLDEST = "0.11"  # the first that turns frames and says so
_FAILURES = (RuntimeError, ValueError, IndexError)  # torchcodec raises any of these for what a file lacks
ELSE = 'take the reader "pyav"'


class TorchcodecReader(VideoReader):
    """A video file, decoded by torchcodec: as `VideoReader`, with the same frames in the same order.

    Their colours may differ by the rounding of another converter. Of a file that ends within a frame some frames before
    it may be missing, too. Where torchcodec gives another frame than asked for, as it does in MPEG transport streams
    (0.13), or none, that is an error, and no ``allow_truncated`` changes it. torchcodec does not tell what a decoder
    has made up, so `damaged_frames` stays empty, and ``strict`` is refused.

    Args:
        path: the file.
        allow_truncated: as of `VideoReader`.
        strict: must be False.
        member: as of `VideoReader`.
        threads: as of `VideoReader`.
        device: of torch, where frames are decoded: "cpu", or "cuda" for NVDEC. Frames are then copied to the CPU. No
            GPU has run this.

    Raises:
        VideoError: as of `VideoReader`; or the file has no timestamps that tell its frames apart, or holds pictures.
        ValueError: torchcodec or FFmpeg's libraries are not installed, the device cannot be used, or ``strict``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        allow_truncated: bool = False,
        *,
        strict: bool = False,
        member: tuple[int, int] | None = None,
        threads: int = 0,
        device: str = "cpu",
    ) -> None:
        self._open_decoder = check_usable(device, strict)
        super().__init__(path, allow_truncated, member=member, threads=threads)
        self.device = device
        self._end, self._damage = self._ending()

    def _ending(self) -> tuple[int, str]:
        """How many frames there are before one that is not, and how the file is damaged, or ""."""
        with self._open() as container:
            stream = self._stream(container)
            if stream.codec_context.name in PICTURE_CODECS or not self.timeline.by_time:
                lack = "has no timestamps that tell its frames apart" if not self.timeline.by_time else "holds pictures"
                raise VideoError(f"{self.path} {lack}, as torchcodec needs: {ELSE}")
            self._index = stream.index
            there, damage = np.zeros(len(self.timeline) + 1, bool), ""  # the last one stays False
            try:
                for packet in whole_packets(container, stream):
                    check_clear(packet)
                    number = self.timeline.number_of(packet.pts)
                    if number is not None:
                        there[number] = True
            except Damage as error:
                damage = str(error)
        end = int(there.argmin())
        return end, damage or ("" if end == len(self.timeline) else "it has fewer frames than it states")

    def _pictures_from(self, first: int) -> Iterator[tuple[int, Picture]]:
        decoder, turns = self._decoder()
        tick = self.timeline.tick
        assert tick is not None  # there are timestamps
        for number in range(first, self._end):
            try:
                frame = decoder.get_frame_at(number + self._left_out)
            except _FAILURES as error:
                if self._damage:  # FFmpeg wants the packets that are not whole before it gives these frames
                    self._stop(number)
                    return
                raise VideoError(f"{self._at(number)} cannot be read: {_reason(error)}: {ELSE}") from None
            if self.timeline.number_of(round(frame.pts_seconds / tick)) != number:
                raise VideoError(f"{self._at(number)} is given as the one of {frame.pts_seconds:.2f} s: {ELSE}")
            yield number, partial(self._upright, number, frame.data, turns)
        if self._damage:
            self._stop(self._end)

    def _stop(self, number: int) -> None:
        if not self.allow_truncated:
            raise VideoError(f"{self.path} is truncated or damaged after {number} readable frames: {self._damage}")

    def _at(self, number: int) -> str:
        return f"{self.path} by torchcodec: frame {number}{self.timeline.place(number)}"

    def _decoder(self) -> tuple[Any, int]:
        """torchcodec's, of this file, and by how many quarters it turns frames against the clock."""
        source = file_url(self.path) if self.member is None else FilePart(self.path, *self.member)
        try:
            decoder = self._open_decoder(
                source,
                stream_index=self._index,
                dimension_order="NHWC",
                num_ffmpeg_threads=self.threads,
                device=self.device,
            )
        except _FAILURES as error:
            raise VideoError(f"{self.path} cannot be read by torchcodec: {_reason(error)}: {ELSE}") from None
        return decoder, round((decoder.metadata.rotation or 0) / 90)

    def _upright(self, number: int, frame: Tensor, turns: int) -> np.ndarray:
        stored = np.rot90(frame.cpu().numpy(), -turns)
        return self._counted(number, np.ascontiguousarray(orient(stored, self._matrix)))


def _reason(error: Exception) -> str:
    """The first line, without the place in torchcodec's sources."""
    return re.sub(r"^.*\.cpp:\d+, ", "", str(error).splitlines()[0])


def check_usable(device: str, strict: bool) -> Any:
    """Check what is the same for all videos.

    Returns:
        torchcodec's class.

    Raises:
        ValueError: torchcodec is not there, is too old or finds no FFmpeg, the device cannot be used, or ``strict``.
    """
    if strict:
        raise ValueError(f"strict is not for the reader torchcodec, which does not tell of damage: {ELSE}")
    install = "pip install 'tivtok[torchcodec]', and FFmpeg 4 to 8 with its shared libraries"
    try:
        from torchcodec.decoders import VideoDecoder, VideoStreamMetadata
    except ModuleNotFoundError:
        raise ValueError(f'the reader "torchcodec" needs torchcodec: {install}') from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f'the reader "torchcodec" cannot be loaded: {install} ({reason})') from None
    if "rotation" not in VideoStreamMetadata.__dataclass_fields__:
        raise ValueError(f'the reader "torchcodec" needs torchcodec {OLDEST} or newer: {install}')
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'the reader "torchcodec" cannot use the device "{device}": {reason}') from None
    return VideoDecoder
