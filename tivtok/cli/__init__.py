"""The command ``tivtok``.

Command modules import torch and all that needs it inside their functions, so that ``tivtok --help`` answers at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from tivtok.cli import codec, demo, doctor, encode_dir, evaluate, inspect, stats, swap, train, weights
from tivtok.files import missing_hint, printable

# What typer raises for a command line that does not parse; it has no public name in every version.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)

app = typer.Typer(
    name="tivtok",
    help="TivTok: videos to time-invariant and time-variant tokens, and back.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("encode")(codec.encode)
app.command("decode")(codec.decode)
app.command("reconstruct")(codec.reconstruct)
app.command("swap")(swap.swap)
app.command("encode-dir")(encode_dir.encode_dir)
app.command("info")(inspect.info)
app.command("inspect")(inspect.inspect)
app.command("eval")(evaluate.evaluate)
app.command("weights")(weights.weights)
app.command("train")(train.train)
app.command("stats")(stats.stats)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    context.ensure_object(dict)["debug"] = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default the program's own).

    Returns:
        The exit code: 0, 1 for an error, 2 for a command line that does not parse, 130 for ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, prog_name="tivtok", standalone_mode=False) or 0
        return _fail("interrupted", code) if code == 130 else code  # some versions of typer return, others raise
    except UsageError as error:
        hint = getattr(error, "ctx", None)
        return _fail(f"{error.format_message()} See {hint.command_path if hint else 'tivtok'} --help", 2)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except (OSError, ValueError) as error:
        if "--debug" in arguments:
            raise
        return _fail(_one_line(error), 1)


def _one_line(error: OSError | ValueError) -> str:
    """Without the "[Errno 2]" that Python puts before what went wrong with a file."""
    if isinstance(error, OSError) and error.filename is not None:
        hint = missing_hint(error.filename) if isinstance(error, FileNotFoundError) else ""
        return f"{error.filename}: {error.strerror}{hint}"
    return str(error)


def _fail(message: str, code: int) -> int:
    lines = (line.strip() for line in message.splitlines())
    print("tivtok: " + printable(" ".join(line for line in lines if line)), file=sys.stderr)
    return code
