"""Files of version 3: 8-bit and coded values, read from anywhere, and never wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_tokens import make

from tivtok.checkpoints import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from tivtok.tokens import Tokens, TokensError
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.codecs import NUM_SCALES, Codecs, Coded, Int8
from tivtok.tokens.dataset import TokenDataset, shard_name, write_index, write_shard
from tivtok.tokens.packed import RUN, Blocks, BlockTensor
from tivtok.tokens.writer import TokenWriter

DATA = Path(__file__).parents[1] / "data"


def calibration(tokens: Tokens, step: float = 0.1) -> Calibration:
    return Calibration.of(tokens.tiv.flatten(0, 1), tokens.tv.flatten(0, 1), step, tokens.model_id)


@pytest.mark.parametrize("dtype", ["int8", "coded"])
def test_values_come_back_as_close_as_promised(tmp_path: Path, dtype: str) -> None:
    tokens = replace(make(batch=2, groups=40), chunk_frames=(100, 59))
    tokens.save(tmp_path / "a.tivtok", dtype, calibration(tokens))  # type: ignore[arg-type]
    got = Tokens.load(tmp_path / "a.tivtok")
    for name in ("tiv", "tv"):
        x = getattr(tokens, name)
        limit = 0.05 if dtype == "coded" else x.abs().amax((2, 3), keepdim=True) / 254
        assert ((getattr(got, name) - x).abs() <= 1.00001 * limit).all()
    assert torch.equal(got.tiv_index, tokens.tiv_index)
    for name in ("num_frames", "height", "width", "fps", "preset", "model_id", "chunk_frames"):
        assert getattr(got, name) == getattr(tokens, name)


def test_coded_files_are_about_as_small_as_the_entropy(tmp_path: Path) -> None:
    tokens = make(groups=1000)
    tokens.save(tmp_path / "a.tivtok", "coded", calibration(tokens))
    bits = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(0.1)  # of a standard normal value in steps of 0.1
    assert (tmp_path / "a.tivtok").stat().st_size < 1.1 * bits / 8 * tokens.num_values


@pytest.mark.parametrize("dtype", ["int8", "coded"])
def test_only_the_blocks_asked_for_are_decoded(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = make(groups=5 * RUN - 3)
    tokens.save(tmp_path / "a.tivtok", dtype, calibration(tokens))  # type: ignore[arg-type]
    whole, mapped = Tokens.load(tmp_path / "a.tivtok"), Tokens.open(tmp_path / "a.tivtok")
    decoded: list[int] = []
    decode = Blocks._decode
    monkeypatch.setattr(Blocks, "_decode", lambda self, block: (decoded.append(block), decode(self, block))[1])
    wanted = torch.tensor([4 * RUN, -1, 3, 3])
    assert torch.equal(mapped.tv[:, wanted], whole.tv[:, wanted]) and decoded == [0, 4]
    assert torch.equal(mapped.tv[:, RUN : 2 * RUN : 5], whole.tv[:, RUN : 2 * RUN : 5]) and decoded == [0, 4, 1]
    assert torch.equal(mapped.tiv[:, 1:2], whole.tiv[:, 1:2])
    assert isinstance(mapped.tv, BlockTensor)
    with pytest.raises(IndexError):
        mapped.tv[:, torch.tensor([5 * RUN])]
    for use in (lambda x: x * 2, lambda x: x[0, 3, :, 1], lambda x: x.flatten(), lambda x: x[..., None].sum(2)):
        assert torch.equal(use(mapped.tv), use(whole.tv))


@pytest.mark.parametrize("dtype", ["int8", "coded"])
def test_written_as_they_come_files_are_the_same(tmp_path: Path, dtype: str) -> None:
    tokens = replace(make(sets=1, groups=37), tiv_index=torch.zeros(37, dtype=torch.int64))
    fields = {name: getattr(tokens, name) for name in ("num_frames", "height", "width", "fps", "preset", "model_id")}
    known = calibration(tokens)
    tokens.save(tmp_path / "a.tivtok", dtype, known)  # type: ignore[arg-type]
    with TokenWriter.create(tmp_path / "b.tivtok", dtype, known, tokens.model_id) as out:  # type: ignore[arg-type]
        for tv in tokens.tv.split(5, dim=1):
            out.add(tokens.tiv[:, 0], tv)
        out.close(torch.zeros(8, dtype=torch.int64), fields | {"chunk_frames": None})
    one, other = (load_file(tmp_path / name)["packed"] for name in ("a.tivtok", "b.tivtok"))
    assert torch.equal(one, other)


def test_shards_hold_them_too(tmp_path: Path) -> None:
    tokens = replace(make(), chunk_frames=(12, 7))
    for number, dtype in enumerate(("int8", "coded", "float16")):
        write_shard(tmp_path / shard_name(number), [({"path": "a.mp4"}, tokens)], [], dtype, calibration(tokens))
    write_index(tmp_path, 3)
    for video in TokenDataset(tmp_path):
        assert video.chunk_frames == (12, 7)
        assert (video.tv - tokens.tv).abs().max() < 0.051


DAMAGE = {
    "cut": st.one_of(st.just(1.0), st.floats(0, 1)),
    "flips": st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=2, unique_by=lambda flip: flip[0]),
}


def damage(path: Path, cut: float, flips: list[tuple[float, int]]) -> None:
    """Flip bits of a file, and cut it to a share of its length."""
    data = bytearray(path.read_bytes())
    for where, mask in flips:
        data[int(where * len(data))] ^= mask
    path.write_bytes(data[: round(cut * len(data))])


@settings(max_examples=100, deadline=None)
@given(coded=st.booleans(), **DAMAGE)
def test_damaged_files_are_right_or_say_why(
    tmp_path_factory: pytest.TempPathFactory, coded: bool, cut: float, flips: list
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.tivtok"
    make().save(path, "coded" if coded else "int8", calibration(make()))
    right = Tokens.load(path)
    damage(path, cut, flips)
    try:
        got = Tokens.load(path)
    except TokensError as error:
        assert "a.tivtok" in str(error)
        return
    assert all(torch.equal(getattr(got, name), getattr(right, name)) for name in ("tiv", "tv", "tiv_index"))
    assert replace(got, tiv=right.tiv, tv=right.tv, tiv_index=right.tiv_index) == right


@settings(max_examples=60, deadline=None)
@given(
    scales=st.lists(st.integers(0, NUM_SCALES - 1), min_size=3, max_size=3),
    centres=st.lists(st.integers(-5000, 5000), min_size=3, max_size=3),
    size=st.floats(-3, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_values_are_coded_by_any_calibration(scales: list, centres: list, size: float, seed: int) -> None:
    """Tails of any weight and values far from what was calibrated: dear, and right."""
    codec = Coded(0.5, tuple(centres), tuple(scales))
    x = (10**size * np.random.default_rng(seed).standard_t(1.5, (2, 3, 4, 3))).clip(-1e8, 1e8).astype(np.float32)
    got = codec.decode(codec.encode(x), x.shape)
    assert (np.abs(got.astype(np.float64) - x) <= 0.25 + np.abs(x) * 2.0**-23).all()


def test_version_3_files_are_read_forever() -> None:
    """Files written when version 3 was the newest, on any machine to the bit. Never write them anew."""
    tiv, tv = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4) / 8, -torch.arange(20 * 2 * 4).reshape(1, 20, 2, 4) / 4
    known = Codecs(Coded(0.125, (8, 12, 16, 20), (13, 13, 14, 40)), Coded(0.25, (0, -3, -80, -100), (20, 21, 21, 10)))
    for dtype, codecs in (("coded", known), ("int8", Codecs(Int8(), Int8()))):
        tokens = Tokens.load(DATA / f"tokens-v3-{dtype}.tivtok")
        for codec, x, got in ((codecs.tiv, tiv, tokens.tiv), (codecs.tv, tv, tokens.tv)):
            if isinstance(codec, Coded):
                offsets = torch.tensor(codec.centres).double() / 8
                expected = ((x.double() / codec.step - offsets).round() + offsets) * codec.step
            else:
                step = x.abs().amax((2, 3), keepdim=True).double() / 127
                expected = (x.double() / step).round() * step
            assert torch.equal(got, expected.float())
        assert tokens.tiv_index.tolist() == [0] * 4 + [1] * 16 and tokens.chunk_frames == (4, 12, 63)
        assert (tokens.num_frames, tokens.height, tokens.width, tokens.fps) == (79, 47, 64, 30000 / 1001)
        again, _ = replace(tokens, tiv=tiv, tv=tv).stored(dtype, Calibration(known, tokens.model_id))  # type: ignore[arg-type]
        stored = load_file(DATA / f"tokens-v3-{dtype}.tivtok")["packed"]
        tail = int.from_bytes(stored[-8:-4].numpy().tobytes(), "little")
        blocks = len(stored) - 8 - tail  # the tail is deflated, which is free to differ
        assert torch.equal(again["packed"][:blocks], stored[:blocks])


def test_version_3_files_of_codes_are_read_forever() -> None:
    """As above, of integer codes."""
    tokens = Tokens.load(DATA / "tokens-v3-codes.tivtok")
    tiv, tv = torch.arange(2 * 3 * 2).reshape(1, 2, 3, 2) * 3, (torch.arange(20 * 2 * 2).reshape(1, 20, 2, 2) * 7) % 40
    assert tokens.levels == (8, 5) and torch.equal(tokens.codes[0], tiv) and torch.equal(tokens.codes[1], tv)
    assert tokens.tv[0, 0].tolist() == [[-1.0, -1.0, 0.75, -1.0], [0.5, -0.5, 0.25, 0.0]]
    assert tokens.tiv_index.tolist() == [0] * 4 + [1] * 16 and tokens.chunk_frames == (4, 12, 63)
    assert (tokens.num_frames, tokens.height, tokens.width, tokens.fps) == (79, 47, 64, None)


def test_what_coding_needs_is_said(tmp_path: Path) -> None:
    path, tokens = tmp_path / "a.tivtok", make()
    with pytest.raises(TokensError, match='"coded" needs the calibration of the model, got none'):
        tokens.save(path, "coded")
    with pytest.raises(TokensError, match="calibration must be of model 0123456789abcdef, got one of other"):
        tokens.save(path, "coded", replace(calibration(tokens), model_id="other"))
    with pytest.raises(TokensError, match="tv holds values that are not finite as int8"):
        replace(tokens, tv=torch.full((1, 5, 3, 8), torch.nan)).save(path, "int8")
    with pytest.raises(TokensError, match=r"beyond 2147483647 steps of 0\.1"):
        replace(tokens, tv=torch.full((1, 5, 3, 8), 1e9)).save(path, "coded", calibration(tokens))
    assert not path.exists()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="`tivtok calibrate` writes it"):
        Calibration.from_pretrained(tmp_path)
