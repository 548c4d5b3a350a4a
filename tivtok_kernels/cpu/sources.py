"""Which sources the CPU engine's library was built from. setup.py, which has no torch, runs this file alone."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

# `digest` of params.h, whose structures backend.py and plan.py lay out: what an installed library, whose sources are
# not beside it, is compared with.
STRUCTURES = "6e936c1a0302"


def digest(*files: Path) -> str:
    """12 hexadecimal digits of the files' names and contents."""
    found = sha256()
    for file in sorted(files):
        found.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def stamp(folder: Path) -> str:
    """What the library built from ``folder``, csrc/cpu, says of itself: `digest` of all its sources and of params.h."""
    return f"{digest(*folder.glob('*.h'), *folder.glob('*.cpp'))} {digest(folder / 'params.h')}"
