"""The reader torchcodec against the one of PyAV: the same frames at the same times, or an error that says why not.

Runs where torchcodec and FFmpeg's shared libraries are installed; what is said where they are not, is tested anywhere.
"""

from __future__ import annotations

import sys
import tarfile
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import level, write_video
from test_orientation import as_pillow_has_it, write_turned
from test_reader import write_grays

from tivtok.cli import main
from tivtok.pipeline import Encoder
from tivtok.tokens import Tokens
from tivtok.video import VideoError, VideoReader, VideoWriter
from tivtok.video.orientation import EXIF_MATRICES
from tivtok.video.readers import check_reader, open_video
from tivtok.video.source import Source
from tivtok.video.sources import VideoRef, find_sources

DATA = Path(__file__).parents[1] / "data" / "videos"
FRAMES = 40


def installed() -> bool:
    try:
        check_reader("torchcodec")
    except ValueError:
        return False
    return True


needs_torchcodec = pytest.mark.skipif(not installed(), reason="needs torchcodec and FFmpeg's shared libraries")


def assert_same(path: Path, member: tuple[int, int] | None = None, first: int = 0, last: int | None = None) -> None:
    """Both readers give the same pictures, to the rounding of colours."""
    readers = [open_video(path, name, member=member) for name in ("pyav", "torchcodec")]
    assert readers[0].fps == readers[1].fps and readers[0].expected_frames == readers[1].expected_frames
    ours, theirs = (np.stack(list(reader.frames(first, last))).astype(int) for reader in readers)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 3
    assert readers[0].num_read == readers[1].num_read == len(ours)


KINDS = {"a.mp4": "libx264", "a.mkv": "libx264", "a.mov": "mpeg4", "a.webm": "libvpx"}


def write_kind(path: Path, codec: str, gap: int) -> Path:
    """40 frames, ``gap`` milliseconds apart, or at a variable rate."""
    times = [100 + sum(gap or 20 + (37 * i) % 90 for i in range(k)) for k in range(FRAMES)]
    return write_video(path, times, codec)


@needs_torchcodec
@pytest.mark.parametrize("gap", [40, 0])
@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(tmp_path: Path, name: str, gap: int) -> None:
    """From the start, from the middle, and single frames."""
    path = write_kind(tmp_path / name, KINDS[name], gap)
    assert_same(path)
    assert_same(path, first=17, last=31)
    reader = open_video(path, "torchcodec")
    levels = reader.read([3, 18, 39])[:, 0, 0, 0].int()
    assert (levels - torch.tensor([level(i) for i in (3, 18, 39)])).abs().max() < 12
    assert [len(chunk) for chunk in reader.chunks(16)] == [16, 16, 8]


@needs_torchcodec
@pytest.mark.parametrize(
    "name", ["a.ts", "a.flv", "negative.mkv", "late_start.ts", "b_frames.avi", "repeats.ogv", "lost_packets.ts"]
)
def test_other_kinds_are_read_right_or_refused(tmp_path: Path, name: str) -> None:
    """torchcodec 0.13 gives other frames than asked for, or none, of most of these."""
    kinds = {"a.ts": "libx264", "a.flv": "flv"}
    path = write_kind(tmp_path / name, kinds[name], 40) if name in kinds else DATA / name
    for truncated in (False, True):
        try:
            frames = list(open_video(path, "torchcodec", truncated))
        except VideoError as error:
            assert str(path) in str(error) and 'take the reader "pyav"' in str(error)
        else:
            assert np.abs(np.stack(frames).astype(int) - np.stack(list(VideoReader(path, truncated)))).max() <= 3


@needs_torchcodec
@pytest.mark.parametrize("size", [(47, 63), (1, 1), (3, 129)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    assert_same(write_grays(tmp_path / "a.mkv", 3, size))


@needs_torchcodec
@pytest.mark.parametrize("orientation", EXIF_MATRICES)
def test_turned_and_mirrored(tmp_path: Path, orientation: int) -> None:
    (frame,) = open_video(write_turned(tmp_path / "a.mp4", orientation), "torchcodec")
    right = as_pillow_has_it(orientation)
    assert frame.shape == right.shape and np.abs(frame.astype(int) - right).max() < 12


@needs_torchcodec
def test_in_a_tar_and_of_any_name(tmp_path: Path) -> None:
    path = write_grays(tmp_path / "http:a%03d.mp4", 20)
    assert_same(path)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(path, "b.mp4")
    (ref,) = (ref for ref in find_sources(tmp_path).videos if ref.member)
    assert_same(ref.path, ref.member)


@needs_torchcodec
@pytest.mark.parametrize("suffix, options", [(".mp4", {"movflags": "faststart"}), (".mkv", None)])
def test_a_truncated_file(tmp_path: Path, suffix: str, options: dict[str, str] | None) -> None:
    """Frames of the whole file, then an error that counts them."""
    path = write_grays(tmp_path / f"a{suffix}", 28, grain=True, options=options)
    whole = np.stack(list(VideoReader(path)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.4)])
    frames: list[np.ndarray] = []
    with pytest.raises(VideoError, match=r"truncated or damaged after \d+ readable frames") as error:
        frames.extend(open_video(path, "torchcodec"))
    assert 0 < len(frames) < 28 and f"after {len(frames)} readable frames" in str(error.value)
    assert np.abs(np.stack(frames).astype(int) - whole[: len(frames)]).max() <= 3
    assert len(list(open_video(path, "torchcodec", allow_truncated=True))) == len(frames)


@needs_torchcodec
@settings(max_examples=40, deadline=None)
@given(
    suffix=st.sampled_from([".mp4", ".mkv"]),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=8),
)
def test_damaged_files_give_frames_or_a_video_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, cut: float, flips: list
) -> None:
    path = write_grays(tmp_path_factory.mktemp("damaged") / f"a{suffix}", 12)
    data = bytearray(path.read_bytes())
    for where, mask in flips:
        data[int(where * len(data))] ^= mask
    path.write_bytes(data[: round(cut * len(data))])
    try:
        reader = open_video(path, "torchcodec")
        for frame in reader:
            assert frame.dtype == np.uint8 and frame.shape == (reader.height, reader.width, 3)
    except VideoError as error:
        assert str(path) in str(error)


@needs_torchcodec
def test_what_it_cannot_tell_apart_is_for_the_other_reader(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", range(10), "libx264", Fraction(1, 25))
    with pytest.raises(VideoError, match=r'has no timestamps that tell its frames apart.*take the reader "pyav"'):
        open_video(path, "torchcodec")
    with pytest.raises(ValueError, match=r'strict is not for the reader torchcodec.*take the reader "pyav"'):
        open_video(path, "torchcodec", strict=True)
    with pytest.raises(VideoError, match="cannot be read as a video"):
        (tmp_path / "text.mp4").write_bytes(b"hello world\n" * 100)
        open_video(tmp_path / "text.mp4", "torchcodec")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='"torchcodec" cannot use the device "cuda"'):
            open_video(path, "torchcodec:cuda")


@needs_torchcodec
def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, shards = tmp_path / "clips", tmp_path / "shards"
    clips.mkdir()
    with VideoWriter(clips / "a.mp4", 25, 64, 64) as out:
        out.write(np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8).repeat(20, axis=0))
    tokens = [tmp_path / f"{reader}.tivtok" for reader in ("pyav", "torchcodec")]
    for path in tokens:
        assert main(["encode", str(clips / "a.mp4"), str(path), "--reader", path.stem]) == 0
    one, other = map(Tokens.load, tokens)
    torch.testing.assert_close(one.tv, other.tv, rtol=0.1, atol=0.1)
    assert main(["encode-dir", str(clips), str(shards), "--reader", "torchcodec"]) == 0
    capsys.readouterr()
    assert main(["encode-dir", str(clips), str(shards)]) == 1
    assert "begun with other reader" in capsys.readouterr().err
    rows = Encoder(reader="torchcodec")({"path": [str(clips / "a.mp4")]})
    assert rows["error"][0] == "" and rows["num_frames"][0] == 20


def test_names_of_readers(tmp_path: Path) -> None:
    path = write_grays(tmp_path / "a.mp4", 3)
    assert type(open_video(path)) is VideoReader
    for wrong in ("ffmpeg", "pyav:cuda", "torchcodec:", "Torchcodec"):
        with pytest.raises(ValueError, match=f'reader must be pyav, torchcodec, .*got "{wrong}"'):
            Source(VideoRef("a", path), 16, "source", (16, 16), reader=wrong)


def test_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """One line that says what to install, before anything is written."""
    clips = tmp_path / "clips"
    clips.mkdir()
    clip = write_grays(clips / "a.mp4", 3)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    for command in (["encode", str(clip)], ["encode-dir", str(clips)]):
        assert main([*command, str(tmp_path / "out"), "--reader", "torchcodec"]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith('tivtok: the reader "torchcodec" needs torchcodec: pip install') and "FFmpeg" in said
    assert not (tmp_path / "out").exists()


class WithoutFFmpeg(ModuleType):
    """As torchcodec is where it finds no FFmpeg."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("Could not load libtorchcodec.\nFFmpeg is not installed.")


def test_without_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", WithoutFFmpeg("torchcodec.decoders"))
    with pytest.raises(
        ValueError, match=r"cannot be loaded: pip install .*FFmpeg.* \(Could not load libtorchcodec\. FF"
    ):
        check_reader("torchcodec")
