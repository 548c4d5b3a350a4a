"""Sound that goes with a decoded video."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

from tivtok.video import VideoError, VideoReader, VideoWriter
from tivtok.video.audio import AudioError

RATE = 8000


def write_source(path: Path, seconds: float, codec: str = "aac") -> Path:
    """A file with a rising tone and no pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        time = np.arange(int(seconds * RATE)) / RATE
        wave = np.sin(2 * np.pi * 200 * time * (1 + time)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray((wave[None] * 30_000).astype(np.int16), "s16", "mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, "mono", RATE, stream.codec_context.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.size]


def write_video(path: Path, num_frames: int, audio_from: Path) -> None:
    with VideoWriter(path, 25, 32, 16, audio_from=audio_from) as out:
        out.write(np.zeros((num_frames, 16, 32, 3), np.uint8))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_packets_are_copied_up_to_the_last_picture(tmp_path: Path, suffix: str) -> None:
    sound = write_source(tmp_path / "sound.mp4", 3.0)
    whole = packets(sound)
    write_video(tmp_path / f"long{suffix}", 100, sound)
    assert packets(tmp_path / f"long{suffix}") == whole
    write_video(tmp_path / f"short{suffix}", 25, sound)
    short = packets(tmp_path / f"short{suffix}")
    assert short == whole[: len(short)] and len(short) == pytest.approx(len(whole) / 3, abs=2)
    assert len(list(VideoReader(tmp_path / f"short{suffix}"))) == 25


def test_what_cannot_be_copied_leaves_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 5, write_source(tmp_path / "sound.mp4", 0.5))
    with VideoWriter(tmp_path / "silent.mp4", 25, 32, 16) as out:
        out.write(np.zeros((5, 16, 32, 3), np.uint8))
    (tmp_path / "text.txt").write_text("hello")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(AudioError, match=r"silent\.mp4 has no sound"):
        write_video(tmp_path / "b.mp4", 5, tmp_path / "silent.mp4")
    for name in ("none.mp4", "text.txt"):
        with pytest.raises(AudioError, match=name):
            write_video(tmp_path / "b.mp4", 5, tmp_path / name)
    with pytest.raises(VideoError, match=r"b\.mp4 cannot be written"):  # no such codec in its container
        write_video(tmp_path / "b.mp4", 5, write_source(tmp_path / "sound.wav", 0.5, "pcm_mulaw"))
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "sound.wav"])
