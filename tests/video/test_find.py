"""Which files of a folder are taken for videos, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

from tivtok.video import VIDEO_SUFFIXES, VideoError, VideoReader, find_videos, search_folder
from tivtok.video.find import summary

# Suffix -> muxer, encoder, pixel format and size (H.263 and DV have few).
WRITABLE = {
    ".mp4": ("mp4", "libx264", "yuv420p", (32, 48)),
    ".3gp": ("3gp", "libx264", "yuv420p", (32, 48)),
    ".ts": ("mpegts", "libx264", "yuv420p", (32, 48)),
    ".mts": ("mpegts", "libx264", "yuv420p", (32, 48)),
    ".m2ts": ("mpegts", "libx264", "yuv420p", (32, 48)),
    ".vob": ("vob", "mpeg2video", "yuv420p", (32, 48)),
    ".mpg": ("mpeg", "mpeg1video", "yuv420p", (32, 48)),
    ".wmv": ("asf", "wmv2", "yuv420p", (32, 48)),
    ".asf": ("asf", "msmpeg4", "yuv420p", (32, 48)),
    ".flv": ("flv", "flv", "yuv420p", (32, 48)),
    ".ogv": ("ogg", "libvpx", "yuv420p", (32, 48)),
    ".mxf": ("mxf", "mpeg2video", "yuv420p", (32, 48)),
    ".dv": ("dv", "dvvideo", "yuv420p", (576, 720)),
    ".y4m": ("yuv4mpegpipe", "wrapped_avframe", "yuv420p", (32, 48)),
    ".h264": ("h264", "libx264", "yuv420p", (32, 48)),
    ".ivf": ("ivf", "libvpx", "yuv420p", (32, 48)),
    ".gif": ("gif", "gif", "rgb8", (32, 48)),
    ".apng": ("apng", "apng", "rgb24", (32, 48)),
    ".nut": ("nut", "mpeg4", "yuv420p", (32, 48)),
    ".mjpeg": ("mjpeg", "mjpeg", "yuvj420p", (32, 48)),
}


@pytest.mark.parametrize("suffix", WRITABLE)
def test_what_the_reader_reads_is_found(tmp_path: Path, suffix: str) -> None:
    muxer, encoder, pixels, size = WRITABLE[suffix]
    path = tmp_path / f"clip{suffix.upper()}"
    try:
        with av.open(str(path), "w", format=muxer) as container:
            stream = container.add_stream(encoder, rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = pixels
            for level in range(5):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 40 * level, np.uint8), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this build of FFmpeg cannot write it: {error}")
    assert find_videos(tmp_path) == [path]
    assert len(list(VideoReader(path))) == 5


def test_still_pictures_sound_and_text_are_not_taken() -> None:
    assert not VIDEO_SUFFIXES & {".png", ".jpg", ".webp", ".avif", ".mp3", ".m4a", ".ogg", ".txt", ".json", ".tar", ""}


def test_what_is_left_out_and_why(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".cache").mkdir(parents=True)
    (tmp_path / "folder.mp4").mkdir()
    for name in ("b.MP4", "notes.txt", "._b.MP4", ".hidden.mp4", "deep/a.mkv", "deep/.cache/x.mp4", "folder.mp4/c.ts"):
        (tmp_path / name).touch()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "itself.mp4").symlink_to(tmp_path / "itself.mp4")
    (tmp_path / "same.mp4").symlink_to(tmp_path / "b.MP4")
    os.mkfifo(tmp_path / "pipe.mp4")
    found = search_folder(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found.files] == [
        *("b.MP4", "deep/a.mkv", "folder.mp4/c.ts", "same.mp4")
    ]
    assert {str(path.relative_to(tmp_path)): reason for path, reason in found.left_out} == {
        "._b.MP4": "added by macOS",
        ".hidden.mp4": "hidden",
        "deep/.cache": "hidden",
        "gone.mp4": "a link to nothing",
        "itself.mp4": "a link to nothing",
        "notes.txt": "not named like a video",
        "pipe.mp4": "not a regular file",
    }
    assert "left out 1: not named like a video (notes.txt)" in list(summary(found.left_out))


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    data, far = tmp_path / "data", tmp_path / "far"
    (data / "real").mkdir(parents=True)
    far.mkdir()
    (data / "real" / "a.mp4").touch()
    (far / "b.mp4").touch()
    (data / "again").symlink_to(data / "real")
    (data / "real" / "up").symlink_to(data)
    (data / "train").symlink_to(far)
    (data / "val").symlink_to(far)
    found = search_folder(data)
    assert found.files == [data / "real" / "a.mp4", data / "train" / "b.mp4"]
    assert [path for path, _ in found.left_out] == [data / "again", data / "real" / "up", data / "val"]


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match="none is missing, expected a folder"):
        find_videos(tmp_path / "none")
    with pytest.raises(VideoError, match=r"a\.mp4 is not a folder"):
        find_videos(tmp_path / "a.mp4")


def test_a_summary_names_the_first(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    assert list(summary(search_folder(tmp_path).left_out)) == [
        "left out 5: not named like a video (0.txt, 1.txt, 2.txt, ...)"
    ]
