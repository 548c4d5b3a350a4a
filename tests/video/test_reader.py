"""Reading videos: what comes back, and the one-line errors for what cannot."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tivtok.video import VideoError, VideoReader, find_videos


def gray(index: int) -> int:
    return 30 + 8 * index


def write_grays(
    path: Path,
    num_frames: int,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pts: list[int] | None = None,
    rotation: int = 0,
    audio: bool = False,
    grain: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """A video whose frame i is all gray(i), except for a white upper left corner.

    ``pts`` are in milliseconds. ``grain``: noise on all but the last columns, so that all frames cost about the same.
    """
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(
            codec, rate=1000 if pts else 25, options={"crf": "1"} if codec == "libx264" else {}
        )
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=8000) if audio else None
        for index in range(num_frames):
            rgb = np.full((*size, 3), gray(index), np.uint8)
            rgb[: size[0] // 4, : size[1] // 4] = 255
            if grain:
                rgb[:, :-16] += rng.integers(0, 20, rgb[:, :-16].shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            if pts:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def assert_grays(reader: VideoReader, num_frames: int) -> None:
    levels = [int(frame[-1, -1, 0]) for frame in reader]
    np.testing.assert_allclose(levels, [gray(i) for i in range(num_frames)], atol=3)


def test_frames_come_in_order_as_often_as_asked(tmp_path: Path) -> None:
    reader = VideoReader(write_grays(tmp_path / "a.mp4", 20))
    assert (reader.height, reader.width, reader.fps, reader.expected_frames) == (48, 64, 25, 20)
    frame = next(iter(reader))
    assert frame.dtype == np.uint8 and frame.shape == (48, 64, 3)
    assert_grays(reader, 20)
    assert_grays(reader, 20)


def test_chunks_hold_all_frames(tmp_path: Path) -> None:
    chunks = list(VideoReader(write_grays(tmp_path / "a.mp4", 20)).chunks(8))
    assert [tuple(c.shape) for c in chunks] == [(8, 48, 64, 3), (8, 48, 64, 3), (4, 48, 64, 3)]
    assert all(c.dtype == torch.uint8 for c in chunks)
    assert abs(int(chunks[2][0, -1, -1, 0]) - gray(16)) <= 3


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (1, 1), (3, 129)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    reader = VideoReader(write_grays(tmp_path / "a.mkv", 3, size))
    assert (reader.height, reader.width) == size
    assert_grays(reader, 3)


def test_one_frame(tmp_path: Path) -> None:
    assert_grays(VideoReader(write_grays(tmp_path / "a.mp4", 1)), 1)


def test_sound_is_left_out(tmp_path: Path) -> None:
    assert_grays(VideoReader(write_grays(tmp_path / "a.mp4", 5, audio=True)), 5)


def test_variable_frame_rate_keeps_every_frame_once_at_the_average_rate(tmp_path: Path) -> None:
    reader = VideoReader(write_grays(tmp_path / "a.mp4", 5, pts=[0, 40, 400, 440, 800]))
    assert_grays(reader, 5)
    assert reader.fps is not None and 5 <= reader.fps <= 6.5  # 5 frames in a little more than 0.8 s


@pytest.mark.parametrize("rotation, corner", [(90, "lower left"), (180, "lower right"), (-90, "upper right")])
def test_rotation_is_applied(tmp_path: Path, rotation: int, corner: str) -> None:
    """Degrees are counter-clockwise, so the white upper left corner goes to the lower left with 90."""
    reader = VideoReader(write_grays(tmp_path / "a.mp4", 3, (48, 64), rotation=rotation))
    assert (reader.height, reader.width) == ((48, 64) if rotation == 180 else (64, 48))
    frame = next(iter(reader))
    corners = {
        "upper left": frame[2, 2, 0],
        "upper right": frame[2, -3, 0],
        "lower left": frame[-3, 2, 0],
        "lower right": frame[-3, -3, 0],
    }
    assert max(corners, key=lambda name: corners[name]) == corner


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("text.mp4", b"hello world\n" * 100, "cannot be read as a video"),
        ("notes.txt", b"hello world\n" * 100, "it is text"),
        ("empty.mp4", b"", "cannot be read as a video"),
        ("noise.mkv", bytes(range(256)) * 40, "cannot be read as a video"),
    ],
)
def test_what_is_no_video(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match=reason) as error:
        VideoReader(path)
    assert name in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="is missing"):
        VideoReader(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="is not a file"):
        VideoReader(tmp_path)


def test_sound_alone_has_no_video_stream(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        VideoReader(tmp_path / "a.mp4")


def test_zero_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="no video frames"):
        VideoReader(path)


@pytest.mark.parametrize("suffix, options", [(".mp4", {"movflags": "faststart"}), (".mkv", None), (".avi", None)])
def test_a_truncated_file_gives_its_frames_then_an_error_that_counts_them(
    tmp_path: Path, suffix: str, options: dict[str, str] | None
) -> None:
    whole = write_grays(tmp_path / f"whole{suffix}", 28, grain=True, options=options).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(len(whole) * 0.4)])
    levels: list[int] = []
    with pytest.raises(VideoError, match=r"truncated or damaged after \d+ readable frames") as error:
        for frame in VideoReader(path):
            levels.append(int(frame[-1, -1, 0]))
    assert 0 < len(levels) < 28 and f"after {len(levels)} readable frames" in str(error.value)
    assert all(before < after for before, after in pairwise(levels))
    assert len(list(VideoReader(path, allow_truncated=True))) == len(levels)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_file_that_ends_just_behind_a_frame_is_truncated_as_well(tmp_path: Path, suffix: str) -> None:
    """FFmpeg reads it like a shorter one; its index names more frames than there are."""
    path = write_grays(tmp_path / f"a{suffix}", 12, grain=True, options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = sorted(entry.pos + entry.size for entry in container.streams.video[0].index_entries)
    whole = path.read_bytes()
    for count, end in enumerate(ends[:-1], 1):
        path.write_bytes(whole[:end])
        with pytest.raises(VideoError, match=f"truncated or damaged after {count} readable frames"):
            list(VideoReader(path))
        assert len(list(VideoReader(path, allow_truncated=True))) == count
    path.write_bytes(whole[: ends[-1]])
    assert len(list(VideoReader(path))) == 12


def test_truncated_before_its_index(tmp_path: Path) -> None:
    """Without ``faststart`` the index of an MP4 comes last, and nothing can be read without it."""
    path = write_grays(tmp_path / "a.mp4", 10, grain=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match="cannot be read as a video"):
        VideoReader(path, allow_truncated=True)


def test_find_videos(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.MP4", "a.txt", "deep/a.mkv"):
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == [tmp_path / "b.MP4", tmp_path / "deep" / "a.mkv"]
