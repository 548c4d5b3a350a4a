"""Video files below a folder, and what there is left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tivtok.video.errors import VideoError

# What FFmpeg reads, by the names that such files have. Not here: still pictures, sound, and names that are mostly of
# something else (.ogg, .dat, .yuv).
_SUFFIXES = {
    "MP4 and QuickTime": "3g2 3gp 3gpp f4v ismv m4v mj2 mov mp4 qt",
    "Matroska": "mk3d mkv webm",
    "AVI": "avi divx",
    "MPEG streams": "m2p m2t m2ts m1v m2v mpe mpeg mpg mpv mts tod trp ts vob",
    "Windows Media": "asf wm wmv wtv",
    "other containers": "amv dav dif dv flv gxf ivf mxf nsv nut nuv ogm ogv rm rmvb y4m",
    "no container": "264 265 266 avc avs2 avs3 drc h261 h263 h264 h265 h266 hevc mjpeg mjpg obu vc1 vvc",
    "animations": "apng bik flc fli gif roq smk",
}
VIDEO_SUFFIXES = frozenset(f".{suffix}" for family in _SUFFIXES.values() for suffix in family.split())

NOT_A_VIDEO = "not named like a video"
SHOWN_NAMES = 3


class LeftOut(NamedTuple):
    """A file or folder that is not used, and why."""

    path: Path
    reason: str


class Search(NamedTuple):
    """Result of `search_folder`.

    Attributes:
        files: those wanted, sorted.
        left_out: everything else, sorted.
    """

    files: list[Path]
    left_out: list[LeftOut]


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """The files below ``folder`` that are named like videos, sorted; rules and errors as of `search_folder`."""
    return search_folder(folder).files


def search_folder(folder: str | os.PathLike[str], suffixes: Iterable[str] = VIDEO_SUFFIXES) -> Search:
    """Search ``folder`` and the folders in it for files with one of ``suffixes`` (in lower case).

    Links to files count as files. Links to folders are followed after all else, and no folder is searched twice.
    Hidden files and folders are left out, those that macOS adds ("._clip.mp4") among them.

    Raises:
        VideoError: ``folder`` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VideoError(f"{folder} is {'not a folder' if folder.exists() else 'missing, expected a folder'}")
    wanted = frozenset(suffixes)
    files: list[Path] = []
    left_out: list[LeftOut] = []
    folders, links, seen = [folder], list[Path](), set[tuple[int, int]]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            left_out.append(LeftOut(here, "a link to a folder that is searched anyway"))
            continue
        seen.add((stat.st_dev, stat.st_ino))
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            left_out.append(LeftOut(here, f"a folder that cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            path = Path(entry.path)
            if not entry.name.startswith(".") and path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif reason := why_not_wanted(entry.name, wanted) or _no_file(path):
                left_out.append(LeftOut(path, reason))
            else:
                files.append(path)
    return Search(sorted(files), sorted(left_out))


def why_not_wanted(name: str, suffixes: Iterable[str] = VIDEO_SUFFIXES) -> str | None:
    """Why a file of this name is left out, None if it is not."""
    if name.startswith("._"):
        return "added by macOS"
    if name.startswith("."):
        return "hidden"
    return None if os.path.splitext(name)[1].lower() in suffixes else NOT_A_VIDEO


def summary(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """A line for each reason: how many, why, and the first names."""
    of_reason: dict[str, list[str]] = {}
    for path, reason in left_out:
        of_reason.setdefault(reason, []).append(path.name)
    for reason, names in of_reason.items():
        more = ", ..." if len(names) > SHOWN_NAMES else ""
        yield f"left out {len(names)}: {reason} ({', '.join(names[:SHOWN_NAMES])}{more})"


def _no_file(path: Path) -> str | None:
    if path.is_file():
        return None
    return "not a regular file" if path.exists() else "a link to nothing"
