"""Small videos of known frames and sound, written packet by packet with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SOUND_RATE = 48_000
TONE = 1000  # Hz
MILLISECOND = Fraction(1, 1000)


def level(number: int) -> int:
    """Of the grey of frame ``number``: neighbours differ, and so do frames that are some apart."""
    return 20 + (number * 37) % 200


def write_video(
    path: Path,
    times: Sequence[int],
    codec: str = "mpeg4",
    tick: Fraction = MILLISECOND,
    rate: int | Fraction = 25,
    sound: tuple[str, float, float, float] | None = None,
    gop: int = 12,
    size: tuple[int, int] = (16, 32),
) -> Path:
    """A video whose frame i is all `level`(i) and is shown at ``times[i]`` ticks.

    Args:
        rate: what the file says that it has.
        sound: codec, when it begins and how long it is in seconds on the clock of ``times``, and when a tone begins
            after silence.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = tick
        stream.codec_context.gop_size = gop
        track = container.add_stream(sound[0], rate=SOUND_RATE, layout="mono") if sound else None
        packets = []
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), level(number), np.uint8), "rgb24")
            frame.pts, frame.time_base = time, tick
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if track is not None and sound is not None:
            packets += _sound(track, *sound[1:])
        packets = [packet for packet in packets if packet.size]
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            container.mux(packet)
    return path


def _sound(track: av.AudioStream, start: float, seconds: float, tone: float) -> list[av.Packet]:
    time = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE + start
    wave = 20_000 * np.sin(2 * np.pi * TONE * time) * (time >= tone)
    frame = av.AudioFrame.from_ndarray(wave[None].astype(np.int16), "s16", "mono")
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, round(start * SOUND_RATE), Fraction(1, SOUND_RATE)
    resampler = av.AudioResampler(track.format, "mono", SOUND_RATE, track.codec_context.frame_size or 1024)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return [packet for part in [*parts, None] for packet in track.encode(part)]


def first_picture_and_tone(path: Path) -> tuple[float, float | None]:
    """When the first picture is shown and when the tone begins, in seconds on the file's clock, as decoders say."""
    picture, tone = None, None
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0], container.streams.audio[0]):
            if isinstance(frame, av.VideoFrame):
                picture = frame.time if picture is None else picture
            elif tone is None:
                wave = np.abs(frame.to_ndarray().astype(np.float64)).reshape(-1)
                loud = wave > 0.2 * (32768 if frame.format.name.startswith("s16") else 1)
                if loud.any():
                    tone = frame.time + float(loud.argmax()) / frame.sample_rate
    assert picture is not None
    return picture, tone
