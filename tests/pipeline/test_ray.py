"""On a real Ray cluster of two workers: equal tokens, also where a worker dies, and only once what is already there."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tivtok.cli import main
from tivtok.pipeline import Encoded, Encoder
from tivtok.shards import Job, on_ray
from tivtok.tokens.dataset import TokenDataset, shard_name
from tivtok.tokens.rows import COLUMNS, from_row
from tivtok.video import VideoWriter
from tivtok.video.sources import VideoRef, find_sources

ray = pytest.importorskip("ray")
dataset = pytest.importorskip("pyarrow.dataset").dataset
EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_encode.py"


@dataclass
class DiesOnce(Encoder):
    """Ends its process when the first video of all is encoded, as a machine does that is switched off."""

    mark: str = ""

    def encode(self, refs: Iterable[VideoRef]) -> Iterator[Encoded]:
        for one in super().encode(refs):
            if not Path(self.mark).exists():
                Path(self.mark).touch()
                os._exit(1)
            yield one


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        with VideoWriter(folder / f"{number}.mp4", fps=10, width=64, height=64) as writer:
            for t in range(20 + number):
                writer.write(np.full((64, 64, 3), 10 * t + number, np.uint8))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers, each on one thread as is this process: in other numbers of threads sums are rounded otherwise."""
    threads, on_sigterm = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)  # which Ray replaces
    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, on_sigterm)
    torch.set_num_threads(threads)


def test_encode_dir(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three shards while an actor dies, the last one by the command, which goes on."""
    command = ["encode-dir", str(clips), str(tmp_path / "spread"), "--per-shard", "1", "--json", "-"]
    refs = find_sources(clips).videos
    jobs = [
        Job(str(tmp_path / "spread" / shard_name(n)), [(ref, {"path": ref.name})], "float16", None)
        for n, ref in enumerate(refs)
    ]
    (tmp_path / "spread").mkdir()
    done = list(on_ray(jobs[:3], DiesOnce(mark=str(tmp_path / "died")), 2))
    assert (tmp_path / "died").exists() and sorted(one.frames for one in done) == [20, 21, 22]
    assert main([*command, "--engine", "ray", "--workers", "2"]) == 0
    totals = json.loads(capsys.readouterr().out.splitlines()[-1])["totals"]
    assert (totals["videos"], totals["frames"]) == (1, 23)
    assert main(["encode-dir", str(clips), str(tmp_path / "alone"), "--per-shard", "1"]) == 0
    both = [TokenDataset(tmp_path / name) for name in ("spread", "alone")]
    assert [about["path"] for about in both[0].videos] == [about["path"] for about in both[1].videos]
    for one, other in zip(*both, strict=True):
        assert torch.equal(one.tiv, other.tiv) and torch.equal(one.tv, other.tv)


def test_a_command_that_is_killed_loses_the_shards_in_work(clips: Path, tmp_path: Path) -> None:
    """Those that are there stay as they are; the command is run again beside a cluster that has lost it."""
    videos, result, alone = tmp_path / "videos", tmp_path / "spread", tmp_path / "alone"
    videos.mkdir()
    for number in range(40):
        (videos / f"{number:02}.mp4").symlink_to(clips / "3.mp4")
    arguments = ["encode-dir", str(videos), str(result), "--per-shard", "1", "--engine", "ray", "--workers", "2"]
    where = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen([sys.executable, "-m", "tivtok", *arguments], env=where)
    while process.poll() is None and not list(result.glob("shard-*")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in result.glob("shard-*")}
    assert 0 < len(kept) < 40 and not (result / "index.json").exists()
    assert main(arguments) == 0 and main([*arguments[:2], str(alone), "--per-shard", "1"]) == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in result.glob("shard-*")}.items()
    assert len(TokenDataset(result)) == 40
    assert all(torch.equal(one.tv, other.tv) for one, other in zip(*map(TokenDataset, (result, alone)), strict=True))


def test_what_fails_in_an_actor_fails_here(clips: Path, tmp_path: Path) -> None:
    job = Job(str(tmp_path / "none" / shard_name(0)), [], "float16", None)
    with pytest.raises(FileNotFoundError, match=r"the folder of .* does not exist"):
        list(on_ray([job], Encoder(), 1))


def test_rows_on_ray_data(clips: Path, tmp_path: Path) -> None:
    paths = sorted(str(path) for path in clips.glob("*.mp4"))
    rows = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=4).map_batches(
        DiesOnce,
        fn_constructor_kwargs={"mark": str(tmp_path / "died")},
        batch_size=1,
        concurrency=2,
        max_restarts=-1,
        max_task_retries=-1,
    )
    spread = {row["path"]: row for row in rows.iter_rows()}
    assert (tmp_path / "died").exists() and sorted(spread) == paths
    alone = Encoder()({"path": paths})
    for number, path in enumerate(paths):
        one = from_row({name: alone[name][number] for name in COLUMNS})
        other = from_row(spread[path])
        assert (one.num_frames, one.model_id) == (other.num_frames, other.model_id) == (20 + number, other.model_id)
        assert torch.equal(one.tiv, other.tiv) and torch.equal(one.tv, other.tv)


def test_the_example_goes_on_where_it_was(clips: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    result = tmp_path / "tokens"
    moved = clips / "3.mp4"
    aside = tmp_path / "3.mp4"
    moved.rename(aside)
    monkeypatch.setattr(sys, "argv", ["ray_encode.py", str(clips), str(result)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    aside.rename(moved)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = [line for line in capsys.readouterr().out.splitlines() if "videos" in line or "nothing" in line]
    assert said == [f"wrote {result}: 3 videos", f"wrote {result}: 1 videos", "nothing to do"]
    rows = dataset(result, format="parquet").to_table(["num_frames"])
    assert sorted(rows["num_frames"].to_pylist()) == [20, 21, 22, 23]
