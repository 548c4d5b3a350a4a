"""The sequence of a GPU machine, dry: with commands that pass, fail, hang and are missing in place of the real ones."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import Stage, report, run, stages
from benchmarks.provenance import ROOT


def stand_in(name: str, code: str, **options) -> Stage:
    return Stage(name, ("-c", code), options.pop("seconds", 120), **options)


def test_nothing_stops_the_rest(tmp_path: Path) -> None:
    todo = [
        stand_in("passes", "print('fine')"),
        stand_in("fails", "print('first'); raise SystemExit('what went wrong')"),
        stand_in("hangs", "import time; print('begun', flush=True); time.sleep(600)", seconds=10),
        stand_in("falls silent", "import time; print('begun', flush=True); time.sleep(600)", silence=10),
        Stage("is missing", (), 120, program="no-such-program"),
        stand_in("probe", "raise SystemExit(1)"),
        stand_in("is refused", "print('never')", probe="probe"),
        stand_in("sees its environment", "import os; assert os.environ['A'] == 'b'", environment=(("A", "b"),)),
    ]
    begun = time.monotonic()
    outcomes = run(todo, tmp_path, "commit")
    assert time.monotonic() - begun < 500
    assert {name: outcome.what for name, outcome in outcomes.items()} == {
        "passes": "passed",
        "fails": "failed",
        "hangs": "stopped",
        "falls silent": "stopped",
        "is missing": "failed",
        "probe": "failed",
        "is refused": "refused",
        "sees its environment": "passed",
    }
    page = report(outcomes, {"device": "a GPU", "driver": "1.2"})
    assert "# a GPU" in page and "- driver: 1.2" in page and "| hangs | stopped |" in page
    assert "    what went wrong" in page and "    begun" in page and "no-such-program" in page and "fine" not in page


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    count = f"open({str(mark)!r}, 'a').write('x')"
    todo = [stand_in("good", count), stand_in("bad", f"{count}; raise SystemExit(1)")]
    run(todo, tmp_path / "state", "one")
    run(todo, tmp_path / "state", "one")
    assert len(mark.read_text()) == 3  # the good one once, the bad one twice
    run(todo, tmp_path / "state", "two")
    assert len(mark.read_text()) == 5
    run(todo, tmp_path / "state", "two", only=["good"], again=True)
    assert len(mark.read_text()) == 6
    run(todo, tmp_path / "state", "three", deadline=time.monotonic() + 10)
    assert len(mark.read_text()) == 6
    with pytest.raises(ValueError, match="stages must be among good, bad, got nonsense"):
        run(todo, tmp_path / "state", "one", only=["nonsense"])


def test_the_real_stages_name_what_is_there() -> None:
    """Every file exists, every limit is below ten minutes, probes come before what they are for, sanitizers last."""
    seen: list[str] = []
    for stage in stages():
        assert stage.seconds < 600 and stage.name not in seen
        assert stage.probe is None or stage.probe in seen
        for argument in stage.arguments:
            if argument.startswith("tests") or argument.endswith(".py"):
                assert (ROOT / argument).exists(), argument
        seen.append(stage.name)
    assert [stage.program for stage in stages()] == sorted(
        (stage.program for stage in stages()), key=lambda program: program == "compute-sanitizer"
    )


def test_the_tests_of_the_stages_collect_here() -> None:
    """In one run, since most of its time is imports: stages differ only in their tests, and in words of their names."""
    todo = [s.arguments for s in stages() if s.program == sys.executable and "pytest" in s.arguments]
    tests = list(dict.fromkeys(arguments[-1] for arguments in todo))
    words = [arguments[-2] for arguments in todo if arguments[-3] == "-k"]
    options = todo[0][:-1]
    assert len(tests) == 4 and words == ["not hopper", "hopper"]
    assert all(arguments[: len(options)] == options for arguments in todo)
    collect = [sys.executable, *options, "-qq", "--collect-only", *tests]
    done = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert all(f"\n{name}" in "\n" + done.stdout for name in tests), done.stdout[-2000:]
    names = [line for line in done.stdout.splitlines() if line.startswith("tests/gpu/test_cuda_gpu.py")]
    assert {"hopper" in name for name in names} == {False, True}
