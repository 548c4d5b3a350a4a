"""``python -m benchmarks.machine_code.cuda``: what ptxas made of the kernels in csrc/, by the built extension."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.dumps import write_json
from benchmarks.machine_code import sass
from benchmarks.machine_code.hazards import hazards
from benchmarks.machine_code.sass import Counts

NOTE = "Read from compiled code, never run. Shared memory is dynamic: csrc/*/config.h counts it."

_SECTION = re.compile(r"^arch = (sm_\w+)$", re.MULTILINE)
_FUNCTION = re.compile(r"^\t\tFunction : (\w+)$", re.MULTILINE)
_USAGE = re.compile(r"Function (\w+):\n\s*REG:(\d+) STACK:(\d+) ")

app = typer.Typer(add_completion=False)


class Kernel(NamedTuple):
    """``name`` as C++ writes it, without its parameters; ``arch`` as in "sm_90a"."""

    name: str
    arch: str


class Resources(NamedTuple):
    """Attributes:

    registers: per thread, before setmaxnreg moves them between warps. stack: bytes per thread.
    total, loop: instructions of the kernel and of its main loop (None where no loop has exponentials).
    hazards: registers of products in flight that something else touches (see `hazards`).
    """

    registers: int
    stack: int
    total: Counts
    loop: Counts | None
    hazards: tuple[str, ...] = ()


@app.command()
def inspect(
    library: Annotated[Path | None, typer.Option(help="The extension; that of this installation by default.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything found to this file, .json or .json.gz.")] = None,
) -> None:
    """Report registers, spills, matrix instructions and asynchronous copies of every kernel of the CUDA extension.

    Exits with 1 if any kernel spills, multiplies on the wrong unit, copies synchronously, or touches registers of wgmma
    in flight.
    """
    console = Console(stderr=True)
    library = library or installed()
    if library is None:
        console.print("the CUDA extension is not built (docs/cuda.md)")
        raise typer.Exit(2)
    found = read(library)
    if json:
        write_json(json, to_json(found))
    Console(width=None if sys.stdout.isatty() else 200).print(table(found))
    bad = sum(bool(faults(kernel, resources)) for kernel, resources in found.items())
    if bad:
        console.print(f"{bad} of {len(found)} kernels are not clean")
        raise typer.Exit(1)


def installed() -> Path | None:
    spec = find_spec("tivtok_kernels.cuda.extension")
    return Path(spec.origin) if spec and spec.origin else None


def read(library: Path) -> dict[Kernel, Resources]:
    """Every kernel of a library with device code, once per architecture that it has machine code for."""
    command = [cuobjdump(), "-sass", "-res-usage", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = _demangled(sorted(set(_FUNCTION.findall(text))))
    found = {}
    for arch, section in _split(_SECTION, text):
        usage = {name: (int(registers), int(stack)) for name, registers, stack in _USAGE.findall(section)}
        for name, listing in _split(_FUNCTION, section):
            code = sass.parse(listing)
            loop = sass.main_loop(code)
            counts = sass.count(code), None if loop is None else sass.count(loop)
            found[Kernel(names[name], arch)] = Resources(*usage[name], *counts, tuple(hazards(code)))
    return dict(sorted(found.items()))


def faults(kernel: Kernel, found: Resources) -> list[str]:
    """One line for each; none for a clean kernel. Those of namespaces `ampere` and `hopper` are there for products."""
    total, loop = found.total, found.loop
    spills = total.spill_loads + total.spill_stores
    lines = [f"{spills} spills, {found.stack} bytes of stack"] if spills or found.stack else []
    lines += found.hazards[:3]
    match kernel.name.partition("::")[0]:
        case "hopper":  # other warps copy than multiply
            lines += ["products not on wgmma"] * (loop is None or not loop.hgmma or total.hmma > 0)
            lines += ["no asynchronous copy"] * (not total.async_copies)
        case "ampere":
            lines += ["no products on mma in the main loop"] * (loop is None or not loop.hmma)
            lines += ["no asynchronous copy in the main loop"] * (loop is None or not loop.ldgsts)
    return lines


def table(found: dict[Kernel, Resources]) -> Table:
    drawn = Table(caption=NOTE)
    titles = ["kernel", "arch", "registers", "spills", "HGMMA", "HMMA", "LDGSTS", "UTMALDG", "EX2", "loop", "verdict"]
    for title in titles:
        drawn.add_column(title, justify="left" if title in ("kernel", "verdict") else "right")
    for kernel, resources in found.items():
        total, loop, verdict = resources.total, resources.loop, "; ".join(faults(kernel, resources)) or "clean"
        counts = [total.hgmma, total.hmma, total.ldgsts, total.utmaldg, total.ex2, loop.instructions if loop else "-"]
        spills = total.spill_loads + total.spill_stores
        row = [*kernel, resources.registers, spills, *counts, verdict]
        drawn.add_row(*map(str, row), style=None if verdict == "clean" else "red")
    return drawn


def to_json(found: dict[Kernel, Resources]) -> dict[str, Any]:
    kernels = []
    for kernel, resources in found.items():
        loop = resources.loop and resources.loop._asdict()
        parts = {"total": resources.total._asdict(), "loop": loop, "faults": faults(kernel, resources)}
        kernels.append({**kernel._asdict(), **resources._asdict(), **parts})
    return {"note": NOTE, "kernels": kernels}


def _split(heading: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """What each heading names, with the text down to the next."""
    parts = heading.split(text)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def cuobjdump() -> str:
    """Find cuobjdump in the CUDA toolkit, or take the one that comes with triton."""
    if path := shutil.which("cuobjdump"):
        return path
    from triton import knobs

    return knobs.nvidia.cuobjdump.path


def _demangled(names: list[str]) -> dict[str, str]:
    """Demangle names by c++filt; where it is missing they stay as they are."""
    tool = shutil.which("c++filt")
    if tool is None:
        return dict(zip(names, names, strict=True))
    lines = subprocess.run([tool], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    short = [re.sub(r"\([^()]*\)$|^void |\w+::(?=bf16|fp16)| (?=>)", "", line) for line in lines.splitlines()]
    return dict(zip(names, short, strict=True))


if __name__ == "__main__":
    app()
