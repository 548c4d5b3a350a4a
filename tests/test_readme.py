"""README and CITATION.cff say what is so: the code runs, the commands and the files that are named exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tivtok.cli import COMMANDS
from tivtok_kernels import __version__

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["attention", "tokenizer"])
def test_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_commands_exist() -> None:
    named = set(re.findall(r"^ *tivtok ([a-z][a-z-]*)", README, flags=re.MULTILINE))
    assert len(named) > 8 and named <= set(COMMANDS)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_linked_files_exist(page: str) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_files_that_the_design_names_exist() -> None:
    pages = (ROOT / page for page in ("docs/design.md", "CONTRIBUTING.md"))
    named = {name for page in pages for name in re.findall(r"`([\w./-]+(?:/|\.py))`", page.read_text(encoding="utf-8"))}
    folders = (ROOT, ROOT / "tivtok", ROOT / "tivtok_kernels")
    assert len(named) > 30
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


def test_version_to_cite() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
