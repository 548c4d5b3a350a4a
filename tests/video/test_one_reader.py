"""Training and streaming see the same frames, whatever the file; damage that a decoder makes up for is reported."""

from __future__ import annotations

import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from made import level, write_video

from tivtok.cli import main
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoError, VideoReader
from tivtok.video.clips import frame_indices, read_clip, read_video
from tivtok.video.sources import VideoRef, find_sources

DATA = Path(__file__).parents[1] / "data" / "videos"
TIMES = [100 + 40 * i for i in range(60)]
KINDS = {
    "a.mp4": "libx264",
    "long_groups.mkv": "libx264",
    "a.mov": "mpeg4",
    "a.ts": "libx264",
    "a.webm": "libvpx",
    "a.avi": "mpeg4",
    "avc.avi": "libx264",
    "a.flv": "flv",
    "a.h264": "libx264",
    "a.m4v": "mpeg4",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    made = {}
    for name, codec in KINDS.items():
        raw = name.endswith((".avi", ".h264", ".m4v"))
        times, tick = (range(len(TIMES)), Fraction(1, 25)) if raw else (TIMES, Fraction(1, 1000))
        made[name] = write_video(folder / name, times, codec, tick, gop=250 if "long" in name else 12)
    tar_path = folder / "a.tar"
    with tarfile.open(tar_path, "w") as tar:
        tar.add(made["a.mp4"], "member.mp4")
    return made | {path.name: path for path in DATA.iterdir() if path.name != "lost_packets.ts"} | {"a.tar": tar_path}


NAMES = [*KINDS, "negative.mkv", "late_start.ts", "repeats.ogv", "a.tar"]


def ref_of(path: Path, start: float = 0.0, end: float | None = None) -> VideoRef:
    member = None
    if path.suffix == ".tar":
        (found,) = (ref for ref in find_sources(path.parent).videos if ref.path == path)
        member = found.member
    return VideoRef(path.name, path, start, end, member)


@pytest.mark.parametrize("name", NAMES)
def test_clips_and_videos_have_the_frames_of_the_stream(files: dict[str, Path], name: str) -> None:
    ref = ref_of(files[name])
    whole = np.stack(list(VideoReader(ref.path, member=ref.member)))
    if name in KINDS:
        np.testing.assert_allclose(whole[:, 0, 0, 0], [level(i) for i in range(len(TIMES))], atol=12)
    assert np.array_equal(read_video(ref), whole)
    for stride in (1, 3):
        for position in (0.0, 0.13, 0.5, 0.77, 1.0):
            indices = frame_indices(len(whole), 5, stride, position)
            assert np.array_equal(read_clip(ref, 5, stride, position), whole[indices]), (stride, position)


@pytest.mark.parametrize("name", [*KINDS, "a.tar", "negative.mkv"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.4, 1.2), (1.0, None), (0.41, 0.83)])
def test_spans_hold_the_frames_that_begin_within_them(
    files: dict[str, Path], name: str, span: tuple[float, float | None]
) -> None:
    start, end = span
    ref = ref_of(files[name], start, end)
    whole = np.stack(list(VideoReader(ref.path, member=ref.member)))
    wanted = [i for i in range(len(whole)) if start - 1e-3 <= i / 25 < (end or 99) - 1e-3]
    assert np.array_equal(read_video(ref), whole[wanted])
    assert np.array_equal(read_clip(ref, 4), whole[wanted[:4]])
    assert np.array_equal(read_clip(ref, 4, position=1.0), whole[wanted[-4:]])


def test_reading_from_the_middle_starts_at_a_key_frame(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at the beginning of the file, where timestamps tell frames apart."""
    reader = VideoReader(files["a.mp4"])
    monkeypatch.setattr(reader, "_decode", lambda container: pytest.fail("read from the start"))
    assert abs(int(reader.read([50])[0, 0, 0, 0]) - level(50)) < 12


def test_repeated_frames_are_no_damage() -> None:
    """FFmpeg gives no frame for an empty packet of Theora: 15 of 20."""
    reader = VideoReader(DATA / "repeats.ogv", strict=True)
    assert len(list(reader)) == 15 and reader.damaged_frames == []


def test_damage_that_is_made_up_for_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path, model = DATA / "lost_packets.ts", tmp_path / "model"
    reader = VideoReader(path)
    assert len(list(reader)) == 93 and reader.damaged_frames == [51]
    assert "1 of 93 frames" in reader.damage() and "frame 51" in reader.damage()
    assert VideoReader(DATA / "late_start.ts").damage() == ""
    with pytest.raises(VideoError, match="damaged: frame 51"):
        list(VideoReader(path, strict=True))

    torch.manual_seed(0)
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)
    TivTok(config).save_pretrained(model)
    arguments = ["encode", str(path), str(tmp_path / "a.tivtok"), "--model", str(model), "--size", "16x16"]
    capsys.readouterr()
    assert main([*arguments, "--strict"]) == 1
    assert "damaged: frame 51" in capsys.readouterr().err and not (tmp_path / "a.tivtok").exists()
    assert main(arguments) == 0
    err = capsys.readouterr().err
    assert err.startswith("tivtok: warning: ") and err.count("\n") == 1 and "1 of 93 frames" in err
    assert Tokens.load(tmp_path / "a.tivtok").num_frames == 93

    videos, shards = tmp_path / "videos", tmp_path / "shards"
    videos.mkdir()
    (videos / "lost.mkv").write_bytes(path.read_bytes())  # named so that it is taken for a video
    assert main(["encode-dir", str(videos), str(shards), "--model", str(model)]) == 0
    assert "1 of 93 frames" in capsys.readouterr().err
    assert main(["encode-dir", str(videos), str(tmp_path / "strict"), "--model", str(model), "--strict"]) == 1

    read_video(VideoRef("lost", path))
    assert "1 of" in caplog.text
    with pytest.raises(VideoError, match="1 of 93 frames"):
        read_video(VideoRef("lost", path), strict=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first, last", [(0, None), (17, 41), (41, None), (59, 60), (3, 3)])
def test_a_run_of_frames_is_that_part_of_all(files: dict[str, Path], name: str, first: int, last: int | None) -> None:
    reader = VideoReader(files[name], member=ref_of(files[name]).member)
    every = list(reader)
    if len(every) <= first:
        pytest.skip("the file is shorter")
    run = list(reader.frames(first, last))
    assert len(run) == len(every[first:last]) == reader.num_read
    assert all(np.array_equal(a, b) for a, b in zip(run, every[first:last], strict=True))
