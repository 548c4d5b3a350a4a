"""Files of version 4: TIV sets and frame groups with numbers of tokens of their own, and only those in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_packed import DAMAGE, calibration, damage
from test_tokens import make

from tivtok.model.quantizer import from_codes
from tivtok.tokens import Counts, Tokens, TokensError
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.codecs import Codecs, Coded
from tivtok.tokens.dataset import TokenDataset, shard_name, write_index, write_shard
from tivtok.tokens.packed import RUN, Blocks

DATA = Path(__file__).parents[1] / "data"
DTYPES = ("float32", "float16", "int8", "coded")


def ragged(groups: int = 2 * RUN + 3, batch: int = 2) -> Tokens:
    counts = Counts((2, 6), tuple(1 + n % 3 for n in range(groups)))
    return replace(make(batch, groups=groups), counts=counts).cleared()


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_come_back_and_nothing_else_is_stored(tmp_path: Path, dtype: str) -> None:
    tokens, known = ragged(), calibration(make())
    tokens.save(tmp_path / "a.tivtok", dtype, known)  # type: ignore[arg-type]
    got = Tokens.load(tmp_path / "a.tivtok")
    assert got.counts == tokens.counts and torch.equal(got.tiv_index, tokens.tiv_index)
    for name in ("tiv", "tv"):
        x = getattr(tokens, name)
        limit = {"float32": 0, "float16": x.abs() / 2000, "coded": 0.051, "int8": x.abs().amax((2, 3), True) / 250}[
            dtype
        ]
        assert ((getattr(got, name) - x).abs() <= limit).all()
        assert torch.equal(got.cleared().tv, got.tv)
    whole = replace(tokens, counts=None)
    whole.save(tmp_path / "whole.tivtok", dtype, known)  # type: ignore[arg-type]
    saved = (tmp_path / "whole.tivtok").stat().st_size - (tmp_path / "a.tivtok").stat().st_size
    bits = {"float32": 32, "float16": 16, "int8": 8, "coded": 0.5}[dtype]
    missing = whole.num_values - tokens.num_values
    scales = 4 * tokens.num_tokens if dtype == "int8" else 0  # a token has a scale of its own
    assert saved > 2 * missing * bits / 8 - 2 * scales - 400


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    tokens = ragged()
    with pytest.raises(TokensError, match="not finite as float16"):
        replace(tokens, tv=tokens.tv * 1e6).save(tmp_path / "a.tivtok", "float16")


def test_only_the_blocks_asked_for_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ragged().save(tmp_path / "a.tivtok", "float16")
    whole, mapped = Tokens.load(tmp_path / "a.tivtok"), Tokens.open(tmp_path / "a.tivtok")
    decoded: list[int] = []
    decode = Blocks._decode
    monkeypatch.setattr(Blocks, "_decode", lambda self, block: (decoded.append(block), decode(self, block))[1])
    assert torch.equal(mapped.tv[:, RUN : RUN + 2], whole.tv[:, RUN : RUN + 2]) and decoded == [1]
    assert torch.equal(mapped.tiv[:, 1:2], whole.tiv[:, 1:2])
    assert torch.equal(mapped.counts_of(torch.tensor([0, RUN])), torch.tensor([[2, 1], [2, 1 + RUN % 3]]))


def test_shards_hold_them_beside_others(tmp_path: Path) -> None:
    tokens = ragged(batch=1)
    write_shard(tmp_path / shard_name(0), [({"path": "a.mp4"}, tokens), ({"path": "b.mp4"}, make())], [], "float32")
    write_index(tmp_path, 1)
    assert list(TokenDataset(tmp_path)) == [tokens, make()]


@settings(max_examples=100, deadline=None)
@given(dtype=st.sampled_from(DTYPES), **DAMAGE)
def test_damaged_files_are_right_or_say_why(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, cut: float, flips: list
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.tivtok"
    ragged().save(path, dtype, calibration(make()))  # type: ignore[arg-type]
    right = Tokens.load(path)
    damage(path, cut, flips)
    try:
        got = Tokens.load(path)
    except TokensError as error:
        assert "a.tivtok" in str(error)
        return
    assert got == right


def test_a_file_of_one_version_is_not_read_as_another(tmp_path: Path) -> None:
    """The same bytes under the other name: without counts they would be other numbers."""
    tokens = ragged()
    tokens.save(tmp_path / "a.tivtok", "coded", calibration(make()))
    (packed,) = load_file(tmp_path / "a.tivtok").values()
    _, metadata = tokens.stored("coded", calibration(make()))
    save_file({"packed": packed}, tmp_path / "b.tivtok", metadata | {"version": "3"})
    with pytest.raises(TokensError, match="its tail and metadata fail their checksum"):
        Tokens.load(tmp_path / "b.tivtok")


FROZEN_CODECS = Codecs(
    Coded(0.125, (8, 12, 16, 20), (13, 13, 14, 40)), Coded(0.25, (0, -3, -80, -100), (20, 21, 21, 10))
)
FROZEN_COUNTS = Counts((1, 3), tuple(1 + (n % 5 == 0) for n in range(20)))


def frozen(kind: str) -> Tokens:
    """What the frozen file ``tokens-v4-KIND.tivtok`` was written of."""
    if kind == "codes":
        tiv, tv = (
            torch.arange(2 * 3 * 2).reshape(1, 2, 3, 2) * 3,
            (torch.arange(20 * 2 * 2).reshape(1, 20, 2, 2) * 7) % 40,
        )
        values = from_codes(tiv, (8, 5)), from_codes(tv, (8, 5))
    else:
        values = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4) / 8, -torch.arange(20 * 2 * 4).reshape(1, 20, 2, 4) / 4
    return Tokens(
        *values,
        tiv_index=torch.tensor([0] * 4 + [1] * 16),
        num_frames=79,
        height=47,
        width=64,
        fps=None if kind == "codes" else 30000 / 1001,
        preset="tiny",
        model_id="0123456789abcdef",
        chunk_frames=(4, 12, 63),
        levels=(8, 5) if kind == "codes" else None,
        counts=FROZEN_COUNTS,
    ).cleared()


@pytest.mark.parametrize("kind", [*DTYPES, "codes"])
def test_version_4_files_are_read_forever(kind: str) -> None:
    """Files written when version 4 was the newest, on any machine to the bit. Never write them anew."""
    expected, got = frozen(kind), Tokens.load(DATA / f"tokens-v4-{kind}.tivtok")
    for name in ("tiv", "tv"):
        x = getattr(expected, name)
        if kind == "coded":
            codec = getattr(FROZEN_CODECS, name)
            offsets = torch.tensor(codec.centres).double() / 8
            x = ((x.double() / codec.step - offsets).round() + offsets) * codec.step
        elif kind == "int8":
            step = x.abs().amax(3, keepdim=True).double() / 127
            x = torch.where(step > 0, (x.double() / step).round() * step, 0.0)
        there = expected.there()[name == "tv"]
        assert torch.equal(getattr(got, name), (x * there[..., None]).float())
    assert replace(got, tiv=expected.tiv, tv=expected.tv) == expected
    if kind != "codes":
        again, _ = expected.stored(kind, Calibration(FROZEN_CODECS, got.model_id))  # type: ignore[arg-type]
        stored = load_file(DATA / f"tokens-v4-{kind}.tivtok")["ragged"]
        blocks = len(stored) - 8 - int.from_bytes(stored[-8:-4].numpy().tobytes(), "little")
        assert torch.equal(again["ragged"][:blocks], stored[:blocks])
