"""The command ``tivtok``: its commands by name, and what happens to their errors.

The module of a command is imported when the command is called, so that ``tivtok --help`` answers without torch.
"""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, NamedTuple, cast

import typer
from typer.core import TyperGroup

from tivtok.files import missing_hint, printable


class Command(NamedTuple):
    """A function of a module of this package, and its line in the list of commands: how its docstring begins."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "encode": Command("codec", "encode", "Encode a video to tokens."),
    "decode": Command("codec", "decode", "Decode tokens to a video."),
    "reconstruct": Command("reconstruct", "reconstruct", "Encode and decode a video, and say how close the result is."),
    "swap": Command("swap", "swap", "Combine what stays the same in A with what changes in B."),
    "encode-dir": Command("encode_dir", "encode_dir", "Encode all videos of a folder or a list to token shards."),
    "info": Command("info", "info", "Show what a file holds, or what a preset makes of a video."),
    "inspect": Command("inspect", "inspect", "Show what the tokens hold, as a contact sheet or a page."),
    "eval": Command("evaluate", "evaluate", "Measure PSNR, SSIM, LPIPS and rFVD of reconstructions, and seams."),
    "list": Command("lists", "make_list", "Make the list of a data set from its official split file."),
    "weights": Command("weights", "weights", "Get the weights that LPIPS and rFVD need."),
    "train": Command("train", "train", "Train a tokenizer, or go on with a run that was interrupted."),
    "stats": Command("stats", "stats", "Measure mean and standard deviation of a checkpoint's tokens."),
    "calibrate": Command("calibrate", "calibrate", "Measure what coded token files need to know of a checkpoint."),
    "doctor": Command("doctor", "doctor", "List the attention backends that run here, and why the others do not."),
    "app": Command("page", "app", "Try the tokenizer in a browser: upload a video, see what its tokens hold."),
    "demo": Command("demo", "demo", "Tokenise and reconstruct the bundled clip."),
}

# What typer raises for a command line that does not parse; it has no public name in every version.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)


class LazyGroup(TyperGroup):
    """Commands that are listed by name and summary, and imported when one of them is to run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        module, function, _ = COMMANDS[cast(str, name)]
        with _nothing_collected() if ctx.obj.alone else nullcontext():
            alone = typer.Typer(add_completion=False)
            alone.command(name)(getattr(import_module(f"tivtok.cli.{module}"), function))
            return name, typer.main.get_command(alone), rest


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Import without the garbage collector, which would look through all of torch's objects again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@dataclass
class Options:
    """Options of ``tivtok`` itself, before the command; ``alone`` where it is a program, not called by another."""

    debug: bool = False
    alone: bool = False


app = typer.Typer(
    name="tivtok",
    cls=LazyGroup,
    help="TivTok: videos to time-invariant and time-variant tokens, and back.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    context.obj.debug = debug


for name, command in COMMANDS.items():
    app.command(name, help=command.summary)(lambda: None)  # to be listed; `LazyGroup` puts the command in its place


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default the program's own).

    Returns:
        The exit code: 0, 1 for an error, 2 for a command line that does not parse, 130 for ctrl-C.
    """
    alone = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    given = Options(alone=alone)
    try:
        code = app(arguments, prog_name="tivtok", standalone_mode=False, obj=given) or 0
        return _fail("interrupted", code) if code == 130 else code  # some versions of typer return, others raise
    except UsageError as error:
        hint = getattr(error, "ctx", None)
        return _fail(f"{error.format_message()} See {hint.command_path if hint else 'tivtok'} --help", 2)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except (OSError, ValueError) as error:
        if given.debug:
            raise
        return _fail(_one_line(error), 1)


def _one_line(error: OSError | ValueError) -> str:
    """Drop the "[Errno 2]" that Python puts before what went wrong with a file."""
    if isinstance(error, OSError) and error.filename is not None:
        hint = missing_hint(error.filename) if isinstance(error, FileNotFoundError) else ""
        return f"{error.filename}: {error.strerror}{hint}"
    return str(error)


def _fail(message: str, code: int) -> int:
    lines = (line.strip() for line in message.splitlines())
    print("tivtok: " + printable(" ".join(line for line in lines if line)), file=sys.stderr)
    return code
