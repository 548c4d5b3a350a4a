"""Numbers of a measurement on disk: JSON, compressed, for they are many and nobody reads them line by line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tivtok.files import replacing


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` to ``path``, compressed where its name ends in .gz: equal values to equal bytes."""
    text = (json.dumps(values, indent=1) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def read_json(path: Path) -> Any:
    """The inverse of `write_json`."""
    return parse_json(path.read_bytes())


def parse_json(stored: bytes) -> Any:
    """Values from the bytes of a file, compressed or not."""
    return json.loads(gzip.decompress(stored) if stored[:2] == b"\x1f\x8b" else stored)


def beside(path: Path, ending: str) -> Path:
    """The file that goes with a dump: "a.json.gz" and ".md" -> "a.md"."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".json") + ending)
