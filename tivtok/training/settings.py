"""Values of a config from outside: ``key=value`` from a command line, and a check of every value's type."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file. ``extends = "other.toml"`` takes those of another one beside it first.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is not TOML, or ``extends`` names no file, or itself in the end.
    """
    return _extended(path, ())


def _extended(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    if path in before:
        raise ValueError(f"{path.name} extends itself, by way of {', '.join(p.name for p in before)}")
    values = tomllib.loads(path.read_text())
    name = values.pop("extends", None)
    if name is None:
        return values
    if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file():
        raise ValueError(f"extends must name a file beside {path.name}, got {name!r}")
    return _laid_over(_extended(path.parent / name, (*before, path)), values)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables of both are merged, all else is that of ``above``."""
    both = {
        key: _laid_over(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return below | above | both


def override(values: dict[str, Any], settings: Sequence[str]) -> None:
    """Change a config, as TOML has it, by ``key=value`` or ``table.key=value``: a TOML value, or else a text as it is.

    Nothing behind the sign takes the key away, which leaves its default.

    Raises:
        ValueError: a setting is no ``key=value``, or puts a key into what is no table.
    """
    for setting in settings:
        path, sign, text = setting.partition("=")
        *tables, key = path.strip().split(".")
        if not sign or not key or not all(tables):
            raise ValueError(f'--set takes KEY=VALUE, such as steps=100 or model.width=64, got "{setting}"')
        table = values
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ValueError(f'--set {setting}: "{name}" is no table')
        if text.strip():
            table[key] = _value(text)
        else:
            table.pop(key, None)


def check_types(cls: type, values: dict[str, Any], table: str = "") -> None:
    """
    Raises:
        ValueError: a value is not of the type that the dataclass ``cls`` has for its key.
    """
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key in hints and not _is_a(value, hints[key]):
            raise ValueError(f"{table}{key} must be {_in_words(hints[key])}, got {value!r}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _is_a(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_is_a(value, part) for part in parts)
    if kind is Literal:  # which text it may be is the config's to say
        return isinstance(value, str)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            return False
        each = [parts[0]] * len(value) if parts[-1] is ... else list(parts)
        return len(value) == len(each) and all(map(_is_a, value, each))
    if hint is Path:
        return isinstance(value, str | Path)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint) or (hasattr(hint, "__dataclass_fields__") and isinstance(value, dict))


def _in_words(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in parts if part is not NoneType))
    if kind is tuple:
        return f"a list of {parts[0].__name__}" if parts[-1] is ... else f"a list of {len(parts)} {parts[0].__name__}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a text"}
    return "a text" if kind is Literal else names.get(hint, "a table")
