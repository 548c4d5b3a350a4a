"""The rules of CONTRIBUTING.md that can be counted: imports point one way, files and functions stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tivtok_kernels", "tivtok", "benchmarks")  # each may import those before it, and itself
SHIPPED = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 80


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    forbidden = PACKAGES[PACKAGES.index(package) + 1 :]
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{name(path)}: {module}" for module in modules if module.split(".")[0] in forbidden]
    assert not wrong


def test_files_are_read_in_a_sitting() -> None:
    sources = [*SHIPPED, *(path for kind in ("*.h", "*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(kind))]
    assert len(sources) > 100
    lines = {name(path): len(path.read_text().splitlines()) for path in sources}
    assert not {path: count for path, count in lines.items() if count > MAX_FILE_LINES}


def test_functions_fit_a_screen() -> None:
    long: dict[str, int] = {}
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                count = (node.end_lineno or 0) - node.body[0].lineno + 1  # kernels list their arguments line by line
                if count > MAX_FUNCTION_LINES:
                    long[f"{name(path)}: {node.name}"] = count
    assert not long
