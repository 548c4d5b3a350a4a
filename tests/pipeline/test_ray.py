"""On a real Ray cluster of two workers: equal tokens, also where a worker dies, and only once what is already there."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from tivtok.pipeline import Encoder
from tivtok.tokens.rows import COLUMNS, from_row
from tivtok.video import VideoWriter

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")
EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_encode.py"


class DiesOnce(Encoder):
    """Ends its process at the first call of all, as a machine does that is switched off."""

    def __call__(self, batch):
        mark = Path(batch["path"][0]).parent / "died"
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return super().__call__(batch)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        with VideoWriter(folder / f"{number}.mp4", fps=10, width=64, height=64) as writer:
            for t in range(20 + number):
                writer.write(np.full((64, 64, 3), 10 * t + number, np.uint8))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    yield
    ray.shutdown()


def test_equal_tokens_though_a_worker_dies(clips: Path) -> None:
    paths = sorted(str(path) for path in clips.glob("*.mp4"))
    rows = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=4).map_batches(
        DiesOnce, batch_size=1, concurrency=2, max_restarts=-1, max_task_retries=-1
    )
    spread = {row["path"]: row for row in rows.iter_rows()}
    assert (clips / "died").exists() and sorted(spread) == paths
    alone = Encoder()({"path": paths})
    for number, path in enumerate(paths):
        one = from_row({name: alone[name][number] for name in COLUMNS})
        other = from_row(spread[path])
        assert (one.num_frames, one.model_id) == (other.num_frames, other.model_id) == (20 + number, other.model_id)
        np.testing.assert_allclose(one.tiv.float(), other.tiv.float(), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(one.tv.float(), other.tv.float(), rtol=2e-3, atol=2e-3)


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
    rows = ray.data.read_parquet(str(result)).take_all()
    assert sorted(row["num_frames"] for row in rows) == [20, 21, 22, 23]
