"""Folders of videos to shards of tokens, and the Dataset that reads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from tivtok import processes
from tivtok.cli import main
from tivtok.model.config import TivTokConfig
from tivtok.pipeline import Encoded, Encoder
from tivtok.shards import Job, encode_shard, in_processes
from tivtok.streaming import encode_stream
from tivtok.tokenizer import TivTok
from tivtok.tokens import TokensError
from tivtok.tokens.dataset import TokenDataset, read_failed, shard_name
from tivtok.video import VideoReader, VideoWriter
from tivtok.video.sources import VideoRef

LENGTHS = {"a.mp4": 5, "b.mp4": 20, "deep/c.mp4": 1, "deep/d.mkv": 33, "e.mp4": 16}
CONFIG = TivTokConfig.preset("tiny").replace(
    width=16, heads=1, encoder_layers=1, decoder_layers=1, native_size=(16, 24)
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deep").mkdir()
    rng = np.random.default_rng(0)
    for name, frames in LENGTHS.items():
        with VideoWriter(folder / name, 25, 24, 16) as out:
            out.write(rng.integers(0, 255, (frames, 16, 24, 3), dtype=np.uint8))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    TivTok(CONFIG).save_pretrained(folder)
    return str(folder)


def encode(videos: Path, result: Path, model: str, *options: str) -> int:
    return main(["encode-dir", str(videos), str(result), "--model", model, "--per-shard", "2", *options])


def same_tokens(one: Path, other: Path) -> bool:
    both = zip(TokenDataset(one), TokenDataset(other), strict=True)
    return all(torch.equal(a.tiv, b.tiv) and torch.equal(a.tv, b.tv) for a, b in both)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_video_comes_back_in_order(
    videos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    assert encode(videos, tmp_path, model, "--workers", workers, "--dtype", "float32") == 0
    said = capsys.readouterr().out
    assert "left out broken.mp4: " in said and "cannot be read as a video" in said and "5 videos in 3 shards" in said
    dataset = TokenDataset(tmp_path)
    assert [v["path"] for v in dataset.videos] == ["a.mp4", "b.mp4", "deep/c.mp4", "deep/d.mkv", "e.mp4"]
    assert [t.num_frames for t in DataLoader(dataset, batch_size=None)] == [LENGTHS[v["path"]] for v in dataset.videos]
    tokenizer = TivTok.from_pretrained(model)
    for record, tokens in zip(dataset.videos, dataset, strict=False):
        want = encode_stream(tokenizer, VideoReader(videos / record["path"]).chunks(16), fps=25.0)
        for got, expected in ((tokens.tv, want.tv), (tokens.tiv, want.tiv)):  # workers have other numbers of threads
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        assert tokens.fps == 25
        assert tokenizer.decode(tokens).shape[2] == tokens.num_frames
    with pytest.raises(IndexError):
        dataset[5]


def test_parts_make_the_same_shards(
    videos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert encode(videos, whole, model) == 0
    made: list[str] = []
    monkeypatch.setattr(
        "tivtok.shards.encode_shard", lambda job, encoder: made.append(job.shard) or encode_shard(job, encoder)
    )
    capsys.readouterr()
    assert encode(videos, shared, model, "--part", "2/2") == 0
    assert "2 of 3 are missing" in capsys.readouterr().out
    assert sorted(path.name for path in shared.iterdir()) == ["plan.json", "shard-00001.safetensors"]
    assert encode(videos, shared, model, "--part", "1/2") == 0
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in shared.iterdir())
    assert sorted(made) == sorted(map(str, shared.glob("shard-*")))  # none was made twice
    for name in ("index.json", "plan.json"):
        assert (whole / name).read_text() == (shared / name).read_text()
    assert same_tokens(whole, shared)
    for wrong in ("0/2", "3/2", "1", "1/2/3"):
        assert encode(videos, shared, model, "--part", wrong) == 1
        assert "--part must be I/N" in capsys.readouterr().err


def test_parts_at_the_same_time(videos: Path, model: str, one_thread: None, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    command = [sys.executable, "-m", "tivtok", "encode-dir", str(videos), str(shared), "--model", model]
    parts = [subprocess.Popen([*command, "--per-shard", "2", "--part", part]) for part in ("1/2", "2/2")]
    assert [part.wait(600) for part in parts] == [0, 0] and encode(videos, whole, model) == 0
    assert (whole / "index.json").read_text() == (shared / "index.json").read_text() and same_tokens(whole, shared)


def test_another_refinement_is_another_plan(
    videos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(videos, tmp_path, model) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["refine"], plan["precision"]  # as earlier versions wrote it
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert encode(videos, tmp_path, model) == 0
    capsys.readouterr()
    assert encode(videos, tmp_path, model, "--refine", "2") == 1
    assert "begun with other refine" in capsys.readouterr().err


def test_what_was_stopped_goes_on_and_nothing_is_done_twice(videos: Path, model: str, tmp_path: Path) -> None:
    assert encode(videos, tmp_path, model) == 0
    shards = sorted(tmp_path.glob("shard-*"))
    before = {path.name: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    (tmp_path / "index.json").unlink()
    assert encode(videos, tmp_path, model) == 0
    after = {path.name: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("shard-*"))}
    assert [before[name] == after[name] for name in sorted(before)] == [True, False, True]
    assert len(TokenDataset(tmp_path)) == 5
    assert sorted(os.listdir(tmp_path)) == ["index.json", "plan.json", *sorted(before)]


def test_ctrl_c_with_workers_is_clean(videos: Path, model: str, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.mp4").symlink_to(videos / "deep" / "d.mkv")
    command = [sys.executable, "-m", "tivtok", "encode-dir", str(tmp_path), str(tmp_path / "out"), "--model", model]
    process = subprocess.Popen(
        [*command, "--per-shard", "1", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in jobs that a shell puts behind
    )
    while process.poll() is None and not list((tmp_path / "out").glob("shard-*")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err == "tivtok: interrupted\n", err
    left = os.listdir(tmp_path / "out")
    assert 2 <= len(left) <= 40 and all(name == "plan.json" or name.startswith("shard-") for name in left)


def test_ctrl_c_between_jobs_waits_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are sent there, and what is thrown there can leave the lock taken that the other workers wait for."""
    monkeypatch.setattr(processes, "_interrupted", False)
    monkeypatch.setattr(processes, "_work", lambda job: job, raising=False)
    assert processes._do(1) == 1
    processes._interrupt(signal.SIGINT, None)
    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            processes._do(2)
    monkeypatch.setattr(processes, "_interrupted", False)
    monkeypatch.setattr(processes, "_work", lambda job: processes._interrupt(signal.SIGINT, None))
    with pytest.raises(SystemExit, match="130"):
        processes._do(3)
    assert not processes._working


# A command that kills itself while it writes the file of that name, before it renames it, or after.
KILLED = """
import os, signal, sys
from pathlib import Path
from tivtok.cli import main

moment, name, *arguments = sys.argv[1:]
replace, write_bytes = os.replace, Path.write_bytes

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def replacing(source, target):
    if moment == "before" and Path(target).name == name: die()
    replace(source, target)
    if moment == "after" and Path(target).name == name: die()

def writing(path, data):
    if moment == "during" and path.name.endswith(name):
        write_bytes(path, data[: len(data) // 2])
        die()
    write_bytes(path, data)

os.replace, Path.write_bytes = replacing, writing
main(arguments)
"""


def test_killed_at_any_moment_it_loses_the_shard_in_work(
    videos: Path, model: str, one_thread: None, tmp_path: Path
) -> None:
    result = tmp_path / "result"
    times: dict[str, int] = {}
    moments = [
        ("during", "shard-00000.safetensors", 0),
        ("before", "shard-00001.safetensors", 1),
        ("after", "shard-00002.safetensors", 3),
    ]
    for moment, name, left in moments:
        command = [sys.executable, "-c", KILLED, moment, name, "encode-dir", str(videos), str(result)]
        assert subprocess.run([*command, "--model", model, "--per-shard", "2"]).returncode == -signal.SIGKILL
        shards = sorted(result.glob("shard-*"))
        assert len(shards) == left and not (result / "index.json").exists()
        now = {path.name: path.stat().st_mtime_ns for path in shards}
        assert times.items() <= now.items()  # what was there is not made again
        times = now
    assert encode(videos, result, model) == 0 and encode(videos, tmp_path / "whole", model) == 0
    assert times == {path.name: path.stat().st_mtime_ns for path in result.glob("shard-*")}
    assert same_tokens(result, tmp_path / "whole")


@pytest.mark.parametrize("victim", ["command", "worker"])
def test_workers_are_killed_or_left_alone(
    videos: Path, model: str, one_thread: None, tmp_path: Path, victim: str
) -> None:
    """Nobody waits for ever: a killed worker ends the command, a killed command its workers."""
    clips, result, whole = tmp_path / "clips", tmp_path / "result", tmp_path / "whole"
    clips.mkdir()
    for number in range(24):
        (clips / f"{number:02}.mp4").symlink_to(videos / "deep" / "d.mkv")
    options = ["--model", model, "--per-shard", "1"]
    command = [sys.executable, "-m", "tivtok", "encode-dir", str(clips), str(result), *options, "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not list(result.glob("shard-*")):
        time.sleep(0.02)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    (process if victim == "command" else workers[0]).kill()
    _, said = process.communicate(timeout=100)
    assert process.returncode != 0 and (victim == "command" or "a worker ended abruptly" in said), said
    assert not psutil.wait_procs(workers, timeout=100)[1]
    kept = {path.name: path.stat().st_mtime_ns for path in result.glob("shard-*")}
    assert 0 < len(kept) < 24 and not (result / "index.json").exists()
    assert main(command[3:-2]) == 0 and main(["encode-dir", str(clips), str(whole), *options]) == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in result.glob("shard-*")}.items()
    assert same_tokens(result, whole)


class Telling(Encoder):
    """Encodes nothing; says its device, once two workers are there."""

    def encode(self, refs: Iterable[VideoRef]) -> Iterator[Encoded]:
        for ref in refs:
            (ref.path.parent / str(os.getpid())).touch()
            while len(os.listdir(ref.path.parent)) < 2:
                time.sleep(0.02)
            yield Encoded(None, self.device)


def test_workers_take_turns_at_the_devices(
    videos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    ref = VideoRef("a", tmp_path / "here" / "a")
    jobs = [Job(str(tmp_path / shard_name(n)), [(ref, {"path": "a"})], "float16", None) for n in range(2)]
    assert [done.failed for done in in_processes(jobs, Telling(model), ["cuda:0", "cuda:1"], 2)] == [1, 1]
    assert {read_failed(job.shard)[0]["error"] for job in jobs} == {"cuda:0", "cuda:1"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for wrong, message in {
        "0,2": f'device "cuda:2" cannot be used here: PyTorch {torch.__version__} finds 2 NVIDIA GPUs',
        "0,gpu": 'device "gpu" cannot be used here: ',
        "0,": 'device "" cannot be used here: ',
        "0,1 --workers 1": "--workers must be at least the 2 --devices, got 1",
        "0 --engine ray": "--engine ray chooses devices itself",
    }.items():
        assert encode(videos, tmp_path / "out", model, "--devices", *wrong.split(" ")) == 1
        assert f"tivtok: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_plan_is_not_mixed_in(
    videos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(videos, tmp_path / "out", model) == 0
    capsys.readouterr()
    assert encode(videos, tmp_path / "out", model, "--tiv-sets", "auto", "--size", "8x8") == 1
    assert "begun with other size and tiv_sets" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["encode-dir", str(tmp_path / "empty"), str(tmp_path / "x"), "--model", model]) == 1
    assert "has no videos" in capsys.readouterr().err
    (tmp_path / "empty" / "a.mp4").write_bytes(b"no video")
    assert main(["encode-dir", str(tmp_path / "empty"), str(tmp_path / "x"), "--model", model]) == 1
    assert "none of the 1 videos" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ("no json", "is not an index"),
        ("[]", "is not an index"),
        ('{"format": "tivtok.dataset", "version": 3}', "version 3"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(TokensError, match=message):
        TokenDataset(tmp_path)
    with pytest.raises(FileNotFoundError):
        TokenDataset(tmp_path / "none")


def test_damaged_shards_and_records(videos: Path, model: str, tmp_path: Path) -> None:
    assert encode(videos, tmp_path, model) == 0
    index = json.loads((tmp_path / "index.json").read_text())
    index["videos"][0]["num_frames"] = 10**9
    index["videos"][1]["key"] = "77"
    index["videos"][2]["shard"] = "../../etc/passwd"  # only names inside the folder are opened
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "shard-00002.safetensors").write_bytes(b"x" * 100)
    dataset = TokenDataset(tmp_path)
    for video in (0, 1, 4):
        with pytest.raises(TokensError):
            dataset[video]
    with pytest.raises(FileNotFoundError):
        dataset[2]
