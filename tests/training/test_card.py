"""The model card: its numbers are the model's, its files are complete."""

import json
from dataclasses import replace

import pytest

from benchmarks.cards.card import Networks, write_card
from tivtok import TivTok
from tivtok.metrics.lpips import LPIPS
from tivtok.training import train


def test_card_of_a_small_run(config, lpips_weights):
    config = replace(config, steps=3, model=config.model.replace(native_size=(32, 32)), short_sides=(32,))
    train(config)
    other = TivTok(config.model.replace(num_tiv=0)).eval()
    networks = Networks({"lpips-alex": LPIPS("alex", weights=lpips_weights)}, lambda x: x.mean((3, 4)).flatten(1))
    with pytest.raises(ValueError, match="at least 2"):
        write_card(config, networks=networks)  # rFVD of one clip
    networks = replace(networks, features=None)
    card = write_card(config, "Trained on moving gradients.", {"no split": other}, networks)
    metrics = json.loads((card.parent / "metrics.json").read_text())
    assert sorted(p.name for p in card.parent.iterdir()) == [
        "README.md",
        "config.json",
        "curve.png",
        "metrics.json",
        "model.safetensors",
    ]
    assert list(metrics["clips"]) == ["test.mp4"] and metrics["num_values"] == (4 + 2 * 2) * 8
    text = card.read_text()
    assert "Trained on moving gradients." in text and metrics["model_id"] in text
    assert list(metrics["means"]) == ["TivTok", "no split", "still picture", "resampling", "DCT"]
    for name, scores in metrics["means"].items():
        assert list(scores) == ["psnr", "ssim", "lpips-alex"] and scores == metrics["clips"]["test.mp4"][name]
        row = f"| {name} | {scores['psnr']:.2f} | {scores['ssim']:.3f} | {scores['lpips-alex']:.3f} |"
        assert row in text
