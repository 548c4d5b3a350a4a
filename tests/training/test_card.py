"""The model card: its numbers are the model's, its files are complete."""

import json
from dataclasses import replace

from tivtok.training import train
from tivtok.training.card import mean_scores, write_card


def test_card_of_a_small_run(config):
    config = replace(config, steps=3)
    train(config)
    card = write_card(config, "Trained on moving gradients.")
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
    assert f"{mean_scores(metrics, 'tivtok')['psnr']:.2f}" in text
