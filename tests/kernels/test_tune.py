"""The tuner with a clock that says what the test wants, on the CPU; the Triton kernels in their interpreter."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from typer.testing import CliRunner

from tivtok_kernels import available_backends, backends, flex, measured, sdpa, sif_attention, timing, tune
from tivtok_kernels.measured import Entry, Record
from tivtok_kernels.problem import Problem
from tivtok_kernels.triton import backend as triton_backend
from tivtok_kernels.triton import configs
from tivtok_kernels.tune import Shape, Task, Tuner

CPU = torch.device("cpu")
SHAPE = Shape.parse("2x3x2x17x2/1x16")
SMALL = Shape.parse("1x2x1x9x1x16")  # for the interpreter
FORWARD = Problem(CPU, torch.float32, 16)
BACKWARD = FORWARD._replace(direction="backward")
interpreted = pytest.mark.skipif(available_backends("cpu")["triton"] != "ok", reason="needs triton's interpreter")


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where the record of this device goes, in a folder of the test's own."""
    monkeypatch.setattr(measured, "folders", lambda: (tmp_path / "measured", tmp_path / "shipped"))
    monkeypatch.setattr(timing, "MIN_ROUNDS", 1)
    forget()
    yield tmp_path / "measured" / measured.file_name(CPU)
    monkeypatch.undo()
    forget()


def forget():
    measured.read.cache_clear()
    backends.choose.cache_clear()
    configs.select.cache_clear()


def tasks(*directions, scope="clip", shape=SHAPE):
    return [Task(shape, scope, torch.float32, direction) for direction in directions]


def taking(monkeypatch, seconds):
    """A watch that runs every call and says how long the backend takes in it."""
    ran = []
    for name in backends.NAMES["attention"]:
        for direction in ("forward", "backward"):
            module = backends.load(name)
            true = getattr(module, direction)
            monkeypatch.setattr(module, direction, lambda *args, name=name, true=true: ran.append(name) or true(*args))

    def watch(call):
        call()
        return seconds[ran[-1]]

    return watch


def quiet(line):
    pass


def test_auto_takes_what_is_fastest_in_each_direction(path, monkeypatch):
    before = backends.choose("attention", "auto", FORWARD)
    watch = taking(monkeypatch, {"cpu": 0.3, "sdpa": 0.2, "flex": 0.1})
    lines = []
    Tuner(CPU, path, watch, say=lines.append).run(tasks("forward"))
    assert backends.choose("attention", "auto", FORWARD) == "flex"
    assert backends.choose("attention", "auto", BACKWARD) == before
    assert any("flex 100 ms, sdpa 200 ms" in line for line in lines)
    Tuner(CPU, path, watch, say=quiet).run(tasks("backward"))
    assert backends.choose("attention", "auto", BACKWARD) == "sdpa"  # flex has no backward here
    assert backends.choose("attention", "auto", FORWARD._replace(head_dim=32)) == before
    x = torch.randn(SHAPE.layout.total_tokens, 2, 16, requires_grad=True)
    sif_attention(x, x, x, SHAPE.layout).sum().backward()
    assert x.grad is not None


def test_a_named_backend_runs_whatever_is_faster(path, monkeypatch):
    Tuner(CPU, path, taking(monkeypatch, {"cpu": 0.3, "sdpa": 0.2, "flex": 0.1}), say=quiet).run(tasks("forward"))
    assert backends.choose("attention", "sdpa", FORWARD) == "sdpa"


def test_several_calls_are_weighed_by_ratios():
    question = measured.backend_question(FORWARD)
    record = Record(
        {},
        [
            Entry(question, "one", {"a": 1.0, "b": 3.0, "c": 0.1}, {}),
            Entry(question, "another", {"a": 0.002, "b": 0.001}, {"c": "fails"}),
            Entry(("tile",), "third", {"b": 1e-9}, {}),
        ],
    )
    assert record.fastest(question) == ("a", "b")  # a: 1 * 0.002, b: 3 * 0.001; c did not run in both
    assert record.fastest(("other",)) == ()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_wrong_results_are_left_out(path, monkeypatch, direction):
    true = getattr(sdpa, direction)

    def wrong(*args):
        results = true(*args)
        results[-1].view(-1)[7] += 0.01  # of the LSE, or of dv
        return results

    monkeypatch.setattr(sdpa, direction, wrong)
    watch = taking(monkeypatch, {"cpu": 0.3, "sdpa": 0.2, "flex": 0.4})
    record = Tuner(CPU, path, watch, say=quiet).run(tasks(direction, scope="broadcast"))
    (entry,) = record.entries
    wrong_one = "lse" if direction == "forward" else "dv_tiv"
    assert entry.left_out["sdpa"].startswith(f"WrongResult: {wrong_one}: 1 of") and "sdpa" not in entry.seconds
    assert backends.choose("attention", "auto", FORWARD._replace(direction=direction)) != "sdpa"


def test_nan_is_wrong(path, monkeypatch):
    monkeypatch.setattr(sdpa, "forward", lambda call: (call.q * float("nan"), call.q[..., 0]))
    record = Tuner(CPU, path, lambda call: 1.0, names=["sdpa"], say=quiet).run(tasks("forward"))
    assert "out: 2368 of 2368 elements" in record.entries[0].left_out["sdpa"]


def test_what_raises_is_left_out_and_the_others_go_on(path, monkeypatch):
    def broken(call):
        raise RuntimeError("out of registers\nand more")

    monkeypatch.setattr(flex, "forward", broken)
    record = Tuner(CPU, path, lambda call: 1.0, names=["flex", "sdpa"], say=quiet).run(tasks("forward"))
    assert record.entries[0].left_out == {"flex": "RuntimeError: out of registers"}
    assert list(record.entries[0].seconds) == ["sdpa"]


def test_a_stopped_run_goes_on(path, monkeypatch):
    clock = itertools.count()

    def watch(call):
        call()
        if next(clock) == 6:
            raise KeyboardInterrupt
        return 1.0

    todo = tasks("forward", "backward")
    with pytest.raises(KeyboardInterrupt):
        Tuner(CPU, path, watch, names=["sdpa", "cpu"], say=quiet).run(todo)
    assert len([entry for entry in measured.load(path).entries if entry.seconds]) == 1
    lines = []
    record = Tuner(CPU, path, watch, names=["sdpa", "cpu"], say=lines.append).run(todo)
    assert len(lines) == 1 and "backward" in lines[0]
    assert len(record.entries) == 2 and all(entry.seconds for entry in record.entries)
    Tuner(CPU, path, watch, names=["sdpa", "cpu"], say=lines.append).run(todo)
    assert len(lines) == 1
    Tuner(CPU, path, watch, names=["sdpa", "cpu"], say=lines.append).run(todo, again=True)
    assert len(lines) == 3 and len(measured.load(path).entries) == 2


def test_one_that_ends_the_process_is_not_tried_again(path, monkeypatch):
    def ends(call):
        raise SystemExit("killed")

    monkeypatch.setattr(flex, "forward", ends)
    with pytest.raises(SystemExit):
        Tuner(CPU, path, lambda call: 1.0, names=["flex", "sdpa"], say=quiet).run(tasks("forward"))
    record = Tuner(CPU, path, lambda call: 1.0, names=["flex", "sdpa"], say=quiet).run(tasks("forward"))
    assert record.entries[0].left_out == {"flex": "it ended the process that tried it"}
    assert list(record.entries[0].seconds) == ["sdpa"]


def test_interrupting_blames_nobody(path, monkeypatch):
    def stopped(call):
        raise KeyboardInterrupt

    monkeypatch.setattr(flex, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        Tuner(CPU, path, lambda call: 1.0, names=["flex", "sdpa"], say=quiet).run(tasks("forward"))
    assert measured.load(path).entries[0].left_out == {}


def test_other_versions_are_measured_anew(path):
    Tuner(CPU, path, lambda call: 1.0, names=["sdpa"], say=quiet).run(tasks("forward"))
    data = json.loads(path.read_text())
    data["conditions"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(data))
    lines = []
    Tuner(CPU, path, lambda call: 1.0, names=["sdpa"], say=lines.append).run(tasks("forward"))
    assert lines[0] == f"measured anew: torch was 1.0, is {measured.version('torch')}" and len(lines) == 2


def test_shipped_records_stand_behind_the_users(path):
    question = measured.backend_question(FORWARD)
    conditions = {"date": "today", **measured.conditions(CPU)}
    measured.save(
        Record(conditions, [Entry(question, "", {"reference": 1.0}, {})]), path.parents[1] / "shipped" / path.name
    )
    forget()
    assert backends.choose("attention", "auto", FORWARD) == "reference"
    measured.save(Record(conditions, [Entry(question, "", {"sdpa": 1.0}, {})]), path)
    forget()
    assert backends.choose("attention", "auto", FORWARD) == "sdpa"


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"format": 2}', '{"format": 1, "conditions": {"versions": {}}, "entries": [{"question": []}]}'],
)
def test_a_file_that_is_no_record_is_said_once_and_decides_nothing(path, content):
    before = backends.choose("attention", "auto", FORWARD)
    path.parent.mkdir()
    path.write_text(content)
    forget()
    with pytest.warns(UserWarning, match="must hold a record of format 1") as warned:
        assert backends.choose("attention", "auto", FORWARD) == before
        assert backends.choose("attention", "auto", BACKWARD) == before
    assert len(warned) == 1


@interpreted
def test_tiles_are_timed_and_the_fastest_is_used(path, monkeypatch):
    key = configs.key_of("forward", CPU, 16, "ieee")
    wanted = configs.row(key)._replace(block_k=32)
    ran = []
    true = triton_backend.forward
    monkeypatch.setattr(triton_backend, "forward", lambda call: ran.append(configs._tried.get(key)) or true(call))

    def watch(call):
        call()
        return 0.1 if ran[-1] == wanted else 0.2

    record = Tuner(CPU, path, watch, names=["triton"], say=quiet).run(tasks("forward", shape=SMALL))
    tiles, order = record.entries
    assert tiles.question == ("tile", "forward", 0, 64, "ieee") and len(tiles.seconds) > 5
    assert next(iter(tiles.seconds)) == configs.name_of(wanted)
    assert configs.select("forward", CPU, 16, "ieee") == wanted
    assert configs.select("dq", CPU, 16, "ieee") == configs.row(key)
    assert list(order.seconds) == ["triton"]
    monkeypatch.setattr(measured, "version", lambda package: "another")
    configs.select.cache_clear()
    assert configs.select("forward", CPU, 16, "ieee") == configs.row(key)  # tiles are for one version of triton


@interpreted
def test_tiles_of_the_backward(path, monkeypatch):
    true = configs.neighbours
    monkeypatch.setattr(configs, "neighbours", lambda kernel, config: true(kernel, config)[:2])
    record = Tuner(CPU, path, lambda call: call() and 1.0, names=["triton"], say=quiet).run(
        tasks("backward", shape=SMALL)
    )
    assert [entry.question[1] for entry in record.entries] == ["dq", "dkdv", "float32"]
    assert all(entry.seconds and not entry.left_out for entry in record.entries)


@interpreted
def test_a_tile_with_wrong_results_is_left_out(path, monkeypatch):
    true, key = triton_backend.forward, configs.key_of("forward", CPU, 16, "ieee")

    def wrong(call):
        out, lse = true(call)
        tile = configs._tried.get(key)
        return (out * 1.001, lse) if tile and tile.block_q == 32 else (out, lse)

    monkeypatch.setattr(triton_backend, "forward", wrong)
    record = Tuner(CPU, path, lambda call: call() and 1.0, names=["triton"], say=quiet).run(
        tasks("forward", shape=SMALL)
    )
    (left_out,) = record.entries[0].left_out.items()
    assert left_out[0].startswith("32x64") and left_out[1].startswith("WrongResult: out:")


def test_neighbours_differ_in_one_respect():
    for key, config in configs.TABLE.items():
        near = configs.neighbours(key.kernel, config)
        assert len(near) >= 4 and len(set(near)) == len(near) and config not in near
        for other in near:
            changed = [a for a, b in zip(config[:5], other[:5], strict=True) if a != b]
            assert len(changed) <= 1 and (changed or other.short_q != config.short_q)
            assert other.short_q == 0 or (key.kernel == "forward" and other.short_q < other.block_q)
            assert configs.named(configs.name_of(other)) == other
    with pytest.raises(ValueError, match='must be named like "128x64 warps 4'):
        configs.named("128x64")


def test_of_the_command_line(path):
    arguments = ["--device", "cpu", "--shape", "1x2x2x8x2x16", "--scope", "tiv", "--seconds", "0"]
    app = tune.typer.Typer()
    app.command()(tune.main)
    done = CliRunner().invoke(app, [*arguments, "--backend", "cpu", "--backend", "sdpa"])
    assert done.exit_code == 0, done.output
    assert f"wrote {path}" in done.output and done.output.count(" ms") == 4
    assert [entry.question for entry in measured.load(path).entries] == [
        ("backend", "float32", 16, "forward"),
        ("backend", "float32", 16, "backward"),
    ]
    for wrong, message in (
        (["--shape", "1x2"], "must be like"),
        (["--shape", "1x2x2x8x3/2x16"], "heads a multiple"),
        (["--scope", "frame"], "must be among clip, tiv, broadcast, got frame"),
        (["--backend", "triton"], "must be among"),
        (["--dtype", "float64"], "must be among"),
    ):
        failed = CliRunner().invoke(app, ["--device", "cpu", *wrong])
        assert failed.exit_code == 2 and message in " ".join(failed.output.replace("│", " ").split())
