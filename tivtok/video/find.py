"""Video files below a folder."""

from __future__ import annotations

import os
from pathlib import Path

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """The files below ``folder`` that are named like videos, sorted."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
