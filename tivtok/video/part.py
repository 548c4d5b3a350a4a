"""Reading a part of a file as if it were a file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class FilePart(io.RawIOBase):
    """``size`` bytes of a file from ``offset`` on, for reading, such as a member of a tar. It closes with the reader.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.name = str(path)
        self._file = path.open("rb", buffering=0)
        self._offset = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)]) or 0
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()
