"""The command line, command by command, on small files made here and a small random model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

import tivtok
from tivtok.cli import COMMANDS, main
from tivtok.loading import load_model
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoReader, VideoWriter

ASSETS = Path(tivtok.__file__).parent / "assets"
CONFIG = TivTokConfig.preset("tiny").replace(
    name="mini", width=48, heads=2, encoder_layers=1, decoder_layers=1, native_size=(32, 32)
)


class Files(NamedTuple):
    model: str
    other_model: str
    clip: str  # 37 frames, 48x40, 30000/1001 per second
    tokens: str


def write_clip(path: Path, num_frames: int, height: int = 40, width: int = 48, fps: float = 30000 / 1001) -> str:
    ramp = torch.arange(width, dtype=torch.uint8).expand(height, width)
    with VideoWriter(path, fps, width, height) as writer:
        for index in range(num_frames):
            writer.write(torch.stack([ramp * 4, ramp + 3 * index, 255 - ramp], dim=2))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    for name in ("model", "other"):
        TivTok(CONFIG).save_pretrained(folder / name)
    clip = write_clip(folder / "clip.mp4", 37)
    made = Files(str(folder / "model"), str(folder / "other"), clip, str(folder / "clip.tivtok"))
    assert main(["encode", clip, made.tokens, "--model", made.model]) == 0
    return made


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 1) -> str:
    """Run a command that must fail with ``code``, print nothing and say why in one line; returns that line."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tivtok: ") and err.count("\n") == 1, (out, err)
    return err


def test_encode_then_decode_gives_all_frames_back(files: Files, tmp_path: Path) -> None:
    tokens = Tokens.load(files.tokens)
    assert (tokens.num_frames, tokens.height, tokens.width, tokens.fps) == (37, 40, 48, 30000 / 1001)
    assert (tokens.preset, tokens.num_tokens) == ("mini", 24 + 10 * 4)
    assert main(["decode", files.tokens, str(tmp_path / "out.mp4"), "--model", files.model]) == 0
    got, source = VideoReader(tmp_path / "out.mp4"), VideoReader(files.clip)
    assert len(list(got)) == 37
    assert (got.height, got.width, got.fps) == (source.height, source.width, source.fps)
    assert os.listdir(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("frames, count", [("10:30", 20), ("30:", 7), (":5", 5), ("36", 1), ("30:35,2,:4", 10)])
def test_decode_some_frames(files: Files, tmp_path: Path, frames: str, count: int) -> None:
    out = str(tmp_path / "out.mp4")
    assert main(["decode", files.tokens, out, "--model", files.model, "--frames", frames, "--fps", "5"]) == 0
    assert len(list(VideoReader(out))) == count and VideoReader(out).fps == 5


BAD_FRAMES = ["30:10", "5:5", "30:38", "37", "-3:5", "a:b", ":", "", "1:2:3", "9" * 40, "1,", "1,40"]


@pytest.mark.parametrize("frames", BAD_FRAMES)
def test_decode_frames_that_are_not_there(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], frames: str
) -> None:
    error = fails(capsys, ["decode", files.tokens, str(tmp_path / "o.mp4"), f"--frames={frames}"])
    assert "--frames must be A:B (or several) with 0 <= A < B <= 37" in error
    assert os.listdir(tmp_path) == []


def test_encode_options(files: Files, tmp_path: Path) -> None:
    out = str(tmp_path / "a.tivtok")
    options = ["--size", "native", "--tiv-sets", "3", "--dtype", "float32", "--device", "cpu"]
    assert main(["encode", files.clip, out, "--model", files.model, *options]) == 0
    tokens = Tokens.load(out)
    assert (tokens.height, tokens.width, tokens.tiv.shape[1]) == (32, 32, 3)
    assert not torch.equal(tokens.tv, tokens.tv.half().float())
    assert main(["encode", files.clip, out, "--model", files.model, "--size", "20x12", "--tiv-sets", "auto"]) == 0
    assert (Tokens.load(out).height, Tokens.load(out).width) == (12, 20)


def psnr_said(capsys: pytest.CaptureFixture[str]) -> float:
    match = re.search(r"PSNR (\d+\.\d+) dB", capsys.readouterr().out)
    assert match
    return float(match[1])


def test_refine_gets_closer(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "o.mp4")
    scores = []
    for steps in ("0", "8"):
        assert main(["reconstruct", files.clip, out, "--model", files.model, "--refine", steps]) == 0
        scores.append(psnr_said(capsys))
    assert scores[1] > scores[0] + 0.03
    stored = [str(tmp_path / f"{steps}.tivtok") for steps in (0, 2)]
    for steps, path in zip(("0", "2"), stored, strict=True):
        assert main(["encode", files.clip, path, "--model", files.model, "--refine", steps]) == 0
    plain, refined = (Tokens.load(path) for path in stored)
    assert plain.model_id == refined.model_id and not torch.equal(plain.tv, refined.tv)
    assert sorted(os.listdir(tmp_path)) == ["0.tivtok", "2.tivtok", "o.mp4"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_there_and_back(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    """What one precision encodes, another decodes."""
    tokens, out = str(tmp_path / "a.tivtok"), str(tmp_path / "o.mp4")
    assert main(["encode", files.clip, tokens, "--model", files.model, "--precision", precision]) == 0
    assert Tokens.load(tokens).model_id == Tokens.load(files.tokens).model_id
    for second in ("float32", precision):
        assert main(["decode", tokens, out, "--model", files.model, "--precision", second]) == 0
    assert "--precision" in fails(capsys, ["decode", tokens, out, "--precision", "int8"], code=2)


def test_one_frame(files: Files, tmp_path: Path) -> None:
    clip, tokens, out = write_clip(tmp_path / "one.mp4", 1, 9, 11), str(tmp_path / "a.tivtok"), str(tmp_path / "o.mp4")
    assert main(["encode", clip, tokens, "--model", files.model]) == 0
    assert main(["decode", tokens, out, "--model", files.model]) == 0
    assert [frame.shape for frame in VideoReader(out)] == [(9, 11, 3)]


def test_reconstruct(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, beside = str(tmp_path / "alone.mp4"), str(tmp_path / "beside.mp4")
    assert main(["reconstruct", files.clip, alone, "--model", files.model]) == 0
    assert "64 tokens, PSNR" in capsys.readouterr().out
    assert main(["reconstruct", files.clip, beside, "--model", files.model, "--side-by-side"]) == 0
    assert (VideoReader(alone).height, VideoReader(alone).width, len(list(VideoReader(alone)))) == (40, 48, 37)
    assert VideoReader(beside).width > 2 * 48 and len(list(VideoReader(beside))) == 37


def test_sets_that_change_inside_a_chunk(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut after 20 frames, where "auto" ends a chunk and begins a TIV set."""
    clip = str(tmp_path / "cut.mp4")
    with VideoWriter(clip, 25.0, 48, 40) as writer:
        for index in range(37):
            writer.write(torch.full((40, 48, 3), 40 + index if index < 20 else 200, dtype=torch.uint8))
    options = ["--model", files.model, "--tiv-sets", "auto"]
    assert main(["encode", clip, str(tmp_path / "cut.tivtok"), *options]) == 0
    groups = Tokens.load(tmp_path / "cut.tivtok").sets_of(torch.arange(10)).tolist()
    assert groups[4] != groups[5]
    capsys.readouterr()
    assert main(["reconstruct", clip, str(tmp_path / "out.mp4"), *options]) == 0
    assert len(list(VideoReader(tmp_path / "out.mp4"))) == 37
    assert main(["eval", clip, *options, "--size", "source", "--json", str(tmp_path / "scores.json")]) == 0
    video = json.loads((tmp_path / "scores.json").read_text())["videos"][clip]
    assert f"PSNR {video['psnr']:.2f} dB" in capsys.readouterr().out


def test_info_on_tokens_and_videos(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", files.tokens]) == 0
    out = capsys.readouterr().out
    for text in ("37 frames of 48x40", "1 set of 24 = 24", "10 frame groups of 4 = 40", "64, of 32 values", "mini"):
        assert text in out
    assert f"{os.path.getsize(files.tokens):,} in the file" in out
    assert main(["info", files.clip]) == 0
    assert "48x40" in capsys.readouterr().out


def test_inspect(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sheet.png")
    assert main(["inspect", files.clip, out, "--model", files.model, "--columns", "3"]) == 0
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.width > 3 * 48 and sheet.height > 3 * 40
    page = tmp_path / "page.html"
    assert main(["inspect", files.clip, str(page), "--model", files.model, "--columns", "3", "--tiv-sets", "3"]) == 0
    text = page.read_text(encoding="utf-8")
    for words in (
        "clip.mp4",
        "3 TIV sets",
        "TIV only",
        "TV adds",
        "tokens, ",
        "bytes as float16",
        "frame 18",
        "encoder",
    ):
        assert words in text, words
    assert "OUT must end in .png or .html" in fails(capsys, ["inspect", files.clip, str(tmp_path / "sheet.jpg")])


def test_swap(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, mixed = str(tmp_path / "short.tivtok"), str(tmp_path / "mixed.tivtok")
    clip = write_clip(tmp_path / "short.mp4", 9, 24, 16)
    assert main(["encode", clip, short, "--model", files.model]) == 0
    assert main(["swap", files.tokens, short, mixed]) == 0
    got = Tokens.load(mixed)
    assert (got.num_frames, got.height, got.width) == (9, 24, 16)
    assert torch.equal(got.tiv, Tokens.load(files.tokens).tiv) and torch.equal(got.tv, Tokens.load(short).tv)
    assert main(["encode", clip, short, "--model", files.other_model]) == 0
    assert "both must be made by one model" in fails(capsys, ["swap", files.tokens, short, mixed])
    assert "it is the input" in fails(capsys, ["swap", files.tokens, short, short])


def test_eval_reproduces_the_card_of_the_bundled_checkpoint(tmp_path: Path) -> None:
    card = (ASSETS / "checkpoints/tiny/README.md").read_text()
    promised = re.search(r"must print\s+PSNR ([\d.]+) dB and SSIM ([\d.]+)", card)
    assert promised
    assert main(["eval", str(ASSETS / "bikes.mp4"), "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["psnr"] == pytest.approx(float(promised[1]), abs=0.01)
    assert scores["ssim"] == pytest.approx(float(promised[2]), abs=0.001)


def test_eval_takes_files_and_folders(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "b.mp4", 17)
    assert main(["eval", files.clip, str(tmp_path), "--model", files.model]) == 0
    out = capsys.readouterr().out
    assert "clip.mp4" in out and "b.mp4" in out and "mean of 2" in out and "data range 255" in out
    assert "seams" in out and "across chunk borders" in out
    assert main(["eval", files.clip, "--model", files.model, "--tiv-sets", "auto"]) == 0
    assert "auto TIV set(s)" in capsys.readouterr().out
    (tmp_path / "b.mp4").unlink()
    assert "data has no videos" in fails(capsys, ["eval", str(tmp_path), "--model", files.model])


def test_demo(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled clip, with the small model in place of the bundled checkpoint."""
    monkeypatch.setattr("tivtok.cli.demo.load_model", lambda name: load_model(files.model))
    assert main(["demo", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "48 frames of 32x32" in out and "PSNR" in out and "SSIM" in out
    assert re.search(r"TIV tokens +[1-9] sets? of 24 = \d+", out) and "12 frame groups of 4 = 48" in out
    assert sorted(os.listdir(tmp_path / "new")) == ["bikes.tivtok", "contact_sheet.png", "side_by_side.mp4"]
    assert len(list(VideoReader(tmp_path / "new" / "side_by_side.mp4"))) == 48


def test_doctor_names_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    from tivtok_kernels import available_backends

    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in (*available_backends("cpu"), "torch", "triton", "GPU", "CUDA extension"):
        assert name in out
    assert "ok, but unlike in the others, NaN" in out  # of flex


def test_help_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    overview = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    for name, (module, function, summary) in COMMANDS.items():
        assert name in overview and summary in overview
        command = getattr(import_module(f"tivtok.cli.{module}"), function)
        assert command.__doc__.startswith(summary.removesuffix("."))
        assert main([name, "--help"]) == 0
        assert f"Example: tivtok {name}" in capsys.readouterr().out


def test_a_name_that_is_nearly_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'encode'" in fails(capsys, ["encod"], 2)


def imported_by(arguments: list[str]) -> set[str]:
    """The modules that a command imports, in a process of its own."""
    code = "import sys; from tivtok.cli import main; print(*([main(sys.argv[1:])] and sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_commands_import_what_they_use(files: Files, tmp_path: Path) -> None:
    """The compiler and the metrics take as long to import as torch itself, which the list of commands does without."""
    heavy = {"torch._dynamo", "sympy", "triton", "torchmetrics", "accelerate", "fsspec", "pyarrow", "ray", "pandas"}
    assert "torch" not in imported_by(["--help"])
    for command in (["info", files.tokens], ["decode", files.tokens, str(tmp_path / "o.mp4"), "--model", files.model]):
        modules = imported_by(command)
        assert "torch" in modules and not modules & heavy
        assert ("av" in modules) is (command[0] == "decode")


def test_a_program_of_its_own_sets_its_imports_aside(files: Files) -> None:
    """The garbage collector, which would look through them, goes on; of another program it leaves all alone."""
    code = (
        "import gc, sys; from tivtok.cli import main; main(sys.argv[1:]); print(gc.get_freeze_count()); main();"
        "print(gc.isenabled(), gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code, "info", files.tokens], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert "0" in said and said[-1] == "True True", done


def test_inputs_that_are_no_videos(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "o.tivtok")
    (tmp_path / "text.mp4").write_text("hello\n" * 50)
    (tmp_path / "empty.mp4").touch()
    encode = ["encode", "--model", files.model]
    assert "none.mp4 is missing" in fails(capsys, [*encode, str(tmp_path / "none.mp4"), out])
    assert "cannot be read as a video" in fails(capsys, [*encode, str(tmp_path / "text.mp4"), out])
    assert "cannot be read as a video" in fails(capsys, [*encode, str(tmp_path / "empty.mp4"), out])
    assert "is not a file" in fails(capsys, [*encode, str(tmp_path), out])
    assert "and as a video" in fails(capsys, ["info", str(tmp_path / "text.mp4")])
    assert not os.path.exists(out)


def test_a_truncated_video(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "cut.mp4", str(tmp_path / "o.tivtok")
    whole = Path(files.clip).read_bytes()
    path.write_bytes(whole[: len(whole) * 7 // 10])
    error = fails(capsys, ["encode", str(path), out, "--model", files.model])
    assert "truncated or damaged after" in error and not os.path.exists(out)
    assert main(["encode", str(path), out, "--model", files.model, "--allow-truncated"]) == 0
    assert f"after {Tokens.load(out).num_frames} readable frames" in error


def test_tokens_that_cannot_be_decoded(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "o.mp4")
    assert "not a token file" in fails(capsys, ["decode", files.clip, out, "--model", files.model])
    assert "No such file" in fails(capsys, ["decode", str(tmp_path / "none"), out, "--model", files.model])
    error = fails(capsys, ["decode", files.tokens, out, "--model", files.other_model])
    assert "the tokens were made by model" in error and "this is model" in error
    assert os.listdir(tmp_path) == []


def test_models_and_options_that_do_not_work(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode = ["encode", files.clip, str(tmp_path / "o.tivtok"), "--model", files.model]
    assert "no checkpoint at" in fails(capsys, [*encode[:-1], str(tmp_path)])
    assert 'device "nonsense" cannot be used' in fails(capsys, [*encode, "--device", "nonsense"])
    assert "size must be" in fails(capsys, [*encode, "--size", "0x20"])
    assert "tiv_sets must be between 1 and the number of chunks, 3" in fails(capsys, [*encode, "--tiv-sets", "4"])
    for sets in ("0", "-1", "many", "1.5", ""):
        assert "--tiv-sets must be" in fails(capsys, [*encode, f"--tiv-sets={sets}"])
    assert "No such option" in fails(capsys, [*encode, "--nonsense"], 2)
    assert "Missing argument" in fails(capsys, ["encode", files.clip], 2)
    assert "No such command" in fails(capsys, ["nonsense"], 2)
    assert os.listdir(tmp_path) == []


def test_outputs_that_cannot_be_written(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode = ["encode", "--model", files.model, files.clip]
    assert "none does not exist" in fails(capsys, [*encode, str(tmp_path / "none" / "o.tivtok")])
    assert "it is a folder" in fails(capsys, [*encode, str(tmp_path)])
    assert "it is not a regular file" in fails(capsys, [*encode, "/dev/null"])
    assert "it is the input" in fails(capsys, [*encode, files.clip])
    decode = ["decode", "--model", files.model, files.tokens]
    assert "cannot be written" in fails(capsys, [*decode, str(tmp_path / "o.nonsense")])
    assert os.listdir(tmp_path) == []


needs_training = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs the extra train")


@needs_training
def test_train_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in fails(capsys, ["train", str(tmp_path / "none.toml")])
    (tmp_path / "bad.toml").write_text("steps = 'many'")
    assert "bad.toml" in fails(capsys, ["train", str(tmp_path / "bad.toml")])


@needs_training
def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such option" in fails(capsys, ["train", "--debug", str(tmp_path / "none.toml")], 2)
    assert "No such file" in fails(capsys, ["train", str(tmp_path / "none.toml")])
    with pytest.raises(FileNotFoundError):
        main(["--debug", "train", str(tmp_path / "none.toml")])


def test_ctrl_c_leaves_the_old_file(files: Files, tmp_path: Path) -> None:
    """Interrupted while it decodes a long video: exit code 130, no traceback, no half file, the old one untouched."""
    long, out = tmp_path / "long.tivtok", tmp_path / "o.mp4"
    tokens = Tokens.load(files.tokens)
    groups = 20_000
    Tokens(
        tokens.tiv,
        tokens.tv[:, :1].expand(-1, groups, -1, -1),
        torch.zeros(groups, dtype=torch.int64),
        *(4 * groups, 40, 48, 25.0, tokens.preset, tokens.model_id),
    ).save(long)
    out.write_bytes(b"precious")
    interrupt(["decode", str(long), str(out), "--model", files.model], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["long.tivtok", "o.mp4"] and out.read_bytes() == b"precious"


def test_ctrl_c_while_encoding_leaves_the_old_file(files: Files, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "long.mp4", 2000), tmp_path / "o.tivtok"
    out.write_bytes(b"precious")
    interrupt(["encode", clip, str(out), "--model", files.model], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["long.mp4", "o.tivtok"] and out.read_bytes() == b"precious"


def interrupt(arguments: list[str], folder: Path) -> None:
    """Run a command until its temporary file appears in ``folder``, then press ctrl-C: it must say so and no more."""
    files_before = len(os.listdir(folder))
    process = subprocess.Popen(
        [sys.executable, "-m", "tivtok", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in jobs that a shell puts behind
    )
    while len(os.listdir(folder)) == files_before and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err == "tivtok: interrupted\n", err


def test_sound_of_the_original(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The copying itself is tested in tests/video; here: the options, and their errors."""
    out = str(tmp_path / "o.mp4")
    decode = ["decode", files.tokens, out, "--model", files.model, "--audio-from", files.clip]
    assert "clip.mp4 has no sound" in fails(capsys, decode)
    assert "whole videos at their own rate" in fails(capsys, [*decode, "--frames", "1:5"])
    assert "clip.mp4 has no sound" in fails(capsys, ["reconstruct", files.clip, out, "--model", files.model, "--audio"])
    assert os.listdir(tmp_path) == []
