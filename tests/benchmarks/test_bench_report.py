"""The report: resumable, provenance on every page, regressions against what is committed, README from files only."""

from __future__ import annotations

import copy
import datetime
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import typer
from rich.console import Console

from benchmarks import method, provenance, render, report, results
from benchmarks.attention import instructions, scaling
from benchmarks.attention.cases import Case
from benchmarks.attention.peers import own_peers, torch_peers
from benchmarks.compare import measure
from benchmarks.dumps import write_json
from benchmarks.model import models
from tivtok import TivTokConfig
from tivtok_kernels import SifLayout, measured, timing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured_run() -> results.Run:
    """A tiny run of every section that renders."""
    case = Case("tiny", SifLayout.uniform(1, 2, 2, 4), "clip", torch.float32, heads=2, head_dim=8, compiled=False)
    run = results.Run(provenance.provenance(CPU), "2030-01-02")
    run.sections["attention"][case.title] = measure(case, CPU, 0.0, own_peers() + torch_peers()).record
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)
    run.sections["model"]["tiny 16f"] = models.measure_model(models.ModelCase(config, 16, train=False), CPU, 0.0).record
    run.sections["scaling"]["encoder, frames"] = {
        "axis": "frame groups",
        "fixed": {"heads": 2},
        "series": {"tivtok sdpa": {"4": 1.0, "8": 2.0}},
        "exponents": {"tivtok sdpa": 1.0},
    }
    run.sections["host"]["instructions"] = {"instructions_per_call": 1000}
    return run


def test_provenance_names_what_a_result_depends_on() -> None:
    facts = provenance.provenance(CPU)
    assert set(facts) == {
        *("device", "kind", "driver", "cuda", "threads", "system", "python", "torch", "triton", "commit", "dirty")
    }
    assert facts["kind"] == "cpu" and facts["torch"] == torch.__version__ and facts["threads"] >= 1
    assert measured.slug("NVIDIA H200") == "nvidia-h200"
    assert measured.slug("Intel(R) Xeon(R) Processor, 2 cores") == "intel-xeon-processor-2-cores"


def test_run_survives_the_disk(measured_run: results.Run, tmp_path: Path) -> None:
    measured_run.save(tmp_path)
    assert results.Run.parse((tmp_path / f"{measured_run.stem}.json.gz").read_bytes()) == measured_run
    (tmp_path / "resources-of-kernels.json.gz").write_bytes(b"{}")
    assert results.newest_runs(tmp_path) == [measured_run]
    with pytest.raises(ValueError, match="format"):
        results.Run.parse(b"{}")


def test_work_resumes_where_it_stopped(tmp_path: Path) -> None:
    asked: list[str] = []

    def piece(title: str) -> report.Work:
        return report.Work("host", title, lambda: asked.append(title) or {"value": title})

    facts = {"device": "Some CPU", "commit": "a"}
    console = Console(quiet=True)
    run = results.Run(facts, "2030-01-02")
    assert report.carry_out([piece("first"), piece("second")], run, tmp_path, seconds=-1.0, console=console) == 2
    assert report.carry_out([piece("first")], run, tmp_path, seconds=60.0, console=console) == 0

    assert results.resume(facts, "2030-01-02", tmp_path).sections["host"] == {"first": {"value": "first"}}
    other = results.resume(facts | {"commit": "b"}, "2030-01-02", tmp_path)
    assert asked == ["first"] and not other.sections["host"]


def test_fresh_measures_the_sections_asked_for_and_keeps_the_others(
    measured_run: results.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "all_work", lambda device: [report.Work("host", "small call", lambda: {"host_s": 2.0})])
    run = copy.deepcopy(measured_run)
    run.date = datetime.date.today().isoformat()
    run.save(tmp_path)
    report.main(section=["host"], fresh=True, device="cpu", folder=tmp_path)
    kept = results.resume(run.provenance, run.date, tmp_path).sections
    assert kept == run.sections | {"host": {"small call": {"host_s": 2.0}}}


def test_page_shows_every_peer_and_why_others_are_missing(measured_run: results.Run, tmp_path: Path) -> None:
    render.write_page(measured_run, tmp_path, ["No committed run."])
    page = (tmp_path / f"{measured_run.stem}.md").read_text()
    (record,) = measured_run.sections["attention"].values()
    for name in (*record["peers"], *record["left_out"]):
        assert name in page
    for fact in ("torch", "Python", "commit", "threads"):
        assert fact in page.splitlines()[2]
    assert (tmp_path / f"{measured_run.stem}.png").read_bytes().startswith(b"\x89PNG")


def test_regressions_compare_with_the_ceiling_not_the_clock(measured_run: results.Run) -> None:
    slow_machine, slow_code = copy.deepcopy(measured_run), copy.deepcopy(measured_run)
    (record,) = slow_machine.sections["attention"].values()
    record["peers"]["tivtok sdpa"]["median_s"] *= 2  # and so did the ceiling: of_ceiling stays
    assert results.regressions(measured_run, slow_machine, percent=10) == []

    (record,) = slow_code.sections["attention"].values()
    record["peers"]["tivtok sdpa"]["of_ceiling"] /= 1.25
    slow_code.sections["model"]["tiny 16f"]["stages"]["encode"]["in_matmuls"] *= 1.5
    slow_code.sections["host"]["instructions"]["instructions_per_call"] += 50
    worse = results.regressions(measured_run, slow_code, percent=10)
    assert [line.split(":")[0] for line in worse] == ["tiny 16f", "tiny encoder forward"]
    assert "+50 %" in worse[0] and "+25 %" in worse[1]


def test_baseline_is_the_newest_committed_run(measured_run: results.Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "results"
    committed = copy.deepcopy(measured_run)
    for committed.date in ("2030-01-01", "2030-01-02"):
        committed.save(folder)
    assert results.baseline(measured_run, folder) is None
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "results")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    measured_run.save(folder)
    write_json(folder / f"{committed.stem}.json.gz", {"format": "overwritten since"})
    assert results.baseline(measured_run, folder) == committed


def test_readme_table_comes_from_files_alone(measured_run: results.Run, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n")
    folder = tmp_path / "docs" / "results"
    report.update_readme(readme, folder)
    assert "CPU: unmeasured." in readme.read_text() and "GPU: unmeasured." in readme.read_text()

    measured_run.save(folder)
    report.update_readme(readme, folder)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "tiny encoder forward" in text and f"docs/results/{measured_run.stem}.md" in text
    assert "GPU: unmeasured." in text and "CPU: unmeasured." not in text
    with pytest.raises(ValueError, match="performance:begin"):
        render.replace_table("no markers", "table")


def test_bad_options_are_named() -> None:
    with pytest.raises(typer.BadParameter, match="nonsense"):
        report.main(section=["nonsense"])
    with pytest.raises(typer.BadParameter, match="tpu"):
        report.main(device="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(typer.BadParameter, match="no GPU"):
        report.main(device="cuda")


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    samples = timing.interleave(calls, timing.Stopwatch(CPU), seconds=0.0)
    rounds = len(samples["a"])
    assert rounds == len(samples["b"]) >= timing.MIN_ROUNDS
    assert order == ["a", "b"] * (rounds + 1)  # one round warms up


def test_summary_is_median_and_deciles() -> None:
    assert method.summary([float(x) for x in range(11)]) == {"median_s": 5.0, "p10_s": 1.0, "p90_s": 9.0}


def test_peak_memory_of_a_call() -> None:
    size = 64 << 20
    peak = method.peak_bytes(lambda: torch.ones(size, dtype=torch.int8), CPU)
    if peak is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert 0.9 * size <= peak < 2 * size  # the kernel counts resident pages in batches


def test_exponents() -> None:
    values = (4, 8, 16, 32)
    assert scaling.exponent({str(v): 3.0 * v for v in values}) == pytest.approx(1)
    assert scaling.exponent({str(v): 3.0 * v * v for v in values}) == pytest.approx(2)
    assert scaling.exponent({"4": 1.0}) is None


def test_instructions_say_why_they_are_missing(monkeypatch) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    assert instructions.measure_instructions() == {"left_out": "valgrind is not installed"}


def test_the_share_of_attention_is_what_its_forward_takes(monkeypatch) -> None:
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(models, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    backend = ModuleType("backend")
    backend.forward = lambda call: spend(1.0)
    share = models._share_of_forward(backend, lambda: (backend.forward(None), spend(3.0)))
    assert share == 0.25 and backend.forward.__name__ == "<lambda>"
