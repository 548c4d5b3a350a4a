"""Encoding and decoding chunk by chunk gives what encoding and decoding the whole video gives, from what it needs."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tivtok.model.config import TivTokConfig
from tivtok.streaming import decode_stream, encode_stream, encode_to_file
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens, TokensError
from tivtok.tokens.format import FIELDS
from tivtok.tokens.writer import TokenWriter
from tivtok.video import frames_to_video, video_to_frames

CONFIG = TivTokConfig.preset("tiny").replace(width=48, heads=2, encoder_layers=1, decoder_layers=1)


@pytest.fixture(scope="module")
def model() -> TivTok:
    torch.manual_seed(0)
    return TivTok(CONFIG).eval()


def noise(num_frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num_frames, height, width, 3), generator=generator).to(torch.uint8)


# Chunks of other batches round otherwise, differently on every processor: far above float32, far below a wrong chunk.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("num_frames, tiv_sets", [(1, 1), (16, 1), (37, 1), (37, 3), (48, 2)])
def test_streaming_equals_the_whole(model: TivTok, num_frames: int, tiv_sets: int) -> None:
    frames = noise(num_frames)
    tokens = encode_stream(model, iter(frames.split(16)), tiv_sets, fps=25.0)
    with torch.no_grad():
        whole = model.encode(frames_to_video(frames)[None], tiv_sets, fps=25.0)
        video = video_to_frames(model.decode(whole)[0])
    torch.testing.assert_close(tokens.tiv, whole.tiv, **ROUNDING)
    torch.testing.assert_close(tokens.tv, whole.tv, **ROUNDING)
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
    with pytest.raises(IndexError, match=r"within 0\.\.7, got 8"):
        list(decode_stream(model, tokens, range(4, 9)))
    with pytest.raises(TokensError, match="this is model"):
        list(decode_stream(TivTok(CONFIG), tokens))
    with torch.no_grad():
        two = model.encode(torch.zeros(2, 3, 4, 16, 16))
    with pytest.raises(TokensError, match="batch of 2"):
        list(decode_stream(model, two))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_streamed_file_is_a_saved_file(model: TivTok, tmp_path: Path, dtype: str) -> None:
    encode_to_file(model, noise(37).split(16), tmp_path / "a.tivtok", 2, 25.0, dtype)  # type: ignore[arg-type]
    encode_stream(model, noise(37).split(16), 2, 25.0).save(tmp_path / "b.tivtok", dtype)  # type: ignore[arg-type]
    a, b = (safetensors.torch.load_file(tmp_path / name) for name in ("a.tivtok", "b.tivtok"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
    loaded, saved = Tokens.load(tmp_path / "a.tivtok"), Tokens.load(tmp_path / "b.tivtok")
    assert all(getattr(loaded, name) == getattr(saved, name) for name in (*FIELDS, "chunk_frames"))
    assert sorted(os.listdir(tmp_path)) == ["a.tivtok", "b.tivtok"]


@pytest.mark.parametrize("change", [{"num_tiv": 0}, {"num_tv": 0}, {"num_tiv": 3, "num_tv": 1, "latent_dim": 5}])
def test_token_sizes_of_any_kind_are_stored(change: dict[str, int], tmp_path: Path) -> None:
    """No tokens of one kind at all; sizes that leave the index at an odd place in the file."""
    torch.manual_seed(0)
    odd = TivTok(CONFIG.replace(**change)).eval()
    encode_to_file(odd, noise(37).split(16), tmp_path / "a.tivtok", 1, None, "float16")
    tokens = Tokens.load(tmp_path / "a.tivtok")
    assert (
        tokens.tiv.shape == (1, 1, odd.config.num_tiv, odd.config.latent_dim) and tokens.tiv_index.tolist() == [0] * 10
    )
    assert sum(len(frames) for frames in decode_stream(odd, tokens)) == 37


def test_an_encode_that_stops_leaves_what_was_there(model: TivTok, tmp_path: Path) -> None:
    path = tmp_path / "a.tivtok"
    path.write_bytes(b"old")

    def interrupted() -> object:
        yield noise(16)
        assert len(os.listdir(tmp_path)) == 2  # it is under way
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_to_file(model, interrupted(), path)  # type: ignore[arg-type]
    with pytest.raises(TokensError, match="fps must be"):
        encode_to_file(model, [noise(16)], path, fps=-1.0)
    with torch.no_grad():
        broken = TivTok(CONFIG)
        broken.encoder.to_latent.weight.fill_(torch.inf)
    with pytest.raises(TokensError, match="not finite"):
        encode_to_file(broken, [noise(16)], path)
    assert os.listdir(tmp_path) == ["a.tivtok"] and path.read_bytes() == b"old"


def test_any_frames_in_any_order(model: TivTok) -> None:
    tokens = encode_stream(model, noise(37).split(16), tiv_sets=3)
    whole = torch.cat(list(decode_stream(model, tokens)))
    frames = [36, 0, 1, 17, 16, 15, 20, 20, 3]
    got = torch.cat(list(decode_stream(model, tokens, frames)))
    assert (got.int() - whole[frames].int()).abs().max() <= 1
    with torch.no_grad():
        direct = model.decode(tokens, frames=frames)
        torch.testing.assert_close(direct, model.decode(tokens)[:, :, frames], **ROUNDING)
    with pytest.raises(IndexError):
        model.decode(tokens, frames=[37])


def test_each_tiv_set_is_prepared_once_and_only_if_it_is_used(model: TivTok, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = encode_stream(model, noise(80).split(16), tiv_sets=5)
    prepared: list[float] = []
    groups: list[int] = []

    def count_prepare(tiv: torch.Tensor) -> object:
        prepared.append(float(tiv.sum()))
        return original_prepare(tiv)

    def count_groups(p: object, tv: torch.Tensor, *rest: object) -> torch.Tensor:
        groups.append(tv.shape[1])
        return original_groups(p, tv, *rest)

    original_prepare, original_groups = model.decoder.prepare, model.decoder.groups
    monkeypatch.setattr(model.decoder, "prepare", count_prepare)
    monkeypatch.setattr(model.decoder, "groups", count_groups)
    list(decode_stream(model, tokens))
    assert len(prepared) == len(set(prepared)) == 5 and groups == [4] * 5
    prepared.clear(), groups.clear()
    list(decode_stream(model, tokens, range(30, 50)))  # chunks 1, 2, 3; groups 7 to 12
    assert prepared == [float(tokens.tiv[:, i].sum()) for i in (1, 2, 3)] and groups == [1, 4, 1]
    prepared.clear(), groups.clear()
    list(decode_stream(model, encode_stream(model, noise(80).split(16)), [70, 0, 40, 1]))
    assert len(prepared) == 1 and groups == [1, 1, 1, 1]


def long_file(path: Path, groups: int) -> None:
    """A token file of ``groups`` frame groups and as many MiB, with two TIV sets."""
    with TokenWriter.create(path) as out:
        for group in range(groups):
            tiv = torch.full((1, CONFIG.num_tiv, CONFIG.latent_dim), float(group >= groups // 2))
            out.add(tiv, torch.ones(1, 1, 2**20 // (4 * CONFIG.latent_dim), CONFIG.latent_dim))
        fields = {"num_frames": 4 * groups, "height": 16, "width": 16, "fps": 25.0, "preset": "x", "model_id": "x"}
        out.close((torch.arange(groups) >= groups // 2).long(), fields | {"chunk_frames": None})


def mapped_bytes(path: Path) -> int:
    """How much of a mapped file has been read into this process."""
    text = Path("/proc/self/smaps").read_text()
    return sum(1024 * int(kib) for kib in re.findall(rf"{re.escape(str(path))}\n.*?Rss:\s+(\d+) kB", text, re.DOTALL))


def test_only_the_bytes_needed_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.tivtok"
    long_file(path, groups=32)
    tokens = Tokens.open(path)
    assert tokens.tv.shape[1] == 32 and path.stat().st_size > 32 * 2**20
    before = mapped_bytes(path)
    assert before < 2**20
    assert tokens.tv[:, 16].sum() == tokens.tv[0, 16].numel() and tokens.sets_of(torch.tensor([16])).item() == 1
    assert 2**20 <= mapped_bytes(path) - before < 1.25 * 2**20  # the system reads a little around what is asked for
    assert bool(tokens.tv.isfinite().all()) and mapped_bytes(path) > 32 * 2**20  # the measure sees a whole read


def test_damage_elsewhere_does_not_matter_and_here_is_an_error(model: TivTok, tmp_path: Path) -> None:
    encode_to_file(model, noise(80).split(16), tmp_path / "a.tivtok", tiv_sets=5)
    whole = Tokens.load(tmp_path / "a.tivtok")
    tv, tiv, index = whole.tv.clone(), whole.tiv.clone(), whole.tiv_index.clone()
    tv[:, 9:], tiv[:, 3:], index[12:] = torch.nan, torch.nan, 77
    damaged = replace(whole, tv=tv, tiv=tiv, tiv_index=index)
    frames = torch.cat(list(decode_stream(model, damaged, range(30, 36))))
    assert torch.equal(frames, torch.cat(list(decode_stream(model, whole, range(30, 36)))))
    with pytest.raises(TokensError, match="tv holds values that are not finite in frame groups 8 to 9"):
        list(decode_stream(model, damaged, range(35, 37)))
    with pytest.raises(TokensError, match=r"tiv_index must be within 0\.\.4"):
        list(decode_stream(model, damaged, [79]))
    with pytest.raises(TokensError, match="tiv holds values that are not finite in set 4"):
        list(decode_stream(model, replace(damaged, tv=whole.tv, tiv_index=whole.tiv_index), [79]))
