"""Which videos `TivTok.encode` takes: dtypes of the video and of the weights, and what is named when it takes none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tivtok import TivTok, Tokens
from tivtok.streaming import encode_stream
from tivtok.tokenizer import LARGEST_VALUE
from tivtok.video import to_float

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 21, 18, 21), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", FLOATS)
@pytest.mark.parametrize("tiv_sets", [2, "auto"])
@torch.no_grad()
def test_any_dtype_into_a_model_of_any_dtype(model: TivTok, pixels, weights, tiv_sets, tmp_path) -> None:
    """Tokens are those of the same video in the weights' dtype, and go through files and back."""
    model = model.to(weights)
    for dtype in (torch.uint8, *FLOATS):
        video = pixels if dtype == torch.uint8 else to_float(pixels, dtype)
        tokens = model.encode(video, tiv_sets)
        assert tokens.tiv.dtype == tokens.tv.dtype == weights
        same = model.encode(to_float(video, weights), tokens.tiv.shape[1])
        if tiv_sets != "auto":
            assert torch.equal(tokens.tv, same.tv) and torch.equal(tokens.tiv, same.tiv)
        tokens.save(tmp_path / "a.tivtok")
        for stored in (tokens, Tokens.load(tmp_path / "a.tivtok"), tokens.to(dtype=torch.bfloat16)):
            decoded = model.decode(stored)
            assert decoded.dtype == weights and decoded.shape == video.shape and decoded.isfinite().all()


@torch.no_grad()
def test_scaling_of_bytes(model: TivTok, pixels) -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8), torch.float16).tolist() == [-1, 1]
    want = model.encode(pixels.double() / 127.5 - 1)
    assert torch.equal(model.encode(pixels).tv, want.tv)
    assert torch.equal(model.encode_chunks(pixels)[1], want.tv)
    assert torch.equal(model(pixels), model(pixels.double() / 127.5 - 1))


@torch.no_grad()
def test_streams_take_a_model_of_half_precision(model: TivTok, pixels) -> None:
    model = model.bfloat16()
    chunks = pixels[0].permute(1, 2, 3, 0).split(16)
    assert torch.equal(encode_stream(model, chunks).tv, model.encode(pixels).tv.float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64])
def test_other_dtypes_are_refused(model: TivTok, pixels, dtype) -> None:
    for take in (model.encode, model.encode_chunks, model):
        with pytest.raises(TypeError, match=rf"video must be of one of the dtypes .*uint8 \(0..255\), got {dtype}"):
            take(pixels.to(dtype))


def test_other_things_are_refused(model: TivTok) -> None:
    with pytest.raises(TypeError, match="video must be a tensor, got ndarray"):
        model.encode(np.zeros((1, 3, 4, 8, 8), np.float32))
    with pytest.raises(ValueError, match="video must be on cpu like the model, got one on meta"):
        model.encode(torch.zeros(1, 3, 4, 8, 8, device="meta"))


def test_sets_and_frames_that_are_no_numbers_are_named(model: TivTok) -> None:
    video = torch.zeros(1, 3, 4, 8, 8)
    for wrong in (1.5, None, "2"):
        with pytest.raises(TypeError, match='tiv_sets must be a whole number or "auto", got '):
            model.encode(video, wrong)  # type: ignore[arg-type]
    tokens = model.encode(video)
    for wrong in (1, 1.5, "1"):
        with pytest.raises(TypeError, match="frames must be a slice, or numbers of frames in a sequence, got "):
            model.decode(tokens, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 255.0, -1.01 * LARGEST_VALUE])
def test_one_value_that_cannot_be_is_refused(model: TivTok, dtype, value) -> None:
    video = torch.zeros(1, 3, 9, 8, 8, dtype=dtype)
    video[0, 1, 7, 3, 2] = value
    with pytest.raises(ValueError, match=r"video must be (finite and )?in \[-1, 1\].* got "):
        model.encode(video)


@torch.no_grad()
def test_what_resizing_adds_is_taken(model: TivTok) -> None:
    model.encode(torch.full((1, 3, 4, 8, 8), LARGEST_VALUE))
    model.encode(torch.full((1, 3, 4, 8, 8), -LARGEST_VALUE))
