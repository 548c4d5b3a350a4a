"""Tokens: the arithmetic, the file format, and one clear error for every file that is not right."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tivtok.tokens import Tokens, TokensError
from tivtok.tokens.dataset import TokenDataset, shard_name, write_index, write_shard


def make(batch: int = 1, sets: int = 2, groups: int = 5, fps: float | None = 30000 / 1001) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    return Tokens(
        tiv=torch.randn(batch, sets, 6, 8, generator=generator),
        tv=torch.randn(batch, groups, 3, 8, generator=generator),
        tiv_index=torch.arange(groups) * sets // groups,
        num_frames=4 * groups - 1,
        height=47,
        width=64,
        fps=fps,
        preset="tiny",
        model_id="0123456789abcdef",
    )


def rewrite(path: Path, metadata: dict[str, str | None] | None = None, **tensors: torch.Tensor | None) -> None:
    """Change or (with None) drop tensors and metadata of a token file."""
    with safetensors.safe_open(path, framework="pt") as file:
        old = file.metadata()
    all_tensors = {k: v for k, v in (load_file(path) | tensors).items() if v is not None}
    save_file(all_tensors, path, {k: v for k, v in (old | (metadata or {})).items() if v is not None})


def test_counts() -> None:
    tokens = make(batch=3)
    assert tokens.num_tokens == 2 * 6 + 5 * 3
    assert tokens.num_values == 27 * 8
    assert tokens.compression_rate == 27 * 8 / (3 * 19 * 47 * 64)


@pytest.mark.parametrize("fps", [None, 25.0, 30000 / 1001])
def test_float32_files_come_back_exactly(tmp_path: Path, fps: float | None) -> None:
    tokens = make(batch=2, fps=fps)
    tokens.save(tmp_path / "a.tivtok")
    got = Tokens.load(tmp_path / "a.tivtok")
    for name in ("tiv", "tv", "tiv_index"):
        assert torch.equal(getattr(got, name), getattr(tokens, name))
    for name in ("num_frames", "height", "width", "fps", "preset", "model_id"):
        assert getattr(got, name) == getattr(tokens, name)
    assert os.listdir(tmp_path) == ["a.tivtok"]


def test_float16_files_are_half_as_large_and_round_by_1_in_2048(tmp_path: Path) -> None:
    tokens = make()
    tokens.save(tmp_path / "a.tivtok", "float16")
    got = Tokens.load(tmp_path / "a.tivtok")
    assert got.tv.dtype == torch.float32
    assert not torch.equal(got.tv, tokens.tv)
    torch.testing.assert_close(got.tv, tokens.tv, rtol=1 / 2048, atol=1e-7)
    assert load_file(tmp_path / "a.tivtok")["tv"].dtype == torch.float16


def test_what_cannot_be_stored_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tivtok"
    make().save(path)
    old = path.read_bytes()
    with pytest.raises(TokensError, match="tv holds values that are not finite as float16"):
        replace(make(), tv=torch.full((1, 5, 3, 8), 1e6)).save(path, "float16")
    with pytest.raises(TokensError, match="dtype must be one of"):
        make().save(path, "int4")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        make().save(tmp_path / "none" / "a.tivtok")
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.tivtok"]


@pytest.mark.parametrize(
    "change",
    [
        {"tiv": torch.zeros(1, 2, 6, 8)},
        {"tv": make().tv.double()},
        {"tv": make(groups=4).tv, "tiv_index": torch.zeros(4).long(), "num_frames": 16},
        {"tiv_index": torch.zeros(5).long()},
        {"fps": 25.0},
        {"levels": (8, 8)},
    ],
)
def test_tokens_are_equal_where_all_is_the_same(tmp_path: Path, change: dict) -> None:
    tokens = make()
    tokens.save(tmp_path / "a.tivtok")
    assert Tokens.load(tmp_path / "a.tivtok") == tokens and tokens == make()
    assert replace(tokens, **change) != tokens and tokens != 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(tokens)


def test_to_moves_values_only() -> None:
    tokens = make().to(dtype=torch.float64)
    assert tokens.tiv.dtype == tokens.tv.dtype == torch.float64 and tokens.tiv_index.dtype == torch.int64


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tiv": torch.zeros(1, 2, 6)}, "tiv must be floating point"),
        ({"tv": torch.zeros(1, 5, 3, 8, dtype=torch.int64)}, "tv"),
        ({"tv": torch.zeros(1, 5, 3, 7)}, "one B and one D"),
        ({"tiv": torch.zeros(2, 2, 6, 8)}, "one B and one D"),
        ({"tiv": torch.zeros(1, 0, 6, 8)}, "must not be empty"),
        ({"tiv_index": torch.zeros(4, dtype=torch.int64)}, "tiv_index must be int64"),
        ({"tiv_index": torch.zeros(5)}, "tiv_index must be int64"),
        ({"num_frames": 4}, "num_frames must be between 5 and 320"),
        ({"num_frames": 10**9}, "num_frames must be between 5 and 320"),
        ({"height": 0}, "height must be between"),
        ({"width": 10**6}, "width must be between"),
        ({"height": 16_384, "width": 16_384}, "must be at most 36,000,000 pixels"),
        ({"fps": float("nan")}, "fps must be"),
        ({"preset": ""}, "preset must be"),
        ({"model_id": "a\nb"}, "model_id must be"),
    ],
)
def test_fields_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(TokensError, match=message):
        replace(make(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "metadata, tensors, message",
    [
        ({"format": "other"}, {}, "not a token file"),
        ({"format": None}, {}, "not a token file"),
        ({"version": "5"}, {}, "version '5' of the format, this program reads 1, 2, 3, 4"),
        ({"version": "2"}, {}, "must hold the tensors tiv, tiv_index, tv, chunk_frames"),
        ({"height": None, "fps": None}, {}, "lacks fps, height"),
        ({"height": "tall"}, {}, "height = 'tall'"),
        ({"num_frames": "99999999"}, {}, "num_frames must be between"),
        ({"width": "-3"}, {}, "width must be between"),
        ({"fps": "inf"}, {}, "fps must be"),
        ({}, {"tiv": None}, "must hold the tensors tiv, tiv_index, tv"),
        ({}, {"more": torch.zeros(1)}, "must hold the tensors tiv, tiv_index, tv"),
        ({}, {"tv": torch.zeros(1, 5, 3, 8, dtype=torch.float64)}, "tv must be stored as F32 or F16, got F64"),
        ({}, {"tiv_index": torch.full((5,), 2)}, "tiv_index must be within 0..1"),
        ({}, {"tiv_index": torch.full((5,), -1)}, "tiv_index must be within 0..1"),
        ({}, {"tv": torch.full((1, 5, 3, 8), torch.nan)}, "not finite in the file"),
        ({}, {"tv": torch.zeros(1, 5, 3, 9)}, "one B and one D"),
    ],
)
def test_files_that_are_not_right(
    tmp_path: Path, metadata: dict[str, str | None], tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    path = tmp_path / "a.tivtok"
    make().save(path)
    rewrite(path, metadata, **tensors)
    with pytest.raises(TokensError, match=message) as error:
        Tokens.load(path)
    assert "a.tivtok" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100), b"\xff" * 100, b"\x02" + bytes(7) + b"{}"])
def test_files_that_are_no_token_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tivtok").write_bytes(content)
    with pytest.raises(TokensError, match=r"a\.tivtok"):
        Tokens.load(tmp_path / "a.tivtok")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tokens.load(tmp_path / "none.tivtok")
    with pytest.raises(IsADirectoryError):
        Tokens.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=3))
def test_damaged_files_load_or_say_why(tmp_path_factory: pytest.TempPathFactory, cut: float, flips: list) -> None:
    """Cut and flipped bytes: valid tokens (a flip may hit a value) or a TokensError, never anything else."""
    path = tmp_path_factory.mktemp("damaged") / "a.tivtok"
    make().save(path)
    data = bytearray(path.read_bytes())
    for where, mask in flips:
        data[int(where * len(data))] ^= mask
    path.write_bytes(data[: round(cut * len(data))])
    try:
        tokens = Tokens.load(path)
    except TokensError:
        return
    assert cut > 0.99 and tokens.tv.isfinite().all()


def test_mapped_and_loaded_files_are_the_same(tmp_path: Path) -> None:
    tokens = make(batch=2)
    tokens.save(tmp_path / "a.tivtok", "float16")
    mapped, loaded = Tokens.open(tmp_path / "a.tivtok"), Tokens.load(tmp_path / "a.tivtok")
    assert mapped.tiv.dtype == mapped.tv.dtype == torch.float16
    assert torch.equal(mapped.tv.float(), loaded.tv) and torch.equal(mapped.tiv.float(), loaded.tiv)
    assert torch.equal(mapped.sets_of(torch.arange(5)), loaded.tiv_index)
    replace(mapped, fps=None).save(tmp_path / "a.tivtok")  # over itself
    assert torch.equal(Tokens.load(tmp_path / "a.tivtok").tv, loaded.tv) and mapped.fps == tokens.fps


SIZES = st.one_of(st.integers(-3, 60), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 10**30]))


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.sampled_from(["tiv", "tv", "tiv_index", "more"]), max_size=4, unique=True),
    entries=st.lists(
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F16", "F32", "I64", "BOOL", "X1", 5]),
                "shape": st.lists(SIZES, max_size=5),
                "data_offsets": st.lists(SIZES, min_size=1, max_size=3),
            }
        ),
        min_size=4,
        max_size=4,
    ),
    metadata=st.dictionaries(st.sampled_from(["num_frames", "height", "fps"]), st.text(max_size=8)),
    stated_length=st.one_of(st.none(), SIZES.map(lambda n: n % 2**64)),
)
def test_hostile_headers_say_why(
    tmp_path_factory: pytest.TempPathFactory, names: list, entries: list, metadata: dict, stated_length: int | None
) -> None:
    """Sizes that are negative, huge or at odds with one another: one TokensError, before any memory is asked for."""
    path = tmp_path_factory.mktemp("hostile") / "a.tivtok"
    good = {"format": "tivtok.tokens", "version": "1", "num_frames": "4", "height": "8", "width": "8", "fps": ""}
    header = {"__metadata__": good | {"preset": "x", "model_id": "x"} | metadata} | dict(
        zip(names, entries, strict=False)
    )
    text = json.dumps(header).encode()
    length = len(text) if stated_length is None else stated_length
    path.write_bytes(length.to_bytes(8, "little") + text + bytes(64))
    tracemalloc.start()
    try:
        with pytest.raises(TokensError, match=r"a\.tivtok"):
            Tokens.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["tokens-v1-float16.tivtok", "tokens-v1-float32.tivtok"])
def test_version_1_files_are_read_forever(name: str) -> None:
    """Files written when version 1 was the newest. Never write them anew: a format that cannot read them is another."""
    tokens = Tokens.load(Path(__file__).parents[1] / "data" / name)
    assert torch.equal(tokens.tiv, torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4) / 8)
    assert torch.equal(tokens.tv, -torch.arange(5 * 2 * 4).reshape(1, 5, 2, 4) / 4)
    assert tokens.tiv_index.tolist() == [0, 0, 0, 0, 1]
    assert (tokens.num_frames, tokens.height, tokens.width) == (19, 47, 64)
    assert tokens.fps == (None if "float16" in name else 30000 / 1001)
    assert (tokens.preset, tokens.model_id) == ("tiny", "0123456789abcdef")


@pytest.mark.parametrize("name", ["tokens-v2-float16.tivtok", "tokens-v2-float32.tivtok"])
def test_version_2_files_are_read_forever(name: str) -> None:
    """As above; version 2 also says where chunks end."""
    tokens = Tokens.load(Path(__file__).parents[1] / "data" / name)
    assert torch.equal(tokens.tv, -torch.arange(5 * 2 * 4).reshape(1, 5, 2, 4) / 4)
    assert tokens.tiv_index.tolist() == [0, 0, 0, 0, 1] and tokens.num_frames == 19
    assert tokens.chunk_frames == (4, 12, 3)


@pytest.mark.parametrize("chunk_frames", [(16, 4), (0, 19), (), (-1, 20)])
def test_chunk_frames_that_cannot_be(chunk_frames: tuple[int, ...]) -> None:
    with pytest.raises(TokensError, match="chunk_frames must be at least 1 each and 19 in all"):
        replace(make(), chunk_frames=chunk_frames)


def test_chunk_frames_come_back(tmp_path: Path) -> None:
    tokens = replace(make(), chunk_frames=(12, 7))
    tokens.save(tmp_path / "a.tivtok")
    assert Tokens.load(tmp_path / "a.tivtok").chunk_frames == (12, 7)
    write_shard(tmp_path / shard_name(0), [({"path": "a.mp4"}, tokens), ({"path": "b.mp4"}, make())], [], "float32")
    write_index(tmp_path, 1)
    assert [video.chunk_frames for video in TokenDataset(tmp_path)] == [(12, 7), None]


def test_a_pickle_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.tivtok"
    torch.save({"tiv": torch.zeros(1)}, path)
    with pytest.raises(TokensError, match=r"a\.tivtok"):
        Tokens.load(path)
