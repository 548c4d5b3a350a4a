"""Encode a folder of videos with Ray Data, on this machine or a cluster, to Parquet: one row per video.

    pip install 'ray[data]'
    python examples/ray_encode.py clips/ tokens.parquet [--model tiny] [--workers 2] [--gpus 0]

Run again it encodes what is missing: rows are known by their path. Ray restarts workers that die.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray
from pyarrow.dataset import dataset

from tivtok.pipeline import Encoder
from tivtok.video import find_videos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("result", type=Path, help="a folder of Parquet files")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="for each worker")
    arguments = parser.parse_args()

    paths = {str(path.resolve()) for path in find_videos(arguments.videos)}
    if any(arguments.result.glob("*.parquet")):
        paths -= set(dataset(arguments.result, format="parquet").to_table(["path"])["path"].to_pylist())
    if not paths:
        print("nothing to do")
        return
    rows = ray.data.from_items([{"path": path} for path in sorted(paths)], override_num_blocks=len(paths))
    encoded = rows.map_batches(
        Encoder,
        fn_constructor_kwargs={"model": arguments.model},
        batch_size=1,
        concurrency=arguments.workers,
        num_cpus=0.5,  # so that writing, a task of its own, has its turn where all CPUs have a worker
        num_gpus=arguments.gpus,
        max_restarts=-1,
        max_task_retries=-1,
    )
    encoded.write_parquet(str(arguments.result), mode="append")
    print(f"wrote {arguments.result}: {len(paths)} videos")


if __name__ == "__main__":
    main()
