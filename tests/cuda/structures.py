"""The structures of csrc as ctypes has them, read from the headers: what the kernels take is described there alone."""

from __future__ import annotations

import ctypes
import re

from cuda_emulator import CSRC

_STRUCT = re.compile(r"^struct (\w+)(?: : \w+)? \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_NUMBERS = {"int": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}


class Structure(ctypes.Structure):
    """Filled by name: ctypes alone would take fields in any order and forget those that it does not know."""

    def __init__(self, **values: object):
        names = {name for name, _ in self._fields_}
        if values.keys() != names:
            raise TypeError(f"{type(self).__name__} takes {sorted(names)}, got {sorted(values)}")
        super().__init__(**values)


def structures(header: str, *others: type[Structure]) -> dict[str, type[Structure]]:
    """The structures that a header declares, by name; ``others`` may be members of them.

    Raises:
        ValueError: a line declares none of what they are made of: pointers, numbers, such structures.
    """
    known = {other.__name__: other for other in others}
    declared = {}
    for name, body in _STRUCT.findall((CSRC / header).read_text()):
        fields = [field for line in body.splitlines() for field in _fields(f"{header}, {name}", line, known)]
        known[name] = declared[name] = type(name, (Structure,), {"_fields_": fields})
    return declared


def _fields(place: str, line: str, known: dict[str, type[Structure]]) -> list[tuple[str, type]]:
    """Of a line such as "const float *lse, *dlse;  // (N, H)"."""
    code = re.sub(r"( = \w+)?;.*|//.*", "", line).strip()
    if not code:
        return []
    kind, _, rest = code.removeprefix("const ").partition(" ")
    pointer, kind = kind.endswith("*"), kind.rstrip("*")
    fields = []
    for field in rest.split(", "):
        name = field.removeprefix("*")
        known_kind = ctypes.c_void_p if pointer or field != name else _NUMBERS.get(kind) or known.get(kind)
        if known_kind is None or not name.isidentifier():
            raise ValueError(f"csrc/{place}: expected pointers, numbers or structures, got {line!r}")
        fields.append((name, known_kind))
    return fields
