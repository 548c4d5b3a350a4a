"""When frames are shown: rates, lengths and the place of sound, in files of all kinds and through `reconstruct`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from made import MILLISECOND, first_picture_and_tone, write_video

from tivtok.cli import main
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoReader, VideoWriter
from tivtok.video.timing import frame_rate

DATA = Path(__file__).parents[1] / "data" / "videos"
NTSC = Fraction(30_000, 1001)
AUDIO_PACKET = 0.03  # seconds; the longest of the codecs used here has 26 ms


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "mini"
    torch.manual_seed(0)
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)
    TivTok(config).save_pretrained(folder)
    return str(folder)


def rate_of(times: list[int], last: int, stated: list[int | Fraction], tick: Fraction = MILLISECOND) -> Fraction | None:
    return frame_rate(np.array(times), tick, last, len(times), [Fraction(rate) for rate in stated])


def test_a_constant_rate_stays_what_it_is() -> None:
    rounded = [round(1000 * i / NTSC) for i in range(300)]
    assert rate_of(rounded, 33, [NTSC]) == NTSC
    assert rate_of(rounded, 33, [25]) == NTSC  # what is stated is wrong, and Matroska rounds
    assert rate_of([1001 * i for i in range(5)], 1001, [NTSC], Fraction(1, 30_000)) == NTSC
    assert rate_of([40 * i for i in range(9)], 1, [25]) == 25  # writers often make the last frame short
    assert rate_of([66667 * i for i in range(9)], 66667, [15, Fraction(1_000_000, 66667)], Fraction(1, 1_000_000)) == (
        Fraction(1_000_000, 66667)
    )
    jitter = [40 * i + (-1) ** i * 7 for i in range(100)]
    assert rate_of(jitter, 40, [25]) == 25
    assert rate_of([40 * i for i in range(20)], 40, [60_000, 50, 25]) == 25


def test_a_variable_rate_is_frames_over_duration() -> None:
    assert rate_of([0, 2000, 4000], 1000, [25]) == Fraction(3, 5)
    assert rate_of([0, 2000, 4000], 40, [25]) == Fraction(75, 101)
    assert rate_of([0, 40, 400, 440, 800], 0, [25]) == Fraction(5, 1)  # the last as long as the others are on average
    assert rate_of([0, 40, 40, 80], 40, [25]) == Fraction(4000, 120)  # two at once
    assert rate_of([0, 3_600_000], 40, [25]) == Fraction(2000, 3_600_040)


def test_one_frame_and_no_timestamps() -> None:
    assert rate_of([0], 5000, [25]) == Fraction(1, 5)
    assert rate_of([0], 33, [NTSC]) == NTSC
    assert rate_of([7], 0, [25]) == 25
    assert rate_of([7], 0, []) is None
    assert rate_of([7, 7, 7], 0, [25]) == 25
    assert rate_of([7, 7], 0, []) is None


@pytest.mark.parametrize(
    "name, rate, start",
    [
        ("b_frames.avi", 25, 0),
        ("negative.mkv", 25, -1),
        ("late_start.ts", 25, Fraction(37, 25)),
        ("repeats.ogv", Fraction(15, 1) / Fraction(4, 5), 0),
    ],
)
def test_rate_and_start_of_files(name: str, rate: int | Fraction, start: int | Fraction) -> None:
    reader = VideoReader(DATA / name)
    assert (reader.fps, reader.timeline.start) == (rate, start)
    assert len(list(reader)) == reader.expected_frames


@pytest.mark.parametrize("rate", [25, 50, NTSC])
def test_raw_streams_have_the_rate_of_their_packets(tmp_path: Path, rate: int | Fraction) -> None:
    path = write_video(tmp_path / "a.h264", range(10), "libx264", 1 / Fraction(rate), rate)
    assert VideoReader(path).fps == rate


def test_a_screen_recording_keeps_its_length(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten frames at 25 per second, then one every 0.24 s: its header says 25."""
    times = [7 + 40 * i for i in range(10)] + [407 + 240 * i for i in range(20)]
    source = write_video(tmp_path / "screen.webm", times, "libvpx", sound=("libopus", 0, 5.3, 5))
    rate = VideoReader(source).fps
    assert rate == 30 / (Fraction(times[-1] + 40 - times[0], 1000))
    result, tokens = tmp_path / "out.mp4", tmp_path / "a.tivtok"
    arguments = ["--model", model]
    assert main(["reconstruct", str(source), str(result), "--audio", *arguments]) == 0
    assert main(["encode", str(source), str(tokens), *arguments]) == 0
    assert main(["decode", str(tokens), str(tmp_path / "b.mkv"), "--audio-from", str(source), *arguments]) == 0
    capsys.readouterr()
    assert main(["info", str(source)]) == 0
    assert f"{float(rate):g}" in capsys.readouterr().out
    assert Tokens.load(tokens).fps == pytest.approx(float(rate))
    for path in (result, tmp_path / "b.mkv"):
        assert len(list(VideoReader(path))) == 30
        assert VideoReader(path).fps == pytest.approx(float(rate), rel=1e-3)
        picture, tone = first_picture_and_tone(path)
        assert tone is not None and tone - picture == pytest.approx(5 - 0.007, abs=AUDIO_PACKET)


def test_joined_files_go_on_where_the_first_ends(tmp_path: Path) -> None:
    """The clock of the second begins anew; its tone comes after as many seconds as all pictures before it take."""
    parts = [
        write_video(tmp_path / f"{i}.ts", [40 * k for k in range(50)], "libx264", sound=("mp2", 0, 2, tone))
        for i, tone in enumerate((9, 1))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(path.read_bytes() for path in parts))
    reader = VideoReader(joined)
    frames = list(reader)
    assert (reader.fps, len(frames), reader.expected_frames, len(reader.timeline.jumps)) == (25, 100, 100, 2)
    with VideoWriter(tmp_path / "out.mp4", reader.fps, reader.width, reader.height, audio_from=joined) as writer:
        writer.write(np.stack(frames))
    picture, tone = first_picture_and_tone(tmp_path / "out.mp4")
    assert tone is not None and tone - picture == pytest.approx(3, abs=0.04 + AUDIO_PACKET)


KINDS = {
    ".mp4": ("libx264", "aac"),
    ".mkv": ("libx264", "aac"),
    ".mov": ("mpeg4", "pcm_s16le"),
    ".ts": ("libx264", "mp2"),
    ".webm": ("libvpx", "libopus"),
    ".flv": ("flv", "aac"),
}


@settings(max_examples=30, deadline=None)
@example(".flv", ".mkv", 0, [409] * 37, 0)  # FFmpeg reads decoding times of 1.248 s and then 0.839 s from this Matroska
@given(
    suffix=st.sampled_from(sorted(KINDS)),
    result=st.sampled_from([".mp4", ".mkv", ".mov"]),
    start=st.integers(0, 2500),
    gaps=st.one_of(
        st.tuples(st.integers(3, 40), st.integers(10, 500)).map(lambda pair: [pair[1]] * pair[0]),
        st.lists(st.integers(10, 900), min_size=2, max_size=30),
    ),
    sound=st.integers(0, 2500),
)
def test_pictures_and_sound_keep_their_place(
    model: str,
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    result: str,
    start: int,
    gaps: list[int],
    sound: int,
) -> None:
    """Packets are copied whole, so sound is right to one of its packets, and where it may be cut to a last frame."""
    assume((suffix, result) != (".webm", ".mov"))  # MOV holds no Opus
    folder = tmp_path_factory.mktemp("property")
    times = [start + sum(gaps[:i]) for i in range(len(gaps))]
    begin, end = start / 1000, (times[-1] + gaps[-1]) / 1000
    sound_start = sound / 1000
    tone = max(begin, sound_start) + 0.2
    codec, sound_codec = KINDS[suffix]
    length = max(end, tone) + 0.5 - sound_start
    source = write_video(folder / f"in{suffix}", times, codec, sound=(sound_codec, sound_start, length, tone))
    out = folder / f"out{result}"
    assert main(["reconstruct", str(source), str(out), "--audio", "--model", model]) == 0

    picture, heard = first_picture_and_tone(source)
    reader, made = VideoReader(source), VideoReader(out)
    assert made.expected_frames == reader.expected_frames == len(times)
    span, frame = (times[-1] - times[0]) / 1000, float(1 / made.fps)
    assert span - 0.002 <= len(times) * frame <= span + max(gaps) / 1000 + frame + 0.002
    if tone + 0.1 < begin + len(times) * frame:
        new_picture, new_heard = first_picture_and_tone(out)
        assert heard is not None and new_heard is not None
        assert new_heard - new_picture == pytest.approx(heard - picture, abs=AUDIO_PACKET)


def test_long_gaps_can_be_written(tmp_path: Path, model: str) -> None:
    source = write_video(tmp_path / "slow.mkv", [0, 600_000, 1_200_000], "libx264")
    assert main(["reconstruct", str(source), str(tmp_path / "out.mp4"), "--model", model]) == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration == pytest.approx(1_200_040_000, abs=1e6)
