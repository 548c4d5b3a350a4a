"""Lists of data sets, from the files that their makers split them by: `tivtok.video.sources` reads them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tivtok.files import replacing
from tivtok.video.errors import VideoError
from tivtok.video.find import find_videos

_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class Listed(NamedTuple):
    """A video of a split: its file, None where it is missing, and its class."""

    file: Path | None
    name: str
    label: str


def ucf101(videos: Path, split: Path) -> Iterator[Listed]:
    """The videos of a split of UCF-101: a line of ``trainlist01.txt`` or ``testlist01.txt`` is Class/name.avi [number].

    Args:
        videos: the folder of the classes' folders.

    Raises:
        OSError: ``split`` cannot be read.
        VideoError: a line of it is something else.
    """
    for number, line in enumerate(split.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        label, slash, name = line.split()[0].partition("/")
        if not slash or not name.endswith(".avi"):
            raise VideoError(f"{split}, line {number}: expected Class/name.avi and perhaps a number, got {line!r}")
        file = videos / label / name
        yield Listed(file if file.is_file() else None, name, label)


def kinetics(videos: Path, split: Path) -> Iterator[Listed]:
    """The videos of a split of Kinetics-400, -600 or -700, by the table of its makers.

    Args:
        videos: a folder of clips that have been cut, anywhere in it and named YOUTUBE-ID_START_END with both in seconds
            and six digits, as the usual downloads have them.
        split: CSV with the columns label, youtube_id, time_start and time_end.

    Raises:
        OSError: ``split`` cannot be read.
        VideoError: it is another table, or ``videos`` no folder.
    """
    files = {file.stem: file for file in find_videos(videos)}
    with split.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in _KINETICS_COLUMNS if name not in (reader.fieldnames or ())]:
            raise VideoError(f"{split} must have the columns {', '.join(_KINETICS_COLUMNS)}, it lacks {missing}")
        for row in reader:
            try:
                start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            except (TypeError, ValueError):
                raise VideoError(f"{split}, line {reader.line_num}: expected seconds, got {row}") from None
            name = f"{row['youtube_id']}_{start:06}_{end:06}"
            yield Listed(files.get(name), name, row["label"])


def write_list(path: Path, listed: Iterable[Listed], dataset: str) -> tuple[int, int]:
    """Write a list with the columns path, label and dataset.

    Args:
        dataset: its name, for `tivtok.training.config.TrainConfig.mix`.

    Returns:
        How many videos it has, and how many are missing.

    Raises:
        VideoError: all are missing.
    """
    there = missing = 0
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("path", "label", "dataset"))
        for video in listed:
            if video.file is None:
                missing += 1
                continue
            there += 1
            out.writerow((os.path.relpath(video.file, path.parent), video.label, dataset))
        if not there:
            raise VideoError(f"none of the {missing} videos of the split is there")
    return there, missing
