"""Encoding and decoding chunk by chunk gives what encoding and decoding the whole video gives."""

from __future__ import annotations

import pytest
import torch

from tivtok.config import TivTokConfig
from tivtok.model import TivTok
from tivtok.streaming import decode_stream, encode_stream
from tivtok.tokens import TokensError
from tivtok.video import frames_to_video, video_to_frames

CONFIG = TivTokConfig.preset("tiny").replace(width=48, heads=2, encoder_layers=1, decoder_layers=1)


@pytest.fixture(scope="module")
def model() -> TivTok:
    torch.manual_seed(0)
    return TivTok(CONFIG).eval()


def noise(num_frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num_frames, height, width, 3), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("num_frames, tiv_sets", [(1, 1), (16, 1), (37, 1), (37, 3), (48, 2)])
def test_streaming_equals_the_whole(model: TivTok, num_frames: int, tiv_sets: int) -> None:
    frames = noise(num_frames)
    tokens = encode_stream(model, iter(frames.split(16)), tiv_sets, fps=25.0)
    with torch.no_grad():
        whole = model.encode(frames_to_video(frames)[None], tiv_sets, fps=25.0)
        video = video_to_frames(model.decode(whole)[0])
    torch.testing.assert_close(tokens.tiv, whole.tiv)
    torch.testing.assert_close(tokens.tv, whole.tv)
    assert torch.equal(tokens.tiv_index, whole.tiv_index)
    assert (tokens.num_frames, tokens.height, tokens.width, tokens.fps) == (num_frames, 16, 24, 25.0)

    chunks = list(decode_stream(model, tokens))
    assert [len(c) for c in chunks] == [len(c) for c in frames.split(16)]
    assert (torch.cat(chunks).int() - video.int()).abs().max() <= 1


@pytest.mark.parametrize("frames", [range(1), range(14, 35), range(36, 37), range(5, 5)])
def test_a_run_of_frames(model: TivTok, frames: range) -> None:
    tokens = encode_stream(model, noise(37).split(16))
    whole = torch.cat(list(decode_stream(model, tokens)))
    run = list(decode_stream(model, tokens, frames))
    got = torch.cat(run) if run else whole[:0]
    assert got.shape == whole[frames.start : frames.stop].shape
    assert (got.int() - whole[frames.start : frames.stop].int()).abs().sum() <= len(got)  # rounding to 8 bits


def test_what_does_not_fit(model: TivTok) -> None:
    with pytest.raises(ValueError, match="no frames"):
        encode_stream(model, [])
    with pytest.raises(ValueError, match="every chunk but the last must hold 16 frames"):
        encode_stream(model, noise(20).split(5))
    with pytest.raises(ValueError, match="every chunk but the last must hold 16 frames"):
        encode_stream(model, [noise(17)])
    tokens = encode_stream(model, [noise(8)])
    with pytest.raises(ValueError, match="a run within"):
        list(decode_stream(model, tokens, range(4, 9)))
    with pytest.raises(TokensError, match="this is model"):
        list(decode_stream(TivTok(CONFIG), tokens))
    with torch.no_grad():
        two = model.encode(torch.zeros(2, 3, 4, 16, 16))
    with pytest.raises(TokensError, match="batch of 2"):
        list(decode_stream(model, two))
