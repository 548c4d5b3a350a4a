"""Data sets as Parquet: the same tokens, read by others, from anywhere, row by row."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from tivtok.cli import main
from tivtok.files import names_in, replacing_in
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens import TokensError
from tivtok.tokens.dataset import TokenDataset
from tivtok.video import VideoWriter

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1, num_tiv=4)
    TivTok(config.replace(native_size=(16, 24))).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 19 parts of a video with captions and labels, one that is broken and one that is missing."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    with VideoWriter(folder / "a.mp4", 10, 24, 16) as out:
        out.write(rng.integers(0, 255, (40, 16, 24, 3), dtype=np.uint8))
    (folder / "broken.mp4").write_bytes(b"no video")
    spans = [(0.1 * i, None if i % 2 else 0.1 * i + 0.5) for i in range(19)]
    rows = [
        {"path": "a.mp4", "start": a, "end": b, "caption": f"part {i}", "label": i} for i, (a, b) in enumerate(spans)
    ]
    bad = {"start": None, "end": None, "caption": None, "label": 0}
    pq.write_table(
        pa.Table.from_pylist([*rows, {"path": "broken.mp4"} | bad, {"path": "gone.mp4"} | bad]), folder / "list.parquet"
    )
    return folder / "list.parquet"


@pytest.fixture(scope="module")
def shards(listed: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The list encoded, by format."""
    folders = {}
    for storage in ("safetensors", "parquet"):
        folders[storage] = tmp_path_factory.mktemp(storage)
        options = ["--model", model, "--per-shard", "18", "--format", storage, "--batch", "8"]
        assert main(["encode-dir", str(listed), str(folders[storage]), *options]) == 0
    return folders


def test_both_formats_hold_the_same(shards: dict[str, Path]) -> None:
    one, other = (TokenDataset(folder) for folder in shards.values())
    assert len(one) == len(other) == 19
    for number in (0, 1, 17, 18, -1):
        mapped, read = one[number], other[number]
        assert torch.equal(mapped.tiv, read.tiv) and torch.equal(mapped.tv, read.tv) and read.tv.dtype == torch.float16
        assert torch.equal(mapped.tiv_index, read.tiv_index)
        assert mapped.num_frames == read.num_frames and mapped.fps == read.fps
        for name in ("path", "start", "end", "caption", "label", "model_id"):
            assert one.videos[number][name] == other.videos[number][name]
    assert other.videos[3]["caption"] == "part 3" and other.videos[3]["label"] == 3
    assert other[4].num_frames == 5 and other[3].num_frames == 37
    with pytest.raises(IndexError):
        other[19]
    failed = [json.loads((folder / "index.json").read_text())["failed"] for folder in shards.values()]
    assert failed[0] == failed[1] and failed[0][0]["path"] == "broken.mp4" and "cannot be read" in failed[0][0]["error"]


def test_an_index_says_little_and_only_the_row_is_read(shards: dict[str, Path], monkeypatch) -> None:
    index = json.loads((shards["parquet"] / "index.json").read_text())
    assert index["rows"] == [18, 1] and "videos" not in index
    read = []
    group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i: read.append(i) or group(self, i))
    dataset = pickle.loads(pickle.dumps(TokenDataset(shards["parquet"])))
    assert not read
    assert [dataset.videos[i]["label"] for i in (16, 17)] == [16, 17] and read in ([1], [])  # [] where it is kept


def test_from_an_address(shards: dict[str, Path]) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(shards["parquet"]) + "/", "/tokens/", recursive=True)
    remote, local = TokenDataset("memory://tokens"), TokenDataset(shards["parquet"])
    assert len(remote) == 19 and torch.equal(remote[18].tv, local[18].tv)
    with pytest.raises(FileNotFoundError):
        TokenDataset("memory://nothing")


def test_to_an_address(listed: Path, model: str, shards: dict[str, Path], capsys) -> None:
    memory, address = fsspec.filesystem("memory"), "memory://written/tokens"
    options = ["--model", model, "--per-shard", "18", "--batch", "8"]
    command = ["encode-dir", str(listed), address, *options, "--format", "parquet"]
    assert main([*command, "--part", "1/2"]) == 0 and main([*command, "--part", "2/2"]) == 0
    assert f"wrote {address}: 19 videos in 2 shards" in capsys.readouterr().out
    folder = "/written/tokens/"
    names = {path.removeprefix(folder) for path in memory.ls(folder, detail=False)}
    assert names == {"plan.json", "index.json", "shard-00000.parquet", "shard-00001.parquet"}
    remote, local = TokenDataset(address), TokenDataset(shards["parquet"])
    assert all(torch.equal(a.tiv, b.tiv) and torch.equal(a.tv, b.tv) for a, b in zip(remote, local, strict=True))
    assert memory.cat(folder + "index.json") == (shards["parquet"] / "index.json").read_bytes()
    memory.rm([folder + "index.json", folder + "shard-00001.parquet"])
    kept = memory.modified(folder + "shard-00000.parquet")
    assert main(command) == 0 and main([*command, "--retry"]) == 0  # broken.mp4 is in shard 1
    assert memory.modified(folder + "shard-00000.parquet") == kept and len(TokenDataset(address)) == 19
    capsys.readouterr()
    for wrong, message in {
        (address, "--format", "safetensors"): f"is for folders, whose files can be mapped; for {address} take parquet",
        (address, "--format", "parquet", "--size", "8x8"): f"{address} was begun with other size",
        ("nowhere://tokens", "--format", "parquet"): "nowhere://tokens cannot be reached: Protocol not known",
    }.items():
        assert main(["encode-dir", str(listed), *wrong, *options]) == 1
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_a_remote_file_is_the_old_or_the_new_one(monkeypatch) -> None:
    memory, folder = fsspec.filesystem("memory"), "memory://replaced"
    assert names_in(folder) == set()
    with replacing_in(folder, "a.json") as path:
        path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_in(folder, "a.json") as path:
        path.write_text("half")
        raise KeyboardInterrupt

    def breaks_off(source, target, length) -> None:
        target.write(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr("shutil.copyfileobj", breaks_off)
    with pytest.raises(OSError, match="connection lost"), replacing_in(folder, "a.json") as path:
        path.write_text("new")
    assert memory.cat("/replaced/a.json") == b"old" and names_in(folder) == {"a.json"}


def test_others_read_it(shards: dict[str, Path]) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = f"select label, tv, tv_shape, fps from '{shards['parquet']}/*.parquet' order by label"
    rows = duckdb.sql(query).fetchall()
    tokens = TokenDataset(shards["parquet"])[7]
    assert [row[0] for row in rows] == list(range(19)) and rows[7][3] == 10
    assert np.array_equal(np.array(rows[7][1], np.float16).reshape(rows[7][2]), tokens.tv[0].numpy())


def test_what_failed_is_tried_again(listed: Path, model: str, tmp_path: Path, capsys) -> None:
    videos, result = tmp_path / "videos", tmp_path / "tokens"
    videos.mkdir()
    for name in ("a.mp4", "broken.mp4"):
        (videos / name).write_bytes((listed.parent / name).read_bytes())
    for storage in ("safetensors", "parquet"):
        command = ["encode-dir", str(videos), str(result / storage), "--model", model, "--format", storage]
        command += ["--json", "-"]
        result.mkdir(exist_ok=True)
        assert main(command) == 0 and main([*command, "--retry"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["totals"]["failed"] == 1
        (videos / "broken.mp4").write_bytes((videos / "a.mp4").read_bytes())
        assert main([*command, "--retry"]) == 0
        totals = json.loads(capsys.readouterr().out.splitlines()[-1])["totals"]
        assert (totals["videos"], totals["failed"], totals["frames"]) == (1, 0, 40)
        first, second = TokenDataset(result / storage)
        assert torch.equal(first.tv, second.tv)
        assert main([*command, "--retry"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["totals"]["videos"] == 0
        (videos / "broken.mp4").write_bytes(b"no video")


def test_lists_and_machines_that_do_not_do(listed: Path, model: str, tmp_path: Path, capsys, monkeypatch) -> None:
    (listed.parent / "list.csv").write_text("path,fps\na.mp4,25\n")
    command = ["encode-dir", str(listed.parent / "list.csv"), str(tmp_path / "out"), "--model", model]
    assert main(command) == 1 and "must name its columns otherwise: fps are" in capsys.readouterr().err
    monkeypatch.setattr("tivtok.cli.encode_dir.find_spec", lambda name: None)
    assert main([*command, "--format", "parquet"]) == 1
    assert "--format parquet needs pyarrow: pip install 'tivtok[parquet]'" in capsys.readouterr().err


def test_damaged_shards(shards: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes((shards["parquet"] / "index.json").read_bytes())
    (tmp_path / "shard-00000.parquet").write_bytes(b"PAR1" * 10)
    with pytest.raises(TokensError, match=r"shard-00000\.parquet"):
        TokenDataset(tmp_path)[0]
    with pytest.raises(FileNotFoundError):
        TokenDataset(tmp_path)[18]
