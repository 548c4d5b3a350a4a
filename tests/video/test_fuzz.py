"""Videos that are damaged at random, or of strange shapes: frames or one clear error, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tivtok.model.config import TivTokConfig
from tivtok.streaming import decode_stream, encode_stream, encode_to_file
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens, TokensError
from tivtok.video import VideoError, VideoReader, VideoWriter

FRAMES = 12


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    made = {}
    for suffix in (".mp4", ".mkv"):
        with VideoWriter(folder / f"a{suffix}", 25, 32, 16) as out:
            out.write(rng.integers(0, 255, (FRAMES, 16, 32, 3), dtype=np.uint8))
        made[suffix] = (folder / f"a{suffix}").read_bytes()
    return made


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    suffix=st.sampled_from([".mp4", ".mkv"]),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=8),
    allow=st.booleans(),
)
def test_damaged_videos_give_frames_or_a_video_error(
    clips: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, suffix: str, cut: float, flips: list, allow: bool
) -> None:
    data = bytearray(clips[suffix])
    for where, mask in flips:
        data[int(where * len(data))] ^= mask
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    path.write_bytes(data[: round(cut * len(data))])
    count = 0
    try:
        reader = VideoReader(path, allow)
        for frame in reader:
            assert frame.dtype == np.uint8 and frame.shape == (reader.height, reader.width, 3)
            count += 1
    except VideoError as error:
        assert str(path) in str(error)
    assert count <= 2 * FRAMES


@pytest.fixture(scope="module")
def model() -> TivTok:
    torch.manual_seed(0)
    return TivTok(TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)).eval()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4097, 3), (5, 3, 4097), (17, 1, 9)])
def test_strange_shapes_come_back(model: TivTok, shape: tuple[int, int, int]) -> None:
    frames = torch.zeros(*shape, 3, dtype=torch.uint8)
    tokens = encode_stream(model, frames.split(16))
    assert torch.cat(list(decode_stream(model, tokens))).shape == frames.shape


@settings(max_examples=40, deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=6))
def test_damaged_token_files_decode_or_say_why(
    model: TivTok, tmp_path_factory: pytest.TempPathFactory, flips: list
) -> None:
    """The path of `tivtok decode`: mapped, and checked where it is used. A flip may hit a value, which is then that."""
    path = tmp_path_factory.mktemp("damaged") / "a.tivtok"
    encode_to_file(model, torch.zeros(20, 16, 16, 3, dtype=torch.uint8).split(16), path, dtype="float16")
    data = bytearray(path.read_bytes())
    for where, mask in flips:
        data[int(where * len(data))] ^= mask
    path.write_bytes(data)
    try:
        tokens = Tokens.open(path)
        if tokens.height * tokens.width < 100_000:
            shapes = {frames.shape[1:] for frames in decode_stream(model, tokens)}
            assert shapes == {(tokens.height, tokens.width, 3)}
    except TokensError:
        pass


def test_files_that_this_model_cannot_have_made(model: TivTok) -> None:
    tokens = encode_stream(model, [torch.zeros(8, 16, 16, 3, dtype=torch.uint8)])
    fields = {name: getattr(tokens, name) for name in ("height", "width", "fps", "preset", "model_id")}
    for changed in (
        Tokens(tokens.tiv, tokens.tv, tokens.tiv_index, 60, **fields),
        Tokens(tokens.tiv[:, :, 1:], tokens.tv, tokens.tiv_index, 8, **fields),
        Tokens(tokens.tiv[..., 1:], tokens.tv[..., 1:], tokens.tiv_index, 8, **fields),
    ):
        with pytest.raises(TokensError, match="must be"):
            list(decode_stream(model, changed))
        with pytest.raises(TokensError, match="must be"):
            model.decode(changed)
