"""Which videos a run has: found in a folder, in WebDataset tars, or listed in a CSV file."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tivtok.training.config import TrainConfig
from tivtok.video import VIDEO_SUFFIXES, VideoError, find_videos


@dataclass(frozen=True)
class VideoRef:
    """Where a video is.

    Attributes:
        name: file name, of the tar's member where it is in one.
        path: the file, or the tar.
        start, end: the part of it that counts, in seconds from its first frame; None is its end.
        member: offset and size in bytes inside the tar.
    """

    name: str
    path: Path
    start: float = 0.0
    end: float | None = None
    member: tuple[int, int] | None = None


def find_sources(data: Path) -> list[VideoRef]:
    """The videos of ``data``, in a fixed order.

    Args:
        data: a folder, searched recursively for videos and for tars of videos (WebDataset shards: a member is found by
            its suffix and read where it lies, so the order of the shards and what else they hold is of no matter); or
            a CSV file with the header ``path`` or ``path,start,end``: paths relative to the list's folder, seconds, an
            empty end meaning the video's.

    Raises:
        VideoError: ``data`` is neither, a list or a tar is not well-formed, or there is no video.
    """
    if data.is_dir():
        refs = [VideoRef(path.name, path) for path in find_videos(data)]
        refs += [ref for tar in sorted(data.rglob("*.tar")) for ref in _in_tar(tar)]
    elif data.suffix.lower() == ".csv" and data.is_file():
        refs = list(_in_list(data))
    else:
        raise VideoError(f"data must be a folder or a .csv list, got {data}{'' if data.exists() else ' (missing)'}")
    if not refs:
        raise VideoError(f"data has no videos: {data}")
    return refs


def split_sources(config: TrainConfig) -> tuple[list[VideoRef], list[VideoRef]]:
    """Videos to train on and held-out videos.

    Raises:
        VideoError: as `find_sources`.
        ValueError: one of the two is empty.
    """
    refs = [
        ref for ref in find_sources(config.data) if not any(fnmatch(ref.name, pattern) for pattern in config.excluded)
    ]
    matching = [ref for ref in refs if any(fnmatch(ref.name, pattern) for pattern in config.held_out)]
    names = {ref.name for ref in matching}
    training = [ref for ref in refs if ref.name not in names]
    held_out = matching + (find_sources(config.validation) if config.validation else [])
    if not training or not held_out:
        raise ValueError(
            f"there must be videos to train on and held-out ones: {config.data} has {len(refs)} videos, "
            f"{len(matching)} of them match held_out = {list(config.held_out)}, validation is {config.validation}"
        )
    step = max(1, len(held_out) / config.held_out_clips)
    return training, [held_out[int(i * step)] for i in range(min(len(held_out), config.held_out_clips))]


def _in_list(path: Path) -> Iterator[VideoRef]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        if reader.fieldnames not in (["path"], ["path", "start", "end"]):
            raise VideoError(f"{path} must have the header path or path,start,end, got {reader.fieldnames}")
        for row in reader:
            try:
                start, end = float(row.get("start") or 0), float(row["end"]) if row.get("end") else None
                if None in row or not 0 <= start < (float("inf") if end is None else end):
                    raise ValueError
                file_path = path.parent / row["path"]
            except (ValueError, TypeError):
                raise VideoError(
                    f"{path}, line {reader.line_num}: expected a path and seconds 0 <= start < end, got {row}"
                ) from None
            yield VideoRef(file_path.name, file_path, start, end)


def _in_tar(path: Path) -> Iterator[VideoRef]:
    try:
        with tarfile.open(path, "r:") as tar:  # uncompressed: members can be read in any order
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isreg() and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                    yield VideoRef(name, path, member=(member.offset_data, member.size))
    except tarfile.TarError as error:
        raise VideoError(f"{path} cannot be read as an uncompressed tar: {error}") from None
