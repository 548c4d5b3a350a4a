"""Names that other programs trip over, terminals that cannot show them, full disks: by way of the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tivtok.cli import main
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens.dataset import TokenDataset
from tivtok.video import VideoError, VideoReader, VideoWriter

CONFIG = TivTokConfig.preset("tiny").replace(
    width=16, heads=1, encoder_layers=1, decoder_layers=1, native_size=(16, 24)
)
LATIN1 = os.fsdecode(b"caf\xe9")  # a name that is not UTF-8
COLONS = ("2026-11-25T09:10:00", "http:x", "pipe:0", "file:x", "concat:a|b", "C:")
ODD = (*COLONS, "-", "--model", "a%03d", "a{b,c}*?", "two\nlines", "видео", " ", LATIN1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    TivTok(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames with sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=8000)
        pictures.height, pictures.width, pictures.pix_fmt = 16, 24, "yuv420p"
        for level in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((16, 24, 3), 40 * level, np.uint8), "rgb24")
            container.mux(pictures.encode(frame))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux([*pictures.encode(None), *sound.encode(silence), *sound.encode(None)])
    return path


def tivtok(*arguments: str | Path, cwd: Path, **options) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "tivtok", *arguments],
        cwd=cwd,
        env=environment | options.pop("env", {}),
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_path_is_a_path(
    model: str,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Relative, as input, as output, as the source of sound, and through every command that names it again."""
    monkeypatch.chdir(tmp_path)
    video, tokens, out = f"{name}.mp4", f"{name}.tivtok", f"{name}.mkv"
    shutil.copy(clip, video)
    options = ["--model", model]
    assert main(["encode", *options, "--", video, tokens]) == 0
    assert main(["decode", *options, "--audio-from", video, "--", tokens, out]) == 0
    assert main(["info", "--", tokens]) == main(["info", "--", video]) == 0
    with av.open("file:" + out) as container:
        assert len(container.streams.audio) == 1
    assert len(list(VideoReader(out))) == 5
    assert sorted(os.listdir()) == sorted(f"{name}.{suffix}" for suffix in ("mkv", "mp4", "tivtok"))
    assert capsys.readouterr().out.count("\nwrote") + 1 == 2  # on lines of their own, whatever is in the name


def test_pages_pictures_and_scores_of_odd_names(
    model: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"two\nlines:{LATIN1}"
    shutil.copy(clip, f"{name}.mp4")
    options = ["--model", model]
    for suffix in ("html", "png"):
        assert main(["inspect", *options, "--columns", "2", f"{name}.mp4", f"{name}.{suffix}"]) == 0
    assert "two\\nlines:caf\\udce9.mp4" in Path(f"{name}.html").read_text(encoding="utf-8")
    assert main(["eval", *options, "--json", f"{name}.json", f"{name}.mp4"]) == 0
    assert list(json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))["videos"]) == [f"{name}.mp4"]


def test_names_that_are_not_utf8_come_back_from_an_index(model: str, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / LATIN1
    folder.mkdir()
    shutil.copy(clip, folder / f"{LATIN1}.mp4")
    (folder / f"{LATIN1}.txt").touch()
    result = tmp_path / f"out{LATIN1}"
    for _ in range(2):  # goes on with the plan that it wrote
        assert main(["encode-dir", str(folder), str(result), "--model", model]) == 0
    dataset = TokenDataset(result)
    assert dataset.videos[0]["path"] == f"{LATIN1}.mp4" and dataset[0].num_frames == 5
    index = json.loads((result / "index.json").read_text(encoding="utf-8"))
    assert index["left_out"] == [{"path": f"{LATIN1}.txt", "reason": "not named like a video"}]
    shutil.copytree(model, tmp_path / f"model{LATIN1}")
    assert TivTok.from_pretrained(tmp_path / f"model{LATIN1}").config == CONFIG


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_that_cannot_show_a_name(
    model: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    name = f"видео{LATIN1}"
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert main(["encode", str(clip), str(tmp_path / f"{name}.tivtok"), "--model", model]) == 0
    assert main(["info", str(tmp_path / f"{name}.none")]) == 1
    assert main(["--help"]) == 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        written = "".join(stream.buffer.getvalue().decode(encoding).split())  # tables fold long names
        assert "\\u0432\\u0438\\u0434\\u0435\\u043e" in written and "caf\\udce9" in written


def test_a_plain_locale(clip: Path, tmp_path: Path) -> None:
    shutil.copy(clip, tmp_path / "видео.mp4")
    done = tivtok("info", "видео.mp4", cwd=tmp_path, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0 and done.stderr == b"" and b"24x16" in done.stdout, done


def test_what_is_no_file_gets_a_clear_word(
    model: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def says(words: str, *arguments: str) -> None:
        assert main([*arguments, "--model", model]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and words in err, err

    says("- is missing (standard input and output are not supported: name a file)", "encode", "-", "o.tivtok")
    says("cannot write - (standard input and output are not supported", "encode", str(clip), "-")
    says("is missing (addresses are not supported: name a file)", "encode", "https://some.where/a.mp4", "o.tivtok")
    says("s3:/bucket does not exist (addresses are not supported", "encode", str(clip), "s3://bucket/o.tivtok")
    says("No such file or directory (addresses are not", "decode", "http://some.where/a.tivtok", "o.mp4")
    assert os.listdir() == []


def test_a_disk_that_is_full(
    model: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for it: the same error by another number. Nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for command in (["encode", "o.tivtok"], ["reconstruct", "o.mp4"], ["inspect", "o.png"]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        try:
            code = main([command[0], str(clip), command[1], "--model", model])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        err = capsys.readouterr().err
        assert code == 1 and err.count("\n") == 1 and "File too large" in err, err
        assert command[1] in err or "stream.tivtok: " in err, err  # the latter is where tokens wait to be decoded
        assert os.listdir() == []


def test_a_device_that_is_full(
    model: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full.tivtok").symlink_to("/dev/full")
    assert main(["encode", str(clip), str(tmp_path / "full.tivtok"), "--model", model]) == 1
    assert "full.tivtok: it is not a regular file" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    assert main(["encode", str(clip), str(tmp_path / "o.tivtok"), "--model", model]) == 1
    assert capsys.readouterr().err == "tivtok: standard output: No space left on device\n"
    assert (tmp_path / "o.tivtok").exists()


def test_a_full_device_behind_stdout_is_told_once(clip: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = tivtok("info", clip, cwd=tmp_path, stdout=full)
    assert done.returncode == 1 and done.stderr == b"tivtok: standard output: No space left on device\n"


@pytest.mark.parametrize("device", ["cuda:7", "mps", "xla", "meta", "privateuseone", "", "gpu"])
def test_a_device_that_is_not_there(
    model: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    assert main(["encode", str(clip), str(tmp_path / "o"), "--model", model, f"--device={device}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f'tivtok: device "{device}" cannot be used here: ') and err.count("\n") == 1, err


def broken(path: Path) -> Path:
    path.write_bytes(b"no video")
    return path


def test_a_folder_with_files_that_cannot_be_read(
    model: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, scores = tmp_path / "in", tmp_path / "scores.json"
    folder.mkdir()
    shutil.copy(clip, folder / "a.mp4")
    (folder / "._a.mp4").write_bytes(b"\0\5\26\7")
    bad = broken(folder / "bad.mp4")
    assert main(["eval", str(folder), "--model", model, "--json", str(scores)]) == 0
    out = capsys.readouterr().out
    assert "left out 1: added by macOS (._a.mp4)" in out and f"left out {bad}" in out and "mean of 1" in out
    record = json.loads(scores.read_text(encoding="utf-8"))
    assert list(record["videos"]) == [str(folder / "a.mp4")]
    assert [item["path"] for item in record["left_out"]] == [str(folder / "._a.mp4"), str(bad)]
    assert main(["eval", str(bad), str(folder), "--model", model]) == 1  # named, so it is wanted
    capsys.readouterr()
    (folder / "a.mp4").unlink()
    assert main(["eval", str(folder), "--model", model]) == 1
    assert "none of the 1 videos could be read" in capsys.readouterr().err


def encrypted(path: Path) -> None:
    key = "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 24, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))


def unknown_codec(path: Path) -> None:
    with VideoWriter(path, 25, 24, 16) as writer:
        writer.write(np.zeros((3, 16, 24, 3), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))


@pytest.mark.parametrize(
    ("make", "message"),
    [(encrypted, "its video is encrypted"), (unknown_codec, "there is no decoder for its video codec")],
)
def test_what_cannot_be_decoded_is_called_what_it_is(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=rf"^{tmp_path}/a\.mp4 cannot be read: {message}$"):
        list(VideoReader(tmp_path / "a.mp4", allow_truncated=True))


def test_one_picture_is_no_sequence(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (24, 16)).save(tmp_path / f"{number:03}.png")
    Image.new("RGB", (24, 16)).save(tmp_path / "%03d.png")
    assert len(list(VideoReader(tmp_path / "%03d.png"))) == 1


def test_a_list_as_other_programs_write_it(clip: Path, tmp_path: Path) -> None:
    from tivtok.video.sources import find_sources

    shutil.copy(clip, tmp_path / f"{LATIN1}.mp4")
    text = f"\ufeffpath, start, end\r\n{clip}, 0.04, 0.2\r\n{LATIN1}.mp4,,\r\n\r\ngone.mp4,,\r\n"
    (tmp_path / "list.csv").write_bytes(text.encode(errors="surrogateescape"))
    videos, left_out = find_sources(tmp_path / "list.csv")
    assert [(ref.path, ref.start, ref.end) for ref in videos] == [
        (clip, 0.04, 0.2),
        (tmp_path / f"{LATIN1}.mp4", 0, None),
    ]
    assert [tuple(item) for item in left_out] == [(tmp_path / "gone.mp4", "listed in list.csv, but it is missing")]
    (tmp_path / "list.csv").write_text('path\n"a.mp4\n')
    with pytest.raises(VideoError, match=r"list\.csv, line 1: unexpected end of data"):
        find_sources(tmp_path / "list.csv")
    with pytest.raises(csv.Error):  # what csv itself raises is no ValueError, which commands expect
        list(csv.reader(['"a'], strict=True))
