"""The measure says clock of a clock and motion of motion, and its means are over sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.cards.baseline import dct_coefficients, still
from benchmarks.dumps import read_json
from benchmarks.studies.__main__ import app
from benchmarks.studies.factorisation import Clip, measure, psnr, summarise
from benchmarks.studies.synthetic_motion import moving_discs
from tivtok import TivTok, TivTokConfig, Tokens
from tivtok.video import VideoWriter

SIZES = {"width": 24, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "native_size": (32, 32)}


class Planted(TivTok):
    """Writes by hand what a model might learn. A TIV set is the mean group of its chunk; TV tokens are what is left of
    their group ("motion") or the group's number in the chunk and nothing else ("clock"), which the decoder answers with
    brightness."""

    def __init__(self, kind: str) -> None:
        super().__init__(TivTokConfig(name=kind, num_tiv=1, num_tv=1, latent_dim=3 * 4 * 32 * 32, **SIZES))
        self.kind = kind

    def encode_chunks(self, video: Tensor, lengths: object = None) -> tuple[Tensor, Tensor]:
        groups = video.unflatten(2, (-1, 4, 4)).permute(0, 2, 3, 1, 4, 5, 6).flatten(3)  # (B, chunks, 4, values)
        tiv = groups.mean(2, keepdim=True)
        tv = groups - tiv if self.kind == "motion" else self._clock(video.shape[2] // 16).expand_as(groups)
        return tiv, tv.flatten(1, 2)[:, :, None]

    def _clock(self, chunks: int) -> Tensor:
        return torch.linspace(-0.2, 0.2, 4)[None, None, :, None].expand(1, chunks, 4, 1)

    def encode(self, video: Tensor, tiv_sets: int = 1, fps: float | None = None) -> Tokens:  # type: ignore[override]
        tiv, tv = self.encode_chunks(video)
        chunks = tiv.shape[1]
        index = torch.arange(chunks) * tiv_sets // chunks
        sets = torch.stack([tiv[:, index == s].mean(1) for s in range(tiv_sets)], dim=1)
        numbers = index.repeat_interleave(4)
        return Tokens(sets, tv, numbers, video.shape[2], *video.shape[3:], fps, self.kind, self.model_id)

    def decode(self, tokens: Tokens, frames: object = None) -> Tensor:
        groups = (tokens.tiv[:, tokens.tiv_index] + tokens.tv).squeeze(2)
        return groups.unflatten(2, (3, 4, 32, 32)).transpose(1, 2).flatten(2, 3)


def clips(brightening: bool = False) -> list[Clip]:
    """Two of each of three sources: discs, which all become brighter in the same way if wanted."""
    videos = moving_discs(np.random.default_rng(0), 6, 64) * 0.6
    if brightening:
        videos = videos + torch.linspace(-0.2, 0.2, 4).repeat(4).repeat_interleave(4)[:, None, None]
    return [Clip(f"{i}.mp4", f"source {i // 2}", video[None]) for i, video in enumerate(videos)]


def test_motion_in_tv_tokens_reads_as_motion() -> None:
    summary = summarise(measure(Planted("motion"), clips()))["all"]
    assert summary["full"] > 90 and summary["TV tokens' worth"] > 50
    assert abs(summary["clock"]) < 0.05
    assert summary["swap: motion with the TV clip"] > 0.99 and abs(summary["swap: motion with the TIV clip"]) < 0.3
    assert summary["reversal: TIV distance"] < 0.02  # not zero: the four frames of its group are backwards, too
    assert summary["reversal: motion with the backward clip"] > 0.9
    # The TIV set of two chunks is the mean of two still pictures, which have moved on.
    assert summary["32"]["own sets"] > 90 and summary["32"]["one set"] < 40


def test_a_clock_reads_as_a_clock() -> None:
    summary = summarise(measure(Planted("clock"), clips(brightening=True)))["all"]
    assert summary["TV tokens' worth"] > 0.3
    assert summary["clock"] == pytest.approx(1.0, abs=1e-3)
    assert summary["others' change of TV"] == pytest.approx(summary["full"], abs=1e-3)


def test_nothing_in_tv_tokens_has_no_share() -> None:
    model = Planted("clock")
    model._clock = lambda chunks: torch.zeros(1, chunks, 4, 1)  # type: ignore[method-assign]
    summary = summarise(measure(model, clips()))["all"]
    assert summary["TV tokens' worth"] == 0 and summary["clock"] is None
    assert summary["full"] == pytest.approx(summary["still picture"], abs=1e-4)


def test_means_are_over_sources_and_buckets_are_by_the_still_picture() -> None:
    slow, fast = clips()[0], clips()[5]
    noise = torch.randn(1, 3, 64, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    still_clip = Clip("d.mp4", "still", slow.video[:, :, :1].expand(-1, -1, 64, -1, -1))
    own = [
        slow._replace(name="a.mp4"),
        slow._replace(name="b.mp4"),
        fast._replace(name="c.mp4", video=noise),
        still_clip,
    ]
    measured = measure(Planted("motion"), own)
    assert [values["bucket"] for values in measured.values()][2:] == ["fast", "still"]
    summary = summarise(measured)
    assert (summary["all"]["clips"], summary["all"]["sources"]) == (4, 3)
    of = {name: values["still picture"] for name, values in measured.items()}
    mean = ((of["a.mp4"] + of["b.mp4"]) / 2 + of["c.mp4"] + of["d.mp4"]) / 3
    assert summary["all"]["still picture"] == pytest.approx(mean, abs=1e-3)
    short = [clip._replace(video=clip.video[:, :, :32]) if clip.name == "a.mp4" else clip for clip in own]
    assert summarise(measure(Planted("motion"), short))["all"]["64"]["clips"] == 3


def test_dct_coefficients_keep_the_most_energy_and_all_of_them_everything() -> None:
    videos = torch.cat([clip.video[:, :, :8] for clip in clips()])
    assert psnr(dct_coefficients(videos, videos[0].numel()), videos) > 90
    errors = [float((dct_coefficients(videos, n) - videos).square().mean()) for n in (3, 30, 300, 3000)]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[3]
    grey = torch.full((1, 3, 4, 8, 8), 0.3)
    torch.testing.assert_close(dct_coefficients(grey, 1), grey)


def test_the_still_picture_is_the_best_of_equal_groups() -> None:
    video = clips()[0].video
    best = (still(video) - video).square().mean()
    for change in (0.01, -0.01):
        assert (still(video) + change - video).square().mean() > best


def test_the_command_writes_numbers_tables_and_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TivTok(TivTokConfig(name="small", num_tiv=4, num_tv=2, latent_dim=8, **SIZES))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "clips").mkdir()
    for name in ("a__f0000", "a__f0064", "b__f0000", "short"):
        with VideoWriter(tmp_path / "clips" / f"{name}.mp4", fps=10, width=40, height=36) as writer:
            for t in range(12 if name == "short" else 40):
                plane = (np.arange(40) * 5 + np.arange(36)[:, None] * 3 + t * 11) % 256
                writer.write(np.stack([plane, 255 - plane, plane // 2], axis=-1).astype(np.uint8))
    command = ["factorisation", "--data", str(tmp_path / "clips"), "--model", str(tmp_path / "model")]
    command += ["--results", str(tmp_path), "--note", "Gradients."]
    CliRunner().invoke(app, command, catch_exceptions=False)
    record = read_json(tmp_path / "factorisation.json.gz")
    assert list(record["measured"]) == ["a__f0000.mp4", "a__f0064.mp4", "b__f0000.mp4"]
    assert record["summary"]["all"]["sources"] == 2 and set(record["summary"]["all"]) >= {"16", "32"}
    text = (tmp_path / "factorisation.md").read_text()
    assert (
        "| lost by sharing |" in text
        and "Gradients." in text
        and "| 16 frames; clips of sources | all (3 of 2)" in text
    )
    for picture in tmp_path.glob("*.png"):
        assert picture.name in text
    assert list(tmp_path.glob("factorisation-*.png"))
    with pytest.raises(ValueError, match="data must hold clips of two sources and of 16 frames at least"):
        CliRunner().invoke(app, [*command, "--only", "b*"], catch_exceptions=False)
