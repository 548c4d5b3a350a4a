"""Where videos come from and how parts of them are read: exactly the frames asked for, in every form of ``data``."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tivtok.training import TrainConfig
from tivtok.training.split import split_sources
from tivtok.video import VideoError, VideoWriter, tars
from tivtok.video.clips import at_rate, frame_indices, read_clip, read_video
from tivtok.video.sources import VideoRef, find_sources

FPS, FRAMES = 10, 40


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame t is a grey of level 6 t: its number can be read off."""
    path = tmp_path_factory.mktemp("numbered") / "numbered.mp4"
    with VideoWriter(path, fps=FPS, width=32, height=24, crf=1) as writer:
        for t in range(FRAMES):
            writer.write(np.full((24, 32, 3), 6 * t, np.uint8))
    return path


def numbers(frames: torch.Tensor) -> list[int]:
    return (frames.float().mean(dim=(1, 2, 3)) / 6).round().int().tolist()


def test_all_frames_and_any_frames(video: Path) -> None:
    ref = VideoRef(video.name, video)
    assert numbers(read_video(ref)) == list(range(FRAMES))
    assert numbers(read_clip(ref, 4)) == [0, 1, 2, 3]
    assert numbers(read_clip(ref, 3, stride=2, position=1.0)) == [35, 37, 39]
    for position in (0.2, 0.55, 0.9):
        indices = frame_indices(FRAMES, 5, 3, position)
        assert numbers(read_clip(ref, 5, stride=3, position=position)) == indices.tolist()


def test_frames_at_a_rate(video: Path) -> None:
    """Those that are shown at its times: some of a faster video, some twice of a slower one."""
    ref = VideoRef(video.name, video)
    assert at_rate(FRAMES, FPS, 5).tolist() == list(range(0, FRAMES, 2))
    assert numbers(read_clip(ref, 4, fps=5)) == [0, 2, 4, 6]
    assert numbers(read_clip(ref, 4, position=1.0, fps=5)) == [32, 34, 36, 38]
    assert numbers(read_clip(ref, 6, fps=15)) == [0, 0, 1, 2, 2, 3]
    assert numbers(read_video(VideoRef("part", video, start=1.0, end=2.0), fps=4)) == [10, 12, 15, 17]


def test_part_of_a_video(video: Path) -> None:
    ref = VideoRef(video.name, video, start=1.0, end=2.0)
    assert numbers(read_video(ref)) == list(range(10, 20))
    assert numbers(read_clip(ref, 4)) == [10, 11, 12, 13]
    assert numbers(read_clip(ref, 4, position=1.0)) == [16, 17, 18, 19]


@pytest.mark.parametrize(
    ("num_frames", "count", "stride", "position", "expected"),
    [
        (10, 4, 3, 1.0, [0, 3, 6, 9]),
        (9, 4, 3, 0.0, [0, 1, 2, 3]),
        (9, 4, 3, 1.0, [5, 6, 7, 8]),
        (2, 4, 1, 0.7, [0, 1, 1, 1]),
        (0, 2, 1, 0.0, [0, 0]),
    ],
)
def test_frames_of_a_clip(num_frames, count, stride, position, expected) -> None:
    assert frame_indices(num_frames, count, stride, position).tolist() == expected


def test_tars_are_read_where_their_members_lie(video: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.tar", "more/b.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member in ("0001.json", "0001.mp4", "0002.mp4"):
                tar.add(video, f"shard/{Path(name).stem}-{member}")
    refs, left_out = find_sources(tmp_path)
    assert [ref.name for ref in refs] == ["a-0001.mp4", "a-0002.mp4", "b-0001.mp4", "b-0002.mp4"]
    assert [path.name for path, reason in left_out if reason == "not named like a video"] == [
        "a-0001.json",
        "b-0001.json",
    ]
    assert all(numbers(read_clip(ref, 3, position=0.5)) == [19, 20, 21] for ref in refs)


def test_tars_are_walked_through_once(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they change; and again where the file that says so is damaged, or cannot be written."""
    walked: list[str] = []
    monkeypatch.setattr(tars, "_walk", lambda path, walk=tars._walk: walked.append(path.name) or walk(path))
    monkeypatch.setattr(tars, "cache_folder", lambda: tmp_path / "home")
    data = tmp_path / "data"
    data.mkdir()
    path = data / "a\udcff.tar"  # a name that is not UTF-8
    with tarfile.open(path, "w") as tar:
        tar.add(video, "0001.mp4")
    once, twice = find_sources(data), find_sources(data)
    assert once == twice and len(walked) == 1
    with tarfile.open(path, "a") as tar:
        tar.add(video, "0002.mp4")
    assert [ref.name for ref in find_sources(data).videos] == ["0001.mp4", "0002.mp4"] and len(walked) == 2
    (kept,) = (tmp_path / "home" / "tars").iterdir()
    kept.write_text(kept.read_text()[:-5])
    assert len(find_sources(data).videos) == 2 and len(walked) == 3
    monkeypatch.setattr(tars, "cache_folder", lambda: path)
    assert len(find_sources(data).videos) == 2 and len(walked) == 4


def test_lists_name_files_and_their_parts(video: Path) -> None:
    path = video.parent / "list.csv"
    path.write_text(f"path,start,end\n{video.name},,\n{video.name},1,2\n{video.name},3,\n")
    refs = find_sources(path).videos
    assert [(ref.path, ref.start, ref.end) for ref in refs] == [
        (video, 0.0, None),
        (video, 1.0, 2.0),
        (video, 3.0, None),
    ]
    path.write_text(f"path\n{video.name}\n")
    assert find_sources(path).videos == [VideoRef(video.name, video)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\nx.mp4\n", r"must have the column path, and start and end or neither, got \['file'\]"),
        ("path,start\nx.mp4,1\n", "must have the column path, and start and end"),
        ("path,start,end\nx.mp4,2,1\n", "line 2: expected a path and seconds 0 <= start < end"),
        ("path,start,end\nx.mp4,a,\n", "line 2: expected"),
        ("path,start,end\nx.mp4\nx.mp4,1,2,3\n", "line 3: expected"),
        ("path\n", "has no videos"),
    ],
)
def test_mistakes_in_a_list_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(VideoError, match=message):
        find_sources(path)


def test_what_is_no_data_is_named(tmp_path: Path, video: Path) -> None:
    with pytest.raises(VideoError, match=r"must be a folder or a \.csv or \.parquet list, got .*nowhere \(missing\)"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(VideoError, match="has no videos"):
        find_sources(tmp_path)
    (tmp_path / "broken.tar").write_bytes(b"x" * 2000)
    with pytest.raises(VideoError, match=r"broken\.tar cannot be read as an uncompressed tar"):
        find_sources(tmp_path)
    for ref in (VideoRef("gone.mp4", tmp_path / "gone.mp4"), VideoRef("tar", tmp_path / "broken.tar")):
        with pytest.raises(VideoError, match=f"{ref.name} .* cannot be read"):
            read_clip(ref, 1)
    with pytest.raises(VideoError, match="no frame from 60"):
        read_clip(VideoRef("late", video, start=60), 1)


def test_held_out_videos_are_never_trained_on(config: TrainConfig, video: Path) -> None:
    training, held_out, _ = split_sources(config)
    assert [ref.name for ref in training] == ["a.mp4", "b.mp4"] and [ref.name for ref in held_out] == ["test.mp4"]
    left_alone = replace(config, excluded=("a*",))
    assert [[ref.name for ref in refs] for refs in split_sources(left_alone)[:2]] == [["b.mp4"], ["test.mp4"]]
    elsewhere = replace(config, held_out=(), validation=video.parent)
    training, held_out, _ = split_sources(elsewhere)
    assert len(training) == 3 and [ref.name for ref in held_out] == ["numbered.mp4"]
    with pytest.raises(ValueError, match=r"has 3 videos, 0 of them match held_out = \['x'\], validation is None"):
        split_sources(replace(config, held_out=("x",)))
    assert [ref.name for ref in split_sources(replace(config, held_out=("[ab]*",), held_out_clips=1))[1]] == ["a.mp4"]
