"""Which videos there are: found in a folder, in WebDataset tars, or listed in a CSV or Parquet file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tivtok.files import is_remote, not_a_file
from tivtok.video.errors import VideoError
from tivtok.video.find import VIDEO_SUFFIXES, LeftOut, search_folder, why_not_wanted
from tivtok.video.tars import members

TAR = ".tar"
LISTS = (".csv", ".parquet")


@dataclass(frozen=True)
class VideoRef:
    """Where a video is.

    Attributes:
        name: file name, of the tar's member where it is in one.
        path: the file, or the tar.
        start, end: the part of it that counts, in seconds from its first frame; None is its end.
        member: offset and size in bytes inside the tar.
        columns: what else a list says of it, by column: captions, labels.
        address: as fsspec takes it, of a video that is no file of this machine; "" of one that is.
    """

    name: str
    path: Path
    start: float = 0.0
    end: float | None = None
    member: tuple[int, int] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    address: str = ""

    @property
    def place(self) -> str:
        """The path or the address."""
        return self.address or str(self.path if self.member is None else self.path / self.name)


class Sources(NamedTuple):
    """The videos of some data, in a fixed order, and what else is there."""

    videos: list[VideoRef]
    left_out: list[LeftOut]


def find_sources(data: Path) -> Sources:
    """The videos of ``data``.

    Args:
        data: a folder, searched recursively for videos and for tars of videos (WebDataset shards: a member is found by
            its suffix and read where it lies, so the order of the shards and what else they hold is of no matter); or
            a list, CSV in UTF-8 or Parquet, with the column ``path``: paths relative to the list's folder, or
            addresses ("s3://bucket/a.mp4"), which are not looked up here. ``start`` and ``end`` are seconds, an empty
            end meaning the video's; other columns are kept. Files in a list that are missing are left out.

    Raises:
        VideoError: ``data`` is neither, a list or a tar is not well-formed, or there is no video.
    """
    if data.is_dir():
        files, others = search_folder(data, VIDEO_SUFFIXES | {TAR})
        tars = [path for path in files if path.suffix.lower() == TAR]
        found: list[VideoRef | LeftOut] = [VideoRef(path.name, path) for path in files if path.suffix.lower() != TAR]
        found += [item for tar in tars for item in _in_tar(tar)]
        found += others
    elif data.suffix.lower() in LISTS and data.is_file():
        found = list(_in_csv(data) if data.suffix.lower() == ".csv" else _in_parquet(data))
    else:
        missing = "" if data.exists() else " (missing)"
        raise VideoError(f"data must be a folder or a .csv or .parquet list, got {data}{missing}")
    sources = Sources(
        [item for item in found if isinstance(item, VideoRef)], [item for item in found if isinstance(item, LeftOut)]
    )
    if not sources.videos:
        raise VideoError(f"data has no videos: {data}")
    return sources


def _in_parquet(path: Path) -> Iterator[VideoRef | LeftOut]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise VideoError(f"{path} needs pyarrow: pip install 'tivtok[parquet]'") from None

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise VideoError(f"{path} is not Parquet: {error}") from None
    _check_columns(table.column_names, path)
    for number, row in enumerate(table.to_pylist(), 1):
        yield _listed(row, path, f"row {number}")


def _check_columns(names: Sequence[str] | None, path: Path) -> None:
    names = names or ()
    if "path" not in names or ("start" in names) != ("end" in names):
        raise VideoError(f"{path} must have the column path, and start and end or neither, got {list(names)}")


def _in_csv(path: Path) -> Iterator[VideoRef | LeftOut]:
    # Other programs write a byte order mark and spaces after commas; names may be any bytes.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, skipinitialspace=True, strict=True)
        try:
            _check_columns(reader.fieldnames, path)
            for row in reader:
                if None in row:
                    raise VideoError(f"{path}, line {reader.line_num}: expected {reader.fieldnames}, got {row}")
                yield _listed(row, path, f"line {reader.line_num}")
        except csv.Error as error:
            raise VideoError(f"{path}, line {reader.line_num}: {error}") from None


def _listed(row: dict[str, Any], path: Path, place: str) -> VideoRef | LeftOut:
    try:
        start, end = float(row.get("start") or 0), float(row["end"]) if row.get("end") else None
        if not 0 <= start < (float("inf") if end is None else end):
            raise ValueError
        address = row["path"] if is_remote(row["path"]) else ""
        file_path = Path(address) if address else path.parent / row["path"]
    except (ValueError, TypeError):
        raise VideoError(f"{path}, {place}: expected a path and seconds 0 <= start < end, got {row}") from None
    if not address and not file_path.is_file():
        return LeftOut(file_path, f"listed in {path.name}, but it {not_a_file(file_path)}")
    columns = {name: value for name, value in row.items() if name not in ("path", "start", "end")}
    return VideoRef(file_path.name, file_path, start, end, columns=columns, address=address)


def _in_tar(path: Path) -> Iterator[VideoRef | LeftOut]:
    for member in members(path):
        name = PurePosixPath(member.name).name
        if reason := why_not_wanted(name) or (None if member.regular else "not a regular file"):
            yield LeftOut(path / member.name, reason)
        else:
            yield VideoRef(name, path, member=(member.offset, member.size))
