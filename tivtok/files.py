"""File names of any kind, and writing files so that a reader finds the old file or the new one, never half a file.

Where a function takes an address, that is a path, or what fsspec knows ("s3://bucket/tokens").
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# Errors that only writing raises; Python does not say for which file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_SENT_AT_A_TIME = 1 << 23  # bytes


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


def is_remote(address: str) -> bool:
    """Whether ``address`` is none of a path: a scheme stands before it."""
    return "://" in address


def open_in(folder: str, name: str) -> IO[bytes]:
    """A file of the folder at an address, open to be read.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read.
        ValueError: fsspec cannot reach the address.
    """
    if not is_remote(folder):
        return open(os.path.join(folder, name), "rb")
    files, path = _remote(folder)
    return files.open(f"{path}/{name}", "rb")


def names_in(folder: str) -> set[str]:
    """What the folder at an address holds; nothing where there is none.

    Raises:
        OSError: it cannot be read.
        ValueError: fsspec cannot reach the address.
    """
    try:
        if not is_remote(folder):
            return set(os.listdir(folder))
        files, path = _remote(folder)
        files.invalidate_cache()  # other processes write there, too
        return {found.rstrip("/").rpartition("/")[2] for found in files.ls(path, detail=False)}
    except FileNotFoundError:
        return set()


def make_folder(folder: str) -> None:
    """Make the folder at an address, and those that it is in, where they are missing.

    Raises:
        OSError: it cannot be made.
        ValueError: fsspec cannot reach the address.
    """
    if not is_remote(folder):
        os.makedirs(folder, exist_ok=True)
        return
    files, path = _remote(folder)
    files.makedirs(path, exist_ok=True)


@contextmanager
def replacing_in(folder: str, name: str) -> Iterator[Path]:
    """Do as `replacing` does for a file of the folder at an address.

    A remote file is written here first and sent when the block ends well, in a transaction of its file system: under
    another name, or in parts that become a file at the end, where the file system has such.

    Raises:
        OSError: as of `replacing`, or the file cannot be sent.
        ValueError: fsspec cannot reach the address.
    """
    if not is_remote(folder):
        with replacing(Path(folder) / name) as temporary:
            yield temporary
        return
    files, path = _remote(folder)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / name
        yield made
        with files.transaction, made.open("rb") as source, files.open(f"{path}/{name}", "wb") as target:
            shutil.copyfileobj(source, target, _SENT_AT_A_TIME)


def fetched(address: str) -> IO[bytes]:
    """Copy the file at an address to a temporary file, which goes when it is closed or forgotten.

    Raises:
        OSError: it cannot be read, or copied.
        ValueError: fsspec cannot reach the address.
    """
    files, path = _remote(address)
    copy = tempfile.NamedTemporaryFile(prefix="tivtok-", suffix=os.path.splitext(path)[1])  # noqa: SIM115
    try:
        with files.open(path, "rb") as source:
            shutil.copyfileobj(source, copy, _SENT_AT_A_TIME)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy


def _remote(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there.

    Raises:
        ValueError: fsspec does not know it, or lacks what it needs.
    """
    import fsspec

    try:
        files, path = fsspec.url_to_fs(address.rstrip("/"))
    except (ValueError, ImportError) as error:
        raise ValueError(f"{address} cannot be reached: {error}") from None
    return files, path


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
