"""The ablated models leave out what they say and nothing else; the command resumes; the report reads noise as noise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.dumps import read_json
from benchmarks.studies import ablations
from benchmarks.studies.__main__ import app
from benchmarks.studies.ablation_report import Score, summarise, verdict
from benchmarks.studies.ablation_variants import VARIANTS, DenseEncoder, JointDecoder
from benchmarks.studies.ablations import Budget, batches, reconstruct
from tivtok.video import VideoWriter


def randomised(name: str) -> torch.nn.Module:
    """In float64, away from the near-zero initialisation."""
    torch.manual_seed(0)
    model = VARIANTS[name].build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def video(frames: int) -> torch.Tensor:
    return torch.rand(1, 3, frames, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def test_variants_have_the_same_weights_and_the_stated_tokens() -> None:
    """Apart from SoftVQ's codebook and the learned tokens."""
    shapes = {
        name: {k: v.shape for k, v in variant.build().state_dict().items() if "tiv" not in k and ".tv" not in k}
        for name, variant in VARIANTS.items()
    }
    codebook = shapes["softvq"].pop("quantizer.codebook")
    assert codebook == (8192, 32)
    assert all(of_variant == shapes["full"] for of_variant in shapes.values())
    assert {name: variant.tokens(32) for name, variant in VARIANTS.items()} == {
        **dict.fromkeys(("full", "no-sif", "no-broadcasting", "no-split", "no-reuse", "per-frame", "softvq"), 40),
        "ratio-1-1": 48,
        "ratio-1-3": 56,
    }
    assert {VARIANTS[name].tokens(16) for name in ("full", "ratio-1-1", "ratio-1-3")} == {32}


@torch.no_grad()
def test_only_the_dense_encoder_lets_tv_tokens_see_other_frames() -> None:
    """In one layer: from the second on, what the TIV tokens saw of other frames reaches TV tokens in both."""
    for name, sees in (("full", False), ("no-sif", True)):
        model = randomised(name)
        del model.encoder.blocks[1:]
        changed = video(16)
        changed[:, :, 12:] *= -1  # the last frame group
        _, tv = model.encoder(video(16))
        _, tv_changed = model.encoder(changed)
        assert torch.equal(tv[:, :3], tv_changed[:, :3]) is not sees
    assert isinstance(model.encoder, DenseEncoder)


@torch.no_grad()
def test_dense_tv_tokens_differ_between_groups_of_the_same_content() -> None:
    """By their positions in time; without, all see all alike."""
    still = video(4).repeat(1, 1, 4, 1, 1)
    _, tv = randomised("no-sif").encoder(still)
    assert (tv[:, 0] - tv[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_only_the_joint_decoder_lets_frames_see_one_another() -> None:
    for name, sees in (("full", False), ("per-frame", False), ("no-broadcasting", True)):
        model = randomised(name)
        tiv, tv = model.encode_chunks(video(32))
        changed = tv.clone()
        changed[:, 3] *= -1  # the last group of the first chunk
        prepared = model.prepare(tiv.mean(1, keepdim=True))
        a, b = (model.decode_groups(prepared, x, [8], 16, 16).unflatten(2, (8, 4)) for x in (tv, changed))
        differs = [not torch.allclose(a[:, :, t], b[:, :, t], atol=1e-9) for t in range(8)]
        assert differs == [sees, sees, sees, True, False, False, False, False], name
    assert isinstance(model.decoder, JointDecoder)


@torch.no_grad()
def test_reuse_shares_the_mean_and_no_reuse_keeps_chunks_apart() -> None:
    clip = video(32)
    model = randomised("full")
    torch.testing.assert_close(reconstruct(VARIANTS["full"], model, clip), model.decode(model.encode(clip)))
    model = randomised("no-reuse")
    apart = model.decode(model.encode(clip, tiv_sets=2))
    torch.testing.assert_close(reconstruct(VARIANTS["no-reuse"], model, clip), apart)


def test_seeds_decide_the_batches() -> None:
    videos = [torch.randint(0, 256, (40, 18, 30, 3), dtype=torch.uint8) for _ in range(3)]
    first, again, other = (list(batches(videos, Budget(2, 3, 16), seed)) for seed in (0, 0, 1))
    assert first[0].shape == (3, 3, 32, 16, 16) and first[0].abs().max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One video to train on, two to measure on."""
    folder = tmp_path / "clips"
    folder.mkdir()
    ramp = torch.arange(24, dtype=torch.uint8).expand(20, 24)
    for name, count in (("a", 128), ("b", 128), ("c", 40)):
        with VideoWriter(folder / f"{name}.mp4", 25, 24, 20) as writer:
            for t in range(count):
                writer.write(torch.stack([ramp * 8, ramp + t, 255 - ramp], dim=2))
    return folder


def test_the_command_writes_a_table_and_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {name: VARIANTS[name] for name in ("full", "no-sif")}
    monkeypatch.setattr(ablations, "VARIANTS", variants)
    monkeypatch.setattr("benchmarks.studies.ablation_report.VARIANTS", variants)
    results = tmp_path / "results"
    options = ["--data", data, "--results", results, "--held-out", 2, "--batch", 1, "--side", 16, "--note", "Ramps."]
    command = ["ablations", *map(str, options), "--steps", "2"]
    assert CliRunner().invoke(app, [*command, "--seeds", "1"], catch_exceptions=False).exit_code == 0
    first = read_json(results / "ablations.json.gz")["measured"]
    assert set(first) == {"full/0", "no-sif/0"}
    assert len(first["full/0"]["psnr_32"]) == 2 and len(first["full/0"]["losses"]) == 2
    assert "psnr_128_sets_8" in first["full/0"] and "psnr_128_sets_8" not in first["no-sif/0"]
    text = (results / "ablations.md").read_text()
    assert "one seed: no error bar" in text and "Ramps." in text and "nan" not in text

    assert CliRunner().invoke(app, [*command, "--seeds", "2"], catch_exceptions=False).exit_code == 0
    both = read_json(results / "ablations.json.gz")["measured"]
    assert set(both) == {"full/0", "no-sif/0", "full/1", "no-sif/1"}
    assert both["full/0"] == first["full/0"] and both["full/1"]["losses"] != first["full/0"]["losses"]
    with pytest.raises(ValueError, match=r"json.gz was measured with other settings \(budget\): move it away"):
        CliRunner().invoke(app, ["ablations", *map(str, options), "--steps", "3"], catch_exceptions=False)
    assert "±" in (results / "ablations.md").read_text() and (results / "ablations.png").stat().st_size > 10_000


def test_too_few_videos_are_named(data: Path) -> None:
    with pytest.raises(ValueError, match=r"more than 3 videos, 3 of them of 128 frames or more: .* has 3 videos, 2 of"):
        ablations.load(data, 3, 16)


def test_error_bars_pool_the_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds: differences to full of 1 and 3 dB, and of -1 and -1; variances 2 and 0."""
    variants = {name: VARIANTS[name] for name in ("full", "no-sif", "softvq")}
    monkeypatch.setattr("benchmarks.studies.ablation_report.VARIANTS", variants)
    psnr = {"full/0": 20.0, "full/1": 21.0, "no-sif/0": 21.0, "no-sif/1": 24.0, "softvq/0": 19.0, "softvq/1": 20.0}
    names = ["psnr_16", "psnr_32", "ssim_32", *(f"{m}_128_sets_{n}" for m in ("psnr", "ssim") for n in (1, 2, 4, 8))]
    summary = summarise({key: {name: [x - 1, x + 1] for name in names} for key, x in psnr.items()})
    assert (summary.seeds, summary.videos) == (2, 2)
    assert summary.differences["no-sif"].mean == pytest.approx(2)
    assert summary.differences["softvq"].mean == pytest.approx(-1)
    assert summary.differences["no-sif"].error == pytest.approx(2 * math.sqrt(1 / 2))
    assert summary.scores["full"]["psnr_32"].mean == pytest.approx(20.5)


@pytest.mark.parametrize(
    ("difference", "paper_db", "text"),
    [
        (Score(-1.0, 0.5), -3.0, "same sign as the paper"),
        (Score(1.0, 0.5), -3.0, "opposite sign to the paper"),
        (Score(-0.4, 0.5), -3.0, "no difference beyond the seeds' noise"),
        (Score(-1.0, 0.5), None, "worse than full"),
        (Score(-1.0, math.nan), -3.0, "one seed: no error bar"),
    ],
)
def test_verdicts(difference: Score, paper_db: float | None, text: str) -> None:
    assert verdict(difference, paper_db) == text
