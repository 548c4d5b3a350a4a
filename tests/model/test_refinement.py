"""Refined tokens: those of the same optimisation written down plainly, never worse, and the same from every door."""

from __future__ import annotations

import pytest
import torch

from tivtok import TivTok, TivTokConfig
from tivtok.refinement import STEP_SIZE, refine
from tivtok.streaming import encode_stream
from tivtok.tokens import TokensError
from tivtok.video import frames_to_video


@pytest.fixture
def small() -> TivTok:
    torch.manual_seed(0)
    config = TivTokConfig.preset("tiny").replace(width=48, heads=2, encoder_layers=1, decoder_layers=1)
    model = TivTok(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def video(frames: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, frames, 18, 21, generator=generator, dtype=torch.float64) * 2 - 1


def errors(model: TivTok, tokens, clip: torch.Tensor) -> torch.Tensor:
    return (model.decode(tokens) - clip).square().flatten(1).mean(1)


@torch.no_grad()
def test_steps_are_those_of_adam_on_the_error_of_all_frames_of_a_set(model) -> None:
    """39 frames, two sets: the second one's last frame group is not full. One step, with no look at chunks."""
    clip = video(39)
    before = model.encode(clip, tiv_sets=2)
    after = refine(model, before, clip, steps=1)
    with torch.enable_grad():
        tiv, tv = before.tiv.clone().requires_grad_(), before.tv.clone().requires_grad_()
        groups_of_set = before.tiv_index.bincount().tolist()
        made = model.decode_groups(model.prepare(tiv), tv, groups_of_set, 18, 21)[:, :, :39]
        slopes = torch.autograd.grad((made - clip).square().sum(), (tiv, tv))
    for one, first, last in [(0, 0, groups_of_set[0]), (1, groups_of_set[0], 10)]:
        for name, at, slope in zip(("tiv", "tv"), (slice(one, one + 1), slice(first, last)), slopes, strict=True):
            old, new, slope = (x[:, at] for x in (getattr(before, name), getattr(after, name), slope))
            step = STEP_SIZE * old.square().mean().sqrt() * slope / (slope.abs() + 1e-8)  # Adam's first
            assert torch.equal(new, old) or torch.allclose(new, old - step, rtol=1e-6, atol=1e-9)
    assert (errors(model, after, clip) <= errors(model, before, clip)).all()


@pytest.mark.parametrize("steps", [1, 6])
@torch.no_grad()
def test_each_video_of_a_batch_gets_better_and_never_worse(small, steps) -> None:
    clips = video(39, batch=3).float()
    before = small.encode(clips)
    gains = []
    for number in range(3):
        one = refine(small, small.encode(clips[number : number + 1]), clips[number : number + 1], steps)
        gains.append(float(errors(small, one, clips[number : number + 1])))
    together = small.encode(clips, refine=steps)
    torch.testing.assert_close(errors(small, together, clips), torch.tensor(gains), rtol=1e-3, atol=0)
    assert (errors(small, together, clips) < 0.995 * errors(small, before, clips)).all()


@torch.no_grad()
def test_tokens_that_cannot_get_better_stay(small) -> None:
    tokens = small.encode(video(20).float())
    best_there_is = refine(small, tokens, small.decode(tokens), steps=3)
    torch.testing.assert_close(best_there_is.tiv, tokens.tiv, rtol=0, atol=0)
    torch.testing.assert_close(best_there_is.tv, tokens.tv, rtol=0, atol=0)


@torch.no_grad()
def test_it_repeats_and_leaves_the_model_alone(small) -> None:
    clip = video(20).float()
    weights = {name: x.clone() for name, x in small.state_dict().items()}
    first, second = (small.encode(clip, refine=3) for _ in range(2))
    assert torch.equal(first.tiv, second.tiv) and torch.equal(first.tv, second.tv)
    assert all(torch.equal(x, weights[name]) for name, x in small.state_dict().items())
    assert all(x.grad is None for x in small.parameters())
    assert first.model_id == small.model_id


def test_in_inference_mode(small) -> None:
    clip = video(20).float()
    with torch.inference_mode():
        inside = small.encode(clip, refine=2)
    outside = small.encode(clip, refine=2)
    torch.testing.assert_close(inside.tv, outside.tv.detach())
    assert not inside.tv.requires_grad and not outside.tv.requires_grad


@torch.no_grad()
def test_16_bit_weights_and_8_bit_video(small) -> None:
    frames = torch.randint(0, 256, (20, 18, 21, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    half = small.bfloat16()
    clip = frames.permute(3, 0, 1, 2)[None]
    before, after = half.encode(clip), half.encode(clip, refine=4)
    truth = frames_to_video(frames)[None]
    assert after.tiv.dtype == torch.float32
    assert (errors(half, after, truth) < errors(half, before, truth)).all()


@pytest.mark.parametrize("tiv_sets", [1, 2, "auto"])
@torch.no_grad()
def test_streaming_refines_to_the_same_quality_and_counts_its_steps(small, tiv_sets) -> None:
    frames = torch.randint(0, 256, (37, 16, 24, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    seen: list[tuple[int, int]] = []
    streamed = encode_stream(
        small, frames.split(16), tiv_sets, 25.0, refine=4, on_step=lambda done, total: seen.append((done, total))
    )
    clip = frames_to_video(frames)[None]
    whole = small.encode(clip, tiv_sets, 25.0, refine=4)
    torch.testing.assert_close(errors(small, streamed, clip), errors(small, whole, clip), rtol=1e-3, atol=0)
    total = 4 * whole.tiv.shape[1]
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert (streamed.fps, streamed.num_frames, streamed.model_id) == (25.0, 37, small.model_id)


def test_refused(small) -> None:
    clip = video(20).float()
    with pytest.raises(ValueError, match="refine must be at least 1 step, got -1"):
        small.encode(clip, refine=-1)
    with pytest.raises(ValueError, match=r'refine is for models with quantizer "none", got one with \'softvq\''):
        TivTok(small.config.replace(quantizer="softvq", codebook_size=16)).encode(clip, refine=1)
    torch.manual_seed(3)
    with pytest.raises(TokensError, match="made by model"):
        refine(TivTok(small.config), small.encode(clip), clip, 1)
