"""``tivtok train``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from tivtok.cli.output import CommandError, say


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run: model, data, schedule.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the config: steps=100, model.width=64. Any number."),
    ] = None,
) -> None:
    """Train a tokenizer, or go on with a run that was interrupted.

    Example: tivtok train configs/tiny.toml --set steps=100 --set output=runs/short
    """
    try:
        from tivtok.training import TrainConfig, TrainingError, TrainingStopped, leave_processes
        from tivtok.training import train as run
    except ModuleNotFoundError as error:
        raise CommandError(f"training needs {error.name}: pip install 'tivtok[train]'") from None

    code, failed = 0, None
    try:
        said = f"wrote {run(TrainConfig.load(config, settings or ()))}"
    except TrainingError as error:
        failed = CommandError(str(error))
    except TrainingStopped as stopped:
        said, code = str(stopped), 128 + signal.SIGTERM
    leave_processes()  # all get here; another error may be one process's alone, which must not wait for the others
    if failed is not None:
        raise failed
    say(said)
    raise typer.Exit(code)
