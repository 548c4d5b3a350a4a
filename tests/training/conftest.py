"""Small runs: moving gradients as data, random networks in place of DINOv2 and LPIPS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import Dinov2Config, Dinov2Model

from tivtok import TivTokConfig
from tivtok.training import TrainConfig, train
from tivtok.training.config import AdversarialConfig, PerceptualConfig
from tivtok.training.trainer import Trainer
from tivtok.video import VideoWriter

MODEL = TivTokConfig(
    name="minimal",
    num_tiv=4,
    num_tv=2,
    latent_dim=8,
    width=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    groups_per_chunk=2,
    native_size=(16, 16),
)


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Dinov2Model of four narrow blocks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for LPIPS on AlexNet."""
    generator = torch.Generator().manual_seed(0)
    convolutions = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    tensors = {}
    for index, (layer, (out, into, kernel)) in enumerate(convolutions.items()):
        weight = torch.randn(out, into, kernel, kernel, generator=generator)
        tensors[f"features.{layer}.weight"] = weight / (into * kernel**2) ** 0.5
        tensors[f"features.{layer}.bias"] = torch.zeros(out)
        tensors[f"lin{index}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.fixture
def train_and_kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainConfig, int], None]:
    """Train until so many steps are done, then die without saving."""

    def run(config: TrainConfig, steps: int) -> None:
        step = Trainer.step

        def killed(self: Trainer, video: torch.Tensor, number: int) -> dict[str, float] | None:
            if number == steps:
                raise KeyboardInterrupt
            return step(self, video, number)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Trainer, "step", killed)
            train(config)

    return run


@pytest.fixture
def full_config(config: TrainConfig, dinov2: Path, lpips_weights: Path) -> TrainConfig:
    """The paper's recipe in small: all terms of the loss, clips of two chunks or one, the discriminator from step 2."""
    return replace(
        config,
        model=MODEL.replace(native_size=(32, 32), groups_per_chunk=1, quantizer="softvq", codebook_size=16),
        chunks=2,
        short_sides=(32,),
        batch_size=4,
        optimizer="adamw",
        augmentation="flip",
        perceptual=PerceptualConfig("alex", lpips_weights, warmup_steps=3),
        adversarial=AdversarialConfig(dinov2, start=2, image_size=28, cutout=0.2, consistency=4.0),
        feature_frames=6,
        short_clips=0.5,
        siblings=0.5,
        without_tv=0.5,
        quantization_noise=0.1,
        entropy=0.01,
    )


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Moving gradients in three files, one of them held out."""
    data = tmp_path / "clips"
    data.mkdir()
    y, x = np.mgrid[:24, :32]
    for i, name in enumerate(("a", "b", "test")):
        with VideoWriter(data / f"{name}.mp4", fps=10, width=32, height=24) as writer:
            for t in range(12):
                plane = (x * (i + 3) + y * 5 + t * 9) % 256
                writer.write(np.stack([plane, 255 - plane, plane // 2], axis=-1).astype(np.uint8))
    return TrainConfig(
        output=tmp_path / "run",
        data=data,
        model=MODEL,
        steps=6,
        batch_size=2,
        held_out=("test*",),
        short_sides=(16, 20),
        optimizer="muon",
        in_memory=True,
        workers=0,
        log_every=1,
        evaluate_every=3,
        save_every=3,
    )
