"""The PTX that nvcc emits for our kernels, as C++ for the emulator: one statement for each instruction.

So the text of the inline PTX and the compiler's work on it are executed too. An instruction that ptx_instructions.py
does not know is an error, never skipped. A kernel `name` becomes `extern "C" void ptx_name(void** params)`, which
emu::launch finds by that name.
"""

import re

from ptx_instructions import SHARED_SYMBOLS, Kernel, UnsupportedPtx, identifier, split, statement

TOKEN = re.compile(
    r"""\s*(?:
    \.loc\s+(?P<loc>[^\n]*)\n | (?P<skip>\.pragma[^;]*;) | \.reg\s+\.(?P<type>\w+)\s+(?P<regs>[^;]*);
    | \.local\s+\.align\s+(?P<align>\d+)\s+\.b8\s+(?P<local>\w+)\[(?P<size>\d+)\];
    | (?P<label>[$\w]+): | (?P<brace>[{}])
    | (?:@(?P<negated>!?)(?P<guard>[%\w]+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>[^;]*);
    )""",
    re.VERBOSE,
)


def body(k: Kernel, text: str, files: dict[str, str]) -> list[str]:
    lines, position = [], 0
    text = re.sub(r"//[^\n]*", "", text).rstrip()
    while position < len(text):
        m = TOKEN.match(text, position)
        if not m:
            raise UnsupportedPtx(text[position:].strip().split("\n")[0])
        position = m.end()
        if m["loc"]:
            place = re.search(r"inlined_at\s+(\d+)\s+(\d+)", m["loc"]) or re.search(r"(\d+)\s+(\d+)", m["loc"])
            if place:  # of inlined code its caller's
                lines.append(f'#line {place[2]} "{files.get(place[1], "ptx")}"')
        elif m["type"]:
            lines.append(k.declare(m["type"], m["regs"]))
        elif m["local"]:
            k.locals.add(m["local"])
            lines.append(f"alignas({m['align']}) uint8_t {identifier(m['local'])}[{m['size']}];")
        elif m["label"]:
            lines.append(f"{identifier(m['label'])}:;")
        elif m["brace"] == "{":
            lines.append("{" + local_labels(braced_text(text, position)))
        elif m["brace"]:
            lines.append("}")
        elif m["opcode"]:
            line = statement(k, m["opcode"], split(m["operands"]))
            lines.append(f"if ({m['negated']}{identifier(m['guard'])}) {{ {line} }}" if m["guard"] else line)
    return lines


def local_labels(text: str) -> str:
    """The declaration of a scope's own labels, where inline PTX has the same ones every time."""
    labels = dict.fromkeys(re.findall(r"^\s*([$\w]+):(?!:)", re.sub(r"\{[^{}]*\}", "", text), re.MULTILINE))
    return f" __label__ {', '.join(map(identifier, labels))};" if labels else ""


def braced_text(text: str, start: int) -> str:
    """From start, which is just within a brace, to where that brace closes."""
    depth = 1
    for brace in re.finditer("[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : start + brace.start()]
    raise UnsupportedPtx("a brace that never closes")


def translate(ptx: str) -> str:
    """C++ for every kernel of a PTX module. Raises UnsupportedPtx."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE))
    for foreign in re.findall(r"^\s*(?:\.\w+\s+)?\.(?:func|global|const|shared)\b.*", ptx, re.MULTILINE):
        # Headers and compiler options leave names behind that nobody uses.
        name = re.search(r"\.b8 ([\w$]+)\[\d+\](?: = |;)", foreign)
        if not any(symbol in foreign for symbol in SHARED_SYMBOLS) and not (name and ptx.count(name[1]) == 1):
            raise UnsupportedPtx(foreign.strip())
    out = ['#include "emulator/translated.h"']
    for entry in re.finditer(r"\.entry\s+(\w+)\s*\((.*?)\)[^{]*\{", ptx, re.DOTALL):
        name, params = entry.groups()
        k = Kernel(params=re.findall(r"(\w+)(?:\[\d+\])?\s*(?:,|$)", params.strip(), re.MULTILINE))
        out += [f'extern "C" void ptx_{name}(void** params) {{', *body(k, braced_text(ptx, entry.end()), files), "}"]
    return "\n".join(out) + "\n"
