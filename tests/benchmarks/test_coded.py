"""Coded tokens beside video codecs, on a clip that is small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.dumps import read_json
from benchmarks.studies.__main__ import app
from benchmarks.studies.coded import STEPS, best_within, measure, report, with_step
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens.calibration import Calibration
from tivtok.video import VideoWriter

# Coarse random patches that move.
_PATCHES = torch.randint(0, 256, (12, 12, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
CLIP = torch.stack([_PATCHES.repeat_interleave(6, 0).repeat_interleave(6, 1)[i : i + 64, i : i + 64] for i in range(8)])


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_a_codec_has_the_most_quality_within_the_bytes(codec: str) -> None:
    small, large = best_within(codec, CLIP, 600), best_within(codec, CLIP, 4000)
    assert small is not None and large is not None and small[0] <= 600 and large[0] <= 4000
    assert small[1] < large[1] and large[1] > 21
    assert best_within(codec, CLIP, 10) is None


@torch.no_grad()
def test_finer_steps_take_more_bytes_and_the_table_has_a_row_each(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = TivTok(
        TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1, native_size=(64, 64))
    )
    tokens = model.encode(CLIP.permute(3, 0, 1, 2)[None])
    calibration = Calibration.of(tokens.tiv[0], tokens.tv[0], float(tokens.tiv.std()) / 8, model.model_id)
    same = with_step(calibration, 1.0)
    assert same == calibration
    monkeypatch.setattr("benchmarks.studies.coded.VIDEO_CODECS", {})
    rows = measure(model, calibration, CLIP)
    sizes = [rows[f"{step:g}"]["tokens"][0] for step in STEPS]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    page = report({"size": [64, 64], "model": "m", "frames": 8, "data": "", "step": 0.1}, {"clip": rows})
    assert page.count("\n| ") == 1 + 2 + len(STEPS)


def test_only_the_clips_that_are_named_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = TivTok(TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1))
    model.save_pretrained(tmp_path / "model")
    tokens = model.encode(CLIP.permute(3, 0, 1, 2)[None])
    step = float(tokens.tiv.detach().std()) / 8
    Calibration.of(tokens.tiv[0], tokens.tv[0], step, model.model_id).save(tmp_path / "model")
    (tmp_path / "clips").mkdir()
    for name in ("a__f0000", "b__f0000"):
        with VideoWriter(tmp_path / "clips" / f"{name}.mp4", fps=10, width=64, height=64) as writer:
            writer.write(CLIP)
    monkeypatch.setattr(
        "benchmarks.studies.coded.VIDEO_CODECS",
        {"libx264": ({"preset": "ultrafast", "x264-params": "log-level=none"}, 51)},
    )
    command = [
        "coded",
        "--data",
        str(tmp_path / "clips"),
        "--model",
        str(tmp_path / "model"),
        "--results",
        str(tmp_path),
    ]
    CliRunner().invoke(app, [*command, "--only", "b__*"], catch_exceptions=False)
    assert list(read_json(tmp_path / "coded.json.gz")["measured"]) == ["b__f0000"]
    assert "![PSNR against bytes](coded.png)" in (tmp_path / "coded.md").read_text()
    assert (tmp_path / "coded.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="there are no clips in"):
        CliRunner().invoke(
            app, [*command, "--results", str(tmp_path / "clips"), "--only", "c*"], catch_exceptions=False
        )
