"""Rows in, rows out: the same tokens as the command's, errors that stay in their row, and settings that travel."""

from __future__ import annotations

import json
import pickle
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tivtok import TivTok, TivTokConfig
from tivtok.cli import main
from tivtok.pipeline import Decoder, Encoder
from tivtok.streaming import decode_stream, encode_stream
from tivtok.tokens import Tokens, TokensError
from tivtok.tokens.dataset import TokenDataset
from tivtok.tokens.rows import COLUMNS, from_row, to_row
from tivtok.video import VideoError, VideoReader, VideoWriter, fit
from tivtok.video.clips import read_video
from tivtok.video.sources import find_sources

FPS, FRAMES = 10, 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = TivTokConfig.preset("tiny").replace(width=48, heads=2, encoder_layers=1, decoder_layers=1)
    folder = tmp_path_factory.mktemp("model") / "model"
    TivTok(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with VideoWriter(path, fps=FPS, width=80, height=48) as writer:
        for t in range(FRAMES):
            writer.write(np.full((48, 80, 3), 6 * t, np.uint8))
    return path


@pytest.fixture
def encoder(model: str) -> Encoder:
    return Encoder(model, device="cpu", frame_size="32x32")


def frames_of(path: Path) -> torch.Tensor:
    return fit(torch.cat(list(VideoReader(path).chunks(16))), 32, 32)


def assert_same(one: Tokens, other: Tokens) -> None:
    torch.testing.assert_close(one.tiv, other.tiv.to(one.tiv.dtype), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(one.tv, other.tv.to(one.tv.dtype), rtol=2e-3, atol=2e-3)
    assert torch.equal(one.tiv_index, other.tiv_index)
    for name in ("num_frames", "height", "width", "fps", "preset", "model_id", "chunk_frames"):
        assert getattr(one, name) == getattr(other, name)


def test_whole_videos_and_parts_beside_other_columns(encoder: Encoder, model: str, clip: Path) -> None:
    batch = {
        "path": [str(clip), str(clip)],
        "caption": np.array(["all", "part"]),
        "start": np.array([np.nan, 1.0]),
        "end": [None, 2.7],
    }
    rows = encoder(batch)
    assert list(rows["caption"]) == ["all", "part"] and rows["path"] == batch["path"]
    assert list(rows["error"]) == list(rows["warning"]) == ["", ""]
    for number, part in enumerate((slice(None), slice(10, 27))):
        frames = frames_of(clip)[part]
        whole = encode_stream(TivTok.from_pretrained(model), frames.split(16), 1, FPS)
        assert_same(from_row({name: rows[name][number] for name in COLUMNS}), whole)


def test_a_member_of_a_tar(encoder: Encoder, clip: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(clip, "inside.mp4")
    (ref,) = find_sources(tmp_path).videos
    assert ref.member is not None
    inside = encoder({"path": [ref.path], "offset": [ref.member[0]], "size": [ref.member[1]]})
    alone = encoder({"path": [clip]})
    assert np.array_equal(inside["tv"][0], alone["tv"][0]) and inside["num_frames"][0] == FRAMES


def test_videos_at_addresses(encoder: Encoder, model: str, clip: Path, tmp_path: Path, monkeypatch) -> None:
    """The same tokens; what cannot be fetched or read is named by its address, and nothing is left behind."""
    fsspec = pytest.importorskip("fsspec")
    memory, scratch = fsspec.filesystem("memory"), tmp_path / "scratch"
    memory.pipe({"/videos/clip.mp4": clip.read_bytes(), "/videos/broken.mp4": b"no video"})
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    names = ["clip", "broken", "gone"]
    addresses = [f"memory://videos/{name}.mp4" for name in names] + ["nowhere://a.mp4"]
    rows, alone = encoder({"path": addresses}), encoder({"path": [clip]})
    assert np.array_equal(rows["tv"][0], alone["tv"][0]) and rows["error"][0] == ""
    for row, word in ((1, "cannot be read as a video"), (2, "cannot be fetched"), (3, "Protocol not known")):
        assert rows["error"][row].startswith(addresses[row]) and word in rows["error"][row]
    listed = tmp_path / "list.csv"
    listed.write_text("path,start,end,label\n" + "".join(f"{address},1,2,x\n" for address in addresses[:2]))
    assert main(["encode-dir", str(listed), str(tmp_path / "out"), "--model", model]) == 0
    (record,) = TokenDataset(tmp_path / "out").videos
    assert (record["path"], record["label"], record["num_frames"]) == (addresses[0], "x", 10)
    (failed,) = json.loads((tmp_path / "out" / "index.json").read_text())["failed"]
    assert failed["path"] == addresses[1] and not list(scratch.iterdir())
    with pytest.raises(VideoError, match="is no file here"):
        read_video(find_sources(listed).videos[0])


def test_what_fails_stays_in_its_row(encoder: Encoder, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:300])
    paths = [tmp_path / "broken.mp4", clip, tmp_path / "missing.mp4"]
    rows = encoder({"path": paths, "start": [0, 99, 0]})
    assert ["broken.mp4" in rows["error"][0], "no frame from 99" in rows["error"][1], "missing" in rows["error"][2]]
    assert all(rows["error"]) and [len(x) for x in rows["tv"]] == [0, 0, 0]
    decoded = Decoder(encoder.model, "cpu")(rows)
    assert list(decoded["error"]) == list(rows["error"]) and all(len(x) == 0 for x in decoded["frames"])


@pytest.mark.parametrize("tiv_sets", [1, 3, "auto"])
def test_there_and_back(encoder: Encoder, model: str, clip: Path, tiv_sets) -> None:
    encoder.tiv_sets, encoder.dtype = tiv_sets, "float32"
    rows = Decoder(model, "cpu")(encoder({"path": [clip]}))
    tokens = from_row({name: rows[name][0] for name in COLUMNS})
    expected = torch.cat(list(decode_stream(TivTok.from_pretrained(model), tokens)))
    assert rows["frames"][0].shape == (FRAMES, 32, 32, 3) and np.array_equal(rows["frames"][0], expected.numpy())


@pytest.mark.parametrize("tiv_sets", [1, "auto"])
def test_batches_of_several_videos(encoder: Encoder, clip: Path, tmp_path: Path, monkeypatch, tiv_sets) -> None:
    """Seven chunks of two lengths in batches of three, beside a video that breaks off and one that is not there."""
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:300])
    paths = [clip, tmp_path / "broken.mp4", clip, tmp_path / "missing.mp4", clip]
    batch = {"path": paths, "start": [0, 0, 0.4, 0, 2.4], "end": [None] * 5}
    encoder.dtype, encoder.tiv_sets = "float32", tiv_sets
    alone = encoder(batch)
    sizes = []
    encode_batch = TivTok.encode_batch
    monkeypatch.setattr(
        TivTok, "encode_batch", lambda self, chunks: sizes.append(len(chunks)) or encode_batch(self, chunks)
    )
    encoder.at_once = 3
    together = encoder(batch)
    assert sizes == [3, 3, 1]
    assert [bool(error) for error in alone["error"]] == [False, True, False, True, False]
    for name in ("error", "num_frames", "fps"):
        assert list(alone[name]) == list(together[name])
    for number in (0, 2, 4):
        for name in ("tiv", "tv"):
            np.testing.assert_allclose(together[name][number], alone[name][number], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"at_once must be at least 1, and 1 with refine or budget\.psnr, got 2"):
        Encoder(refine=1, at_once=2)


def test_compiled(model: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is what can break here, and it is the same without Inductor and its C++ compiler."""
    used = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        used.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    frames = {"path": [clip], "start": [2.4]}
    eager = Encoder(model, "cpu", frame_size="32x32", dtype="float32")(frames)
    compiled = Encoder(model, "cpu", compile=True, frame_size="32x32", dtype="float32")(frames)
    assert len(used) == 1
    np.testing.assert_allclose(compiled["tv"][0], eager["tv"][0], rtol=1e-4, atol=1e-5)
    pictures = [Decoder(model, "cpu", compile=way)(eager)["frames"][0] for way in (False, True)]
    assert len(used) == 3 and np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_settings_travel_and_the_model_does_not(encoder: Encoder, clip: Path) -> None:
    encoder.refine = 2
    before = encoder({"path": [clip]})
    parcel = pickle.dumps(encoder)
    assert len(parcel) < 2000
    after = pickle.loads(parcel)
    assert after == encoder
    assert np.array_equal(before["tiv"][0], after({"path": [clip]})["tiv"][0])


def test_an_empty_batch_and_one_without_paths(encoder: Encoder) -> None:
    assert encoder({"path": [], "id": []}) == {"path": [], "id": []}
    with pytest.raises(KeyError, match="needs the columns path, got video"):
        encoder({"video": ["a.mp4"]})


def test_rows_are_checked() -> None:
    tokens = Tokens(torch.zeros(1, 1, 2, 3), torch.zeros(1, 2, 1, 3), torch.zeros(2).long(), 8, 4, 4, None, "p", "m")
    row = to_row(tokens)
    assert from_row(row).fps is None and from_row(row).tiv.dtype == torch.float16
    with pytest.raises(TokensError, match="lacks tv, fps"):
        from_row({name: value for name, value in row.items() if name not in ("tv", "fps")})
    with pytest.raises(TokensError, match="must not be empty"):
        from_row(row | {"tv": row["tv"][:0], "tiv_index": row["tiv_index"][:0]})
    with pytest.raises(TokensError, match="one video, got tokens of 2"):
        to_row(Tokens(torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 1, 3), torch.zeros(1).long(), 4, 4, 4, None, "p", "m"))


def test_rows_keep_integer_codes() -> None:
    """Also where they come back from a row; and one that float16 cannot tell from its neighbour is refused."""
    levels = (7, 2**13)
    some, fine = torch.tensor([[[[3], [2**11]]]]), torch.tensor([[[[7 * 1], [7 * 8189 + 2]]]])
    blank = torch.zeros(1, 1, 2, 2)
    tokens = Tokens(blank, blank, torch.zeros(1).long(), 4, 4, 4, None, "p", "m", levels=levels)
    kept = from_row(to_row(tokens.with_codes(some, fine), "float32"))
    assert kept.levels == levels and torch.equal(kept.codes[0], some) and torch.equal(kept.codes[1], fine)
    with pytest.raises(TokensError, match="float16 cannot tell the codes of tv apart"):
        to_row(tokens.with_codes(some, fine))
    row = to_row(tokens.with_codes(some, some), "float32")
    assert from_row({name: value for name, value in row.items() if name != "levels"}).levels is None


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits(encoder: Encoder, model: str, clip: Path, precision: str) -> None:
    """The same model id, and tokens within a hundred roundings of those of float32."""
    exact = encoder({"path": [clip]})
    rounded = Encoder(model, "cpu", precision, "32x32")({"path": [clip]})
    assert rounded["model_id"][0] == exact["model_id"][0] and not rounded["error"][0]
    far = np.abs(rounded["tv"][0].astype(float) - exact["tv"][0]).max() / np.abs(exact["tv"][0].astype(float)).max()
    assert 0 < far < 100 * torch.finfo(getattr(torch, precision)).eps / 2
