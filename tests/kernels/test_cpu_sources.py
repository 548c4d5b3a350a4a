"""A library of the CPU engine that was built from other sources than those at hand is not used, and said to be so."""

import shutil

import numpy.linalg._umath_linalg
import pytest
import torch

from tivtok.cli.doctor import doctor
from tivtok_kernels import BackendUnavailable, SifLayout, backends, sif_attention
from tivtok_kernels.cpu import backend, sources
from tivtok_kernels.problem import Problem

PROBLEM = Problem(torch.device("cpu"), torch.float32, 64)
if backend.why_not(PROBLEM) == backend.NOT_BUILT:
    pytest.skip(backend.NOT_BUILT, allow_module_level=True)


@pytest.fixture(autouse=True)
def loaded_anew():
    def forget():
        for cached in (backend._load_error, backend._library, backends.choose):
            cached.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """The sources as a checkout that has moved on has them: one character of one header is another."""
    folder = shutil.copytree(backend.SOURCES, tmp_path / "cpu")
    header = folder / "forward.h"
    header.write_text(header.read_text().replace("BLOCK_KEYS = 128", "BLOCK_KEYS = 129"))
    monkeypatch.setattr(backend, "SOURCES", folder)


def test_the_library_at_hand_is_of_the_sources_at_hand():
    assert backend.SOURCES.is_dir() and backend.why_not(PROBLEM) is None


def test_other_sources_are_refused_and_auto_goes_on(edited):
    assert backend.why_not(PROBLEM) == backend.OTHER_SOURCES
    assert backends.choose("attention", "auto", PROBLEM) == "sdpa"
    x = torch.zeros(5, 1, 8)
    with pytest.raises(BackendUnavailable, match=r"built from other sources than these, run pip install -e \. again"):
        sif_attention(x, x, x, SifLayout.uniform(1, 1, 2, 2), backend="cpu")


def test_doctor_says_so(edited, capsys):
    doctor()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(("CPU engine", "cpu"))]
    assert len(lines) == 2 and all(backend.OTHER_SOURCES[:40] in line for line in lines)  # the table may cut it


def test_where_it_is_installed_the_structures_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "SOURCES", tmp_path / "none")
    assert backend.why_not(PROBLEM) is None
    monkeypatch.setattr(backend, "STRUCTURES", "another")
    backend._load_error.cache_clear()
    backend._library.cache_clear()
    assert backend.why_not(PROBLEM) == backend.OTHER_SOURCES


def test_structures_are_those_of_the_header():
    assert sources.digest(backend.SOURCES / "params.h") == sources.STRUCTURES, "set STRUCTURES to this"


def test_a_library_without_a_stamp_is_refused(monkeypatch):
    monkeypatch.setattr(backend, "LIBRARY", type(backend.LIBRARY)(numpy.linalg._umath_linalg.__file__))
    assert backend.why_not(PROBLEM) == backend.OTHER_SOURCES


def test_a_digest_changes_with_names_and_contents(tmp_path):
    files = [tmp_path / name for name in ("a.h", "b.h", "c.h")]
    seen = set()
    for contents in (("x", "y"), ("y", "x"), ("xy", ""), ("x", "y", "")):
        for file, text in zip(files, contents, strict=False):
            file.write_text(text)
        seen.add(sources.digest(*files[: len(contents)]))
    assert len(seen) == 4
    assert sources.digest(files[1], files[0]) == sources.digest(*files[:2])
