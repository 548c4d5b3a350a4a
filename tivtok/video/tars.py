"""What WebDataset tars hold and where in them it lies, remembered from one program to the next."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tivtok.files import replacing
from tivtok.video.errors import VideoError
from tivtok_kernels.measured import cache_folder


class Member(NamedTuple):
    """A member of a tar that is no folder.

    Attributes:
        name: as the tar has it, with folders.
        offset, size: in bytes, of what it holds.
        regular: whether it is a file.
    """

    name: str
    offset: int
    size: int
    regular: bool


def members(path: Path) -> list[Member]:
    """The members of an uncompressed tar, in its order.

    Their headers lie all over it, so that a large one takes long to walk through: what was found is kept in
    ``$TIVTOK_HOME/tars``, and taken from there as long as the tar has that size and time of change.

    Raises:
        OSError: it cannot be read.
        VideoError: it is no uncompressed tar.
    """
    status = path.stat()
    state = {"tar": str(path.resolve()), "size": status.st_size, "changed": status.st_mtime_ns}
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    index = cache_folder() / "tars" / f"{name}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(index.read_text(encoding="ascii"))
        if all(kept[name] == value for name, value in state.items()):
            return [Member(*member) for member in kept["members"]]
    found = _walk(path)
    with suppress(OSError):  # where nothing can be kept the tar is walked through the next time, too
        index.parent.mkdir(parents=True, exist_ok=True)
        with replacing(index) as temporary:
            temporary.write_text(json.dumps(state | {"members": found}), encoding="ascii")
    return found


def _walk(path: Path) -> list[Member]:
    try:
        with tarfile.open(path, "r:") as tar:  # uncompressed: members can be read in any order
            return [Member(one.name, one.offset_data, one.size, one.isreg()) for one in tar if not one.isdir()]
    except tarfile.TarError as error:
        raise VideoError(f"{path} cannot be read as an uncompressed tar: {error}") from None
