"""A measurement's numbers in one JSON file that grows as they come, so that an interrupted command goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.dumps import read_json, write_json
from tivtok.video import find_videos


class Record:
    """``settings`` and, by key, what was measured with them."""

    def __init__(self, path: Path, settings: dict[str, Any], measured: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.measured = measured

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any]) -> Record:
        """What was measured so far, or nothing yet.

        Raises:
            ValueError: it was measured with other settings, and is neither to be mixed nor to be lost.
        """
        settings = json.loads(json.dumps(settings))  # tuples become lists, as they do in the file
        if not path.exists():
            return cls(path, settings, {})
        stored = read_json(path)
        others = [key for key in settings if stored["settings"].get(key) != settings[key]]
        if others:
            raise ValueError(f"{path} was measured with other settings ({', '.join(others)}): move it away first")
        return cls(path, settings, stored["measured"])

    def add(self, key: str, values: Any) -> None:
        """Keep ``values`` and write the file."""
        self.measured[key] = values
        write_json(self.path, {"settings": self.settings, "measured": self.measured})


def fingerprint(folder: Path) -> str:
    """Number of the videos in a folder, and a hash of their names and sizes."""
    listing = [(str(path.relative_to(folder)), path.stat().st_size) for path in find_videos(folder)]
    return f"{len(listing)} files, {hashlib.sha256(repr(listing).encode()).hexdigest()[:16]}"
