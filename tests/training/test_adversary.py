"""Discriminator, DiffAug, LeCAM and the adaptive weight, each against what it is defined to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tivtok import TivTok
from tivtok.training import TrainConfig
from tivtok.training.adversary import Adversary
from tivtok.training.config import PerceptualConfig
from tivtok.training.diffaug import MAX_SHIFT, NUM_DRAWS, augment
from tivtok.training.discriminator import DinoFeatures, Heads, Lecam, hinge
from tivtok.training.losses import LastLayer, adaptive_weight

VIDEO = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_augmentation_is_the_identity_at_probability_zero() -> None:
    assert torch.equal(augment(VIDEO, torch.rand(2, NUM_DRAWS), 0.0), VIDEO)


def draws(policy: int, *amounts: float) -> torch.Tensor:
    """For both clips: policy 0, 1 or 2 alone is on, its amounts given, the others in the middle."""
    row = torch.full((NUM_DRAWS,), 0.5)
    row[:3] = 1.0
    row[policy] = 0.0
    first = (3, 6, 8)[policy]
    row[first : first + len(amounts)] = torch.tensor(amounts)
    return row.expand(2, -1)


def test_colours() -> None:
    torch.testing.assert_close(augment(VIDEO, draws(0, 0.5, 0.5, 0.5), 0.5), VIDEO)
    torch.testing.assert_close(augment(VIDEO, draws(0, 0.75, 0.5, 0.5), 0.5), VIDEO + 0.25)
    grey = augment(VIDEO, draws(0, 0.5, 0.0, 0.5), 0.5)
    torch.testing.assert_close(grey, VIDEO.mean(1, keepdim=True).expand_as(VIDEO))
    contrast = augment(VIDEO, draws(0, 0.5, 0.5, 1.0), 0.5)
    torch.testing.assert_close(contrast.std(dim=(1, 2, 3, 4)), 1.5 * VIDEO.std(dim=(1, 2, 3, 4)))


def test_translation_moves_every_frame_alike() -> None:
    moved = augment(VIDEO, draws(1, 1.0, 0.0), 0.5)
    shift = int(MAX_SHIFT * 16)
    assert shift > 0
    assert torch.equal(moved[..., shift:, :-shift], VIDEO[..., :-shift, shift:])
    assert not moved[..., :shift, :].any() and not moved[..., -shift:].any()


def test_cutout_is_half_the_side_and_where_it_is_drawn() -> None:
    small = augment(VIDEO, draws(2, 0.5, 0.5), 0.5, cutout=0.25)
    assert (small == 0).all(dim=(0, 1, 2)).sum() == (VIDEO.shape[3] // 4) * (VIDEO.shape[4] // 4)
    holed = augment(VIDEO, draws(2, 0.5, 0.5), 0.5)
    assert not holed[..., 4:12, 4:12].any()
    expected = VIDEO.clone()
    expected[..., 4:12, 4:12] = 0
    assert torch.equal(holed, expected)


def test_augmentation_passes_gradients() -> None:
    video = VIDEO.clone().requires_grad_()
    augment(video, torch.zeros(2, NUM_DRAWS), 1.0).square().sum().backward()
    assert video.grad is not None and video.grad.isfinite().all() and video.grad.any()


def test_features_come_from_the_embedding_and_four_blocks(dinov2: Path) -> None:
    features = DinoFeatures.load(dinov2, image_size=28)
    assert features.layers == (0, 1, 2, 3, 4)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    maps = features(images)
    assert [x.shape for x in maps] == [(2, 16, 2, 2)] * 5
    hidden = features.backbone(
        (torch.nn.functional.interpolate((images + 1) / 2, (28, 28), mode="bilinear", antialias=True) - features.mean)
        / features.std,
        output_hidden_states=True,
    ).hidden_states
    torch.testing.assert_close(maps[3][:, :, 1, 0], hidden[3][:, 3])  # row 1, column 0 is token 1 + 2
    assert not any(p.requires_grad for p in features.parameters())


def test_dinov2_small_is_tapped_at_blocks_2_5_8_11() -> None:
    class Backbone(torch.nn.Module):
        class config:  # noqa: N801
            patch_size, hidden_size, num_hidden_layers = 14, 384, 12

    # hidden state 0 is the embedding, hidden state i + 1 comes after block i
    assert DinoFeatures(Backbone(), 224).layers == (0, 3, 6, 9, 12)


def test_what_is_no_dinov2_is_named(dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a folder with config\.json and model\.safetensors"):
        DinoFeatures.load(tmp_path, 28)
    with pytest.raises(ValueError, match="image_size must be a multiple of the patch of 14, got 30"):
        DinoFeatures.load(dinov2, 30)


def test_heads_are_spectrally_normalised_and_judge_each_frame_alone() -> None:
    torch.manual_seed(0)
    heads = Heads(16).eval()
    features = [torch.randn(3, 16, 2, 2) for _ in range(5)]
    logits = heads(features)
    assert logits.shape == (3, 5 * 4)
    torch.testing.assert_close(heads([x[1:2] for x in features]), logits[1:2])
    weight = heads.heads[0].to_logit.weight.detach().flatten(1)
    assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(1, abs=1e-2)


def test_hinge_and_lecam() -> None:
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-2.0, 0.5]])
    assert hinge(real, fake) == pytest.approx((0.25 + 0.75) / 2)
    lecam = Lecam(0.9, torch.device("cpu"))
    lecam.update(torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(lecam.averages, torch.tensor([0.1, -0.1]))
    assert lecam.penalty(real, fake) == pytest.approx((2.1**2 + 0.6**2) / 2 + (2.1**2 + 0) / 2, rel=1e-5)


@pytest.mark.parametrize("decoder", ["shared", "per_frame"])
def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(config: TrainConfig, decoder: str) -> None:
    torch.manual_seed(0)
    model = TivTok(config.model.replace(decoder=decoder))
    last = LastLayer(model)
    output = model(VIDEO)
    losses = (output - VIDEO).abs().mean(), (output * torch.linspace(0, 1, 16)).mean()
    expected = [torch.autograd.grad(x, model.decoder.to_pixels.weight, retain_graph=True)[0] for x in losses]
    got = [last.gradient(torch.autograd.grad(x, output, retain_graph=True)[0]) for x in losses]
    torch.testing.assert_close(got, expected)
    assert adaptive_weight(*got) == pytest.approx(float(expected[0].norm() / expected[1].norm()), rel=1e-3)


def test_the_consistency_term_is_between_two_augmentations(full_config: TrainConfig, dinov2: Path) -> None:
    """It makes logits less sensitive to them, and is the smaller for it."""
    draws = torch.from_numpy(np.random.default_rng(0).random((2, 12, 4, NUM_DRAWS), dtype="float32"))
    real, last = torch.linspace(-1, 1, 16).expand_as(VIDEO), []
    for weight in (1e-6, 30.0):
        torch.manual_seed(0)
        options = replace(full_config.adversarial, learning_rate=1e-2, consistency=weight)
        config = replace(full_config, adversarial=options)
        adversary = Adversary(DinoFeatures.load(dinov2, 28), config, Accelerator(cpu=True))
        stats = [adversary.step(real, VIDEO, a, b, rate=1.0) for a, b in zip(*draws, strict=True)]
        last.append(np.mean([one["consistency"] for one in stats[-4:]]))
    assert 0 < last[1] < 0.5 * last[0]
    torch.manual_seed(0)
    config = replace(full_config, adversarial=replace(full_config.adversarial, consistency=0.0))
    adversary = Adversary(DinoFeatures.load(dinov2, 28), config, Accelerator(cpu=True))
    assert "consistency" not in adversary.step(real, VIDEO, draws[0, 0], draws[1, 0], rate=1.0)


def test_the_weight_of_lpips_rises() -> None:
    config = PerceptualConfig(weight=2.0, warmup_steps=4)
    assert [config.weight_at(step) for step in (0, 1, 4, 5)] == [0, 0.5, 2, 2]
    assert PerceptualConfig().weight_at(0) == 1


def test_the_discriminator_learns_and_a_bad_step_changes_nothing(full_config: TrainConfig, dinov2: Path) -> None:
    torch.manual_seed(0)
    config = replace(full_config, adversarial=replace(full_config.adversarial, learning_rate=1e-2))
    adversary = Adversary(DinoFeatures.load(dinov2, 28), config, Accelerator(cpu=True))
    real, fake, still = torch.full_like(VIDEO, 0.5), VIDEO, torch.ones(4, NUM_DRAWS)
    before = adversary.loss(fake, still[:2]).item()
    stats = [adversary.step(real, fake, still, still, rate=1.0) for _ in range(20)]
    assert stats[-1]["discriminator"] < 0.7 * stats[0]["discriminator"]
    assert adversary.loss(fake, still[:2]).item() > before
    assert adversary.lecam.averages[0] > adversary.lecam.averages[1]

    kept = {name: x.clone() for name, x in adversary.heads.state_dict().items() if not name.endswith(("._u", "._v"))}
    averages = adversary.lecam.averages.clone()
    assert adversary.step(real, fake * float("nan"), still, still, rate=1.0) is None
    assert all(torch.equal(x, adversary.heads.state_dict()[name]) for name, x in kept.items())
    assert torch.equal(averages, adversary.lecam.averages)
