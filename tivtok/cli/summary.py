"""What a command has done, for programs to read: ``--json``, with the same keys for all commands."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tivtok.cli.output import check_output, say
from tivtok.files import replacing
from tivtok.tokenizer import TivTok

JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE|-", help="Write what was done as JSON; - prints it, as the last line."),
]


class Summary:
    """The summary of a command, which begins now.

    Args:
        command: its name.
        target: where `write` goes; "-" is stdout, None nowhere.

    Raises:
        CommandError: ``target`` cannot be written.
    """

    def __init__(self, command: str, target: Path | None) -> None:
        if target is not None and str(target) != "-":
            check_output(target)
        self._command, self._target = command, target
        self._began = time.monotonic()

    def write(
        self,
        model: TivTok,
        wrote: Path | str | None,
        videos: int,
        frames: int,
        tokens: int,
        failed: int = 0,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Write the summary, if it was asked for.

        Args:
            model: what has encoded or decoded.
            wrote: the result.
            videos, frames, tokens: how many were done, in all.
            failed: how many videos could not be.
            more: the command's own keys, behind those of all.
        """
        if self._target is None:
            return
        seconds = time.monotonic() - self._began
        record = {
            "command": self._command,
            "wrote": None if wrote is None else str(wrote),
            "model": {"name": model.config.name, "id": model.model_id},
            "totals": {
                "videos": videos,
                "failed": failed,
                "frames": frames,
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "frames_per_second": round(frames / seconds, 3),
            },
        }
        record = _plain(record | (more or {}))
        if str(self._target) == "-":
            say(json.dumps(record))
            return
        with replacing(self._target) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """The same without NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
