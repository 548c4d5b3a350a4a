"""Protocols choose the clips they say; `tivtok eval` prints and writes what its numbers mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tivtok import TivTok, TivTokConfig
from tivtok.cli import main
from tivtok.metrics.evaluation import Evaluation
from tivtok.metrics.frames import psnr, ssim
from tivtok.metrics.fvd import FeatureStatistics, fvd
from tivtok.metrics.lpips import LPIPS
from tivtok.metrics.protocols import PROTOCOLS, clip_frames, pick_frames
from tivtok.video import VideoWriter, frames_to_video

CONFIG = TivTokConfig.preset("tiny").replace(
    name="mini", width=48, heads=2, encoder_layers=1, decoder_layers=1, native_size=(32, 32)
)


def test_clips_of_the_protocols() -> None:
    assert clip_frames(PROTOCOLS["adaptok"], 100, 25.0, "a") == list(range(16))
    # 17 frames at 16 fps of a video at 24 are every 1.5th: 24 intervals, so 25 frames in the middle of 105
    assert clip_frames(PROTOCOLS["omnitokenizer"], 105, 24.0, "a") == [40 + i * 3 // 2 for i in range(17)]
    starts = {clip_frames(PROTOCOLS["larp"], 100, None, f"{n}")[0] for n in range(500)}
    assert min(starts) == 0 and max(starts) == 84  # both ends, since 500 draws of 85 miss one only once in 400
    clip = clip_frames(PROTOCOLS["larp"], 100, None, "a")
    assert clip == clip_frames(PROTOCOLS["larp"], 100, None, "a") == list(range(clip[0], clip[0] + 16))


def test_short_videos_stand_still_at_their_end() -> None:
    assert clip_frames(PROTOCOLS["larp"], 3, None, "a") == [0, 1, *[2] * 14]
    assert clip_frames(PROTOCOLS["omnitokenizer"], 5, 32.0, "a") == [0, 2, *[4] * 15]
    with pytest.raises(ValueError, match="protocol omnitokenizer picks frames at 16 fps, and a states no rate"):
        clip_frames(PROTOCOLS["omnitokenizer"], 5, None, "a")


def test_videos_from_their_start_are_as_long_as_they_are() -> None:
    """At most 300 frames, none of them twice; rFVD counts each video as one clip of its length."""
    rules = PROTOCOLS["tokenbench"]
    assert clip_frames(rules, 310, None, "a") == list(range(300)) and clip_frames(rules, 5, None, "a") == list(range(5))
    lengths = []

    def features(video: torch.Tensor) -> torch.Tensor:
        lengths.append(video.shape[2])
        return video.mean(dim=(3, 4))[:, :, :5].flatten(1)

    evaluation = Evaluation(rules, {}, features)
    for count in (300, 21):
        a, b = frames(1, count), frames(2, count)
        evaluation.add(zip(a.split(16), b.split(16), strict=True), 16)
    assert lengths == [300, 300, 21, 21] and evaluation.clips == 2


def test_pick_frames_reads_no_further_than_it_must() -> None:
    video = torch.arange(20)[:, None, None, None].expand(20, 1, 1, 3)

    def chunks():
        yield from video[:12].split(5)
        pytest.fail("read on")

    assert pick_frames(chunks(), [0, 4, 5, 5, 11])[:, 0, 0, 0].tolist() == [0, 4, 5, 5, 11]


def test_published_settings() -> None:
    """What the papers and their programs state, as PROTOCOLS' sources say."""
    facts = {name: (p.clip, p.frames, p.size, p.features, p.covariance) for name, p in PROTOCOLS.items()}
    assert facts["larp"] == ("random", 16, (128, 128), "torchscript", "N")
    assert facts["adaptok"] == ("first", 16, (128, 128), "torchscript", "N")
    assert facts["omnitokenizer"] == ("centre", 17, (256, 256), "logits", "N-1")
    assert facts["paper"][1:3] == (16, (256, 256))
    assert facts["vidtok"][:3] == ("all", 16, (256, 256)) and PROTOCOLS["vidtok"].psnr == "frame"
    assert facts["tokenbench"] == ("start", 300, "source", "torchscript", "N-1")
    assert PROTOCOLS["tokenbench"].psnr == "clip"
    assert all("arXiv" in p.source and f"({p.covariance})" in str(p) for n, p in PROTOCOLS.items() if n != "whole")


def frames(seed: int, count: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_streamed_scores_equal_those_of_whole_videos(random_weights: Path) -> None:
    """Chunks of 12 frames, rFVD clips of 16 across their borders; the rest of 8 frames is in no clip."""
    network = LPIPS("alex", weights=random_weights / "lpips-alex.safetensors")

    def features(video: torch.Tensor) -> torch.Tensor:
        return video.mean(dim=(3, 4)).flatten(1)

    evaluation = Evaluation(PROTOCOLS["whole"], {"lpips-alex": network}, features)
    pairs = [(frames(n), frames(n + 10)) for n in range(2)]
    for a, b in pairs:
        scores = evaluation.add(zip(a.split(12), b.split(12), strict=True), 12)
        assert scores["psnr"] == pytest.approx(float(psnr(b, a).mean()), rel=1e-6)
        assert scores["ssim"] == pytest.approx(float(ssim(b, a).mean()), rel=1e-6)
        x, y = (frames_to_video(v).transpose(0, 1) for v in (a, b))
        assert scores["lpips-alex"] == pytest.approx(float(network(x, y).mean()), rel=1e-5)
    means = evaluation.means()
    assert evaluation.clips == 4
    assert means["psnr"] == pytest.approx(sum(v["psnr"] for v in evaluation.videos) / 2)
    sides = []
    for side in range(2):
        statistics = FeatureStatistics()
        for pair in pairs:
            clips = pair[side][:32].split(16)
            statistics.add(features(torch.stack([frames_to_video(clip) for clip in clips])))
        sides.append(statistics)
    assert means["rfvd"] == pytest.approx(fvd(*sides, "N-1"), rel=1e-6)


def test_psnr_of_clips_is_of_their_mean_error() -> None:
    """A perfect half and one that is off by 10 levels: twice the error of one half, not an infinite mean."""
    original = torch.full((4, 16, 16, 3), 100, dtype=torch.uint8)
    reconstruction = original.clone()
    reconstruction[2:] += 10
    evaluation = Evaluation(PROTOCOLS["larp"], {}, None)
    scores = evaluation.add([(original, reconstruction)], 16)
    assert scores["psnr"] == pytest.approx(float(10 * torch.tensor(255**2 / 50).log10()), rel=1e-5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    torch.manual_seed(0)
    TivTok(CONFIG).save_pretrained(folder / "model")
    ramp = torch.arange(48, dtype=torch.uint8).expand(40, 48)
    for name, count in (("a", 20), ("b", 34)):
        with VideoWriter(folder / f"{name}.mp4", 25, 48, 40) as writer:
            for t in range(count):
                writer.write(torch.stack([ramp * 4, ramp + 3 * t, 255 - ramp], dim=2))
    return folder


def test_eval_writes_protocol_and_scores(
    clips: Path, random_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    model, weights = ["--model", str(clips / "model")], ["--weights", str(random_weights)]
    options = ["--protocol", "larp", "--features", "logits", "--size", "32x32", "--metrics", "psnr,lpips-alex,rfvd"]
    assert main(["eval", str(clips), *model, *weights, *options, "--json", str(scores)]) == 0
    out = capsys.readouterr().out
    record = json.loads(scores.read_text())
    assert record["protocol"]["name"] == "larp" and record["protocol"]["covariance"] == "N"
    assert (record["protocol"]["features"], record["protocol"]["size"]) == ("logits", "32x32")
    assert [video["frames"] for video in record["videos"].values()] == [16, 16] and record["rfvd_clips"] == 2
    assert record["model"]["name"] == "mini" and record["tiv_sets"] == "1"
    for text in ("LPIPS-Alex", "rFVD", "random 16 frames", "covariance / (N)", "(CHANGED: features, size)"):
        assert text in out, text
    assert f"{record['scores']['lpips-alex']:.4f}" in out and f"rFVD {record['scores']['rfvd']:.2f} of 2 clips" in out
    assert "LPIPS-VGG" not in out


def test_eval_of_a_list_by_several_processes_goes_on(
    clips: Path, random_weights: Path, one_thread: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """A list with parts and a video that is broken: one process, two, and one that stopped on the way say the same."""
    (clips / "broken.mp4").write_bytes(b"no video")
    rows = ["a.mp4,,", "b.mp4,0.2,1.2", "broken.mp4,,", "a.mp4,,"]
    (clips / "list.csv").write_text("path,start,end\n" + "\n".join(rows) + "\n")
    options = ["--model", str(clips / "model"), "--weights", str(random_weights), "--metrics", "psnr,ssim,rfvd"]
    options += ["--size", "32x32"]

    def scores(name: str, *more: str) -> dict:
        path = tmp_path / f"{name}.json"
        assert main(["eval", str(clips / "list.csv"), *options, "--json", str(path), *more]) == 0
        record = json.loads(path.read_text())
        record["totals"] = {key: value for key, value in record["totals"].items() if "second" not in key}
        return record

    alone = scores("alone")
    assert list(alone["videos"]) == [str(clips / name) for name in ("a.mp4", "b.mp4 from 0.2 s to 1.2 s")]
    assert [video["frames"] for video in alone["videos"].values()] == [20, 25] and alone["totals"]["failed"] == 1
    assert [lost["path"] for lost in alone["left_out"]] == [str(clips / "broken.mp4")] and alone["rfvd_clips"] == 2
    kept = str(tmp_path / "kept.jsonl")
    assert scores("two", "--workers", "2", "--keep", kept) == alone

    lines = Path(kept).read_text().splitlines(keepends=True)
    Path(kept).write_text("".join(lines[:2]) + lines[2][:20])  # stopped while it wrote the second video
    measured = []
    score = Evaluation.score
    monkeypatch.setattr(Evaluation, "score", lambda *a: (measured.append(1), score(*a))[1])
    assert scores("again", "--keep", kept) == alone and 1 <= len(measured) <= 2
    assert scores("done", "--keep", kept) == alone and len(measured) <= 2

    capsys.readouterr()
    assert main(["eval", str(clips / "a.mp4"), *options, "--keep", kept, "--tiv-sets", "2"]) == 1
    assert "kept.jsonl is of another evaluation" in capsys.readouterr().err
    Path(kept).write_text(lines[0] + "{}\n")
    assert main(["eval", str(clips / "list.csv"), *options, "--keep", kept]) == 1
    assert "kept.jsonl is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--protocol", "ucf"],
            "--protocol must be one of whole, larp, adaptok, omnitokenizer, paper, vidtok, tokenbench, got",
        ),
        (["--metrics", "psnr,fid"], '--metrics must be "all" or some of psnr, ssim, lpips-vgg, lpips-alex, rfvd'),
        (["--features", "pooled"], '--features must be "protocol", "logits" or "torchscript", got "pooled"'),
        (["--metrics", "lpips-vgg", "--weights", "nowhere"], 'run "tivtok weights lpips-vgg"'),
        (
            ["--metrics", "rfvd", "--protocol", "larp", "--weights", "nowhere"],
            "nowhere does not have i3d_torchscript.pt",
        ),
        (["--json", "nowhere/scores.json"], "the folder nowhere does not exist"),
        (["--size", "big"], 'size must be "source", "native" or WIDTHxHEIGHT'),
    ],
)
def test_eval_says_what_is_wrong(
    clips: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(clips), "--model", str(clips / "model"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
