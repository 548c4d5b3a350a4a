"""File names of any kind, and writing files so that a reader finds the old file or the new one, never half a file."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Errors that only writing raises; Python does not say for which file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    When the block raises (ctrl-C too) the temporary file is removed and ``path`` is left as it was. The temporary name
    ends like ``path``, so that writers which guess a format from the suffix guess the same one. A symbolic link keeps
    its place: what it points to is replaced.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        IsADirectoryError: ``path`` is a folder.
        FileExistsError: ``path`` is no regular file (a device, say), and replacing it would do harm.
        OSError: there is no room left; it names ``path``.
    """
    path = Path(path).resolve()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file name")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file, it cannot be replaced")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def open_in(folder: str, name: str) -> IO[bytes]:
    """A file of a folder, open to be read; the folder may be an address that fsspec knows ("s3://bucket/tokens").

    Raises:
        OSError: it cannot be read.
    """
    if "://" not in folder:
        return open(os.path.join(folder, name), "rb")
    import fsspec

    return fsspec.open(f"{folder.rstrip('/')}/{name}", "rb").open()


@contextmanager
def utf8_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path to the same file that is valid UTF-8, for libraries that take no other (safetensors).

    On Linux a name may be any bytes. There the open file also has a path by its number, valid while the block runs.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        name = os.fspath(path)
        yield name if _is_utf8(name) else f"/proc/self/fd/{file.fileno()}"


def printable(text: str) -> str:
    """``text`` on one line and in valid Unicode: control characters and bytes that are not UTF-8 as Python escapes."""
    hidden = ("Cc", "Cs", "Zl", "Zp")  # controls, surrogates (how Python holds such bytes), line and paragraph ends
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in hidden else c for c in text)


def not_a_file(path: str | os.PathLike[str]) -> str:
    """Say why there is no file to read at ``path``, in words to follow its name."""
    if os.path.exists(path):
        return "is not a file"
    return f"is missing{missing_hint(path)}"


def missing_hint(path: str | os.PathLike[str]) -> str:
    """Guess what was meant by the name of a file that is not there: "" or a remark in brackets."""
    name = os.fspath(path)
    if name == "-":
        return " (standard input and output are not supported: name a file)"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
        return " (addresses are not supported: name a file)"
    return ""


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
