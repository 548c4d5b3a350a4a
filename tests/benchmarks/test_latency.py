"""The latency model: programs whose clocks anyone can count, and the kernels that it is there for."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from benchmarks.dumps import read_json
from benchmarks.machine_code.latency import backward, calls, measure
from benchmarks.machine_code.latency.__main__ import PAGE, PREDICTIONS, to_markdown
from benchmarks.machine_code.latency.code import Control, Timed, consumer_step, control, copier_step, parse
from benchmarks.machine_code.latency.figures import FIGURES, machine
from benchmarks.machine_code.latency.kernels import VARIANTS, build, simulate
from benchmarks.machine_code.latency.simulate import Load, Result, Role, Sm, Warp, op
from benchmarks.machine_code.sass import Instruction
from tivtok_kernels import SifLayout

PRODUCT = "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24"  # 64 clocks of the tensor core
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
FIGURES_HERE = machine(queue=16, drain=30)


def timed(line: str, at: int = 0, **schedule) -> Timed:
    predicate, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
    opcode, _, operands = rest.partition(" ")
    return Timed(Instruction(16 * at, opcode, operands, predicate[1:]), Control(**schedule))


def program(*lines: str | Timed) -> list[Timed]:
    return [line if isinstance(line, Timed) else timed(line, at) for at, line in enumerate(lines)]


def run(*programs: list[Timed], roles=(), signers=None, loads=(), turn="", **changes) -> Result:
    roles = roles or [Role()] * len(programs)
    warps = [Warp(f"warp {i}", [op(t) for t in p], r) for i, (p, r) in enumerate(zip(programs, roles, strict=True))]
    sm = Sm(FIGURES_HERE | changes, warps, signers or {}, loads)
    sm.start(turn)
    return sm.run(40)


def listing(*lines: tuple[str, int]) -> str:
    """As cuobjdump prints it: every instruction with the two halves of its encoding."""
    return "\n".join(
        f"/*{16 * i:04x}*/ {line} ; /* 0x{0:016x} */\n /* 0x{word:016x} */" for i, (line, word) in enumerate(lines)
    )


def test_schedule_is_read_from_the_encoding():
    """Words that ptxas made: the start of a kernel, whose third instruction waits for what the second one reads."""
    assert control(0x000FE20000000800) == Control(1)
    assert control(0x000E620000002100) == Control(1, write=1)
    assert control(0x002FDA0003F05270) == Control(13, waits=(1,))
    assert control(0x000FE20003800000 & ~(7 << 49) | 2 << 49).read == 2
    code = parse(listing(("S2R R0, SR_TID.X", 0x000E620000002100), ("EXIT", 0x002FDA0003F05270)))
    assert [t.control.write for t in code] == [1, None] and code[1].control.waits == (1,)
    with pytest.raises(ValueError, match="found none of 0x0000"):
        parse("/*0000*/ EXIT ; /* 0x0 */")


def test_products_that_are_waited_for():
    """Four of 64 clocks and what it takes to drain; the wait itself is a clock, and the next product comes after it."""
    chain = program(PRODUCT, PRODUCT, PRODUCT, PRODUCT + ", gsb0", WAIT)
    alone = run(chain)
    assert alone.clocks == 4 * 64 + 30 + 1 and alone.tensor == 4 * 64
    assert alone.lost["warp 0"]["products"] == 4 * 64 + 30 - 4
    two = run(chain, chain)
    assert two.clocks == two.tensor == 2 * 4 * 64 and two.share == 1


def test_products_that_are_not_waited_for():
    chain = program(PRODUCT, PRODUCT + ", gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x1")
    assert run(chain).share == 1
    assert run(program(PRODUCT, PRODUCT + ", gsb0"), queue=1).lost["warp 0"]["queue"] > 0


def test_operands_in_shared_memory_are_its_limit():
    """64 x 64 x 16 reads 4 KiB in the 32 clocks that it takes: whatever else is read comes on top."""
    product = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
    assert run(program(product)).clocks == 32
    assert run(program(product), shared=64).clocks == 64
    assert run(program(product, "LDS.128 R4, [R2]")).clocks == 32 + 16 * 32 * 4 / 128


def test_pipes_and_issue():
    assert run(program(*["MUFU.EX2 R1, R1"] * 8)).clocks == 8 * 8
    both = run(program(*["MUFU.EX2 R1, R1"] * 8), program(*["FFMA R1, R2, R3, R4"] * 64))
    assert both.clocks <= 8 * 8 + 8  # beside one another
    assert run(program(*["FMNMX R1, R2, R3, !PT"] * 8)).clocks == 16
    many = [program(*["FFMA R1, R2, R3, R4"] * 8, "FMNMX R1, R2, R3, !PT")] * 3
    assert run(*many).clocks == pytest.approx(27, abs=1)  # an instruction per clock, of whomever


def test_stalls_and_scoreboards():
    held = timed("MUFU.EX2 R1, R1", write=0)
    assert run(program(held, timed("FADD R1, R1, R2", waits=(0,))), mufu_latency=40).clocks == 40 + 1
    assert run(program(timed("FADD R1, R1, R2", stall=5))).clocks == 5


def test_turns():
    """One holds the turn for 20 clocks, then works for 50: two of them alternate without waiting."""
    body = program("BAR.SYNC R5, 0x100", timed("FADD R1, R1, R2", stall=20), "BAR.ARV R6, 0x100")
    body += [timed("FADD R1, R1, R2", stall=50)]
    roles = [Role(turn="a", passes="b"), Role(turn="b", passes="a")]
    assert run(body, body, roles=roles, turn="a", barrier=0).clocks == pytest.approx(1 + 20 + 1 + 50, abs=1)
    short = body[:3]
    assert run(short, short, roles=roles, turn="a", barrier=10).clocks == 2 * (1 + 20 + 10)
    with pytest.raises(RuntimeError, match="nobody can go on: warp 0: turn, warp 1: turn"):
        run(body, body, roles=roles, turn="c")


def test_tiles_by_tma():
    """With one place for them every step waits for a whole load; with several L2 sets the pace."""
    body = program("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2", "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R3+URZ], RZ")
    role = Role((("keys", 0),), (("free", 0),))
    for places, clocks in (
        (1, 1024 / 16 + 300 - 30 + 20 + 1),
        (2, (1024 / 16 + 300 - 30 + 20 + 1) / 2),
        (8, 1024 / 16),
    ):
        loads = (Load("keys", 1024, ("free", -places)),)
        found = run(body, roles=[role], loads=loads, l2=16, tma_latency=300, shared_latency=30, barrier=20)
        assert found.clocks == pytest.approx(clocks, abs=1), places
    with pytest.raises(RuntimeError, match="keys"):
        run(body, roles=[role], signers={"keys": 2}, loads=loads)


def test_copies_are_published_when_they_have_landed():
    body = program("LDGSTS.E.BYPASS.128 [R1], [R2]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x0")
    assert run(body, l2_latency=200, l2=64).clocks == 16 * 32 * 4 / 64 + 200 + 1
    ahead = program("LDGSTS.E.BYPASS.128 [R1], [R2]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x1")
    assert run(ahead, l2_latency=200, l2=64).clocks == pytest.approx((16 * 32 * 4 / 64 + 200) / 2, abs=16 * 32 * 4 / 64)


LOOP = [
    "MOV R1, R2",  # 0x00
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2",  # 0x10
    "@!P0 BRA 0x0",  # 0x20: a wait that retries
    "@P1 BRA 0x60",  # 0x30: to the full step
    "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R3], RZ",  # 0x40
    "BRA 0xa0",  # 0x50: without rows
    PRODUCT,  # 0x60
    "MUFU.EX2 R1, R1",  # 0x70
    "@P2 BRA 0xa0",  # 0x80: past the mask
    "FSEL R1, R1, RZ, P3",  # 0x90
    "FADD R1, R1, R2",  # 0xa0
    "@P4 BRA 0x0",  # 0xb0
]


def test_the_way_of_a_full_step():
    flops = 2 * 64 * 128 * 16 / 4
    taken = [t.instruction.address for t in consumer_step(program(*LOOP), flops)]
    assert taken == [0x00, 0x10, 0x20, 0x30, 0x60, 0x70, 0x80, 0xA0, 0xB0]
    for wrong in (program("EXIT"), flops), (program(*LOOP), 2 * flops):
        with pytest.raises(ValueError, match="loop with exponentials"):
            consumer_step(*wrong)


def test_the_way_of_copies():
    """A loop within the loop goes round as often as the copies need, and everybody signs."""
    code = program("NOP", "LDGSTS.E.BYPASS.128 [R1], [R2]", "@P0 BRA 0x10", "@P1 BRA 0x50")
    code += [timed(line, at) for at, line in enumerate(("SYNCS.ARRIVE R1", "LDGDEPBAR", "@P2 BRA 0x0"), start=4)]
    taken = [t.instruction.name for t in copier_step(code, 3)]
    assert taken.count("LDGSTS") == 3 and taken.count("SYNCS") == 1
    for wrong in (9, 0), (3, 1):
        with pytest.raises(ValueError, match="with {} copies and {} smaller".format(*wrong)):
            copier_step(code, *wrong)


def test_figures_say_where_they_come_from_or_between_what_they_lie():
    for name, figure in FIGURES.items():
        assert figure.source or (figure.low is not None and figure.high is not None), name
        assert figure.low is None or figure.low <= figure.value <= figure.high, name
    with pytest.raises(ValueError, match="got speed"):
        machine(speed=1)


L2 = {"l2": machine()["l2"], "latency": machine()["l2_latency"]}


def item_alone(steps: int, of: backward.Pass) -> float:
    """An item whose steps take longer than their loads: both matrices owned and a step first."""
    return (2 * of.owned_bytes + of.bytes) / L2["l2"] + L2["latency"] + steps * of.clocks


@pytest.mark.parametrize("in_registers", [False, True])
def test_a_block_of_the_backward_loads_ahead(in_registers):
    slow = backward.Pass(2000.0, 16384, 16384, in_registers)
    assert backward.block_clocks(((9, slow),), 4) == pytest.approx(item_alone(9, slow))
    assert backward.block_clocks(((9, slow), (0, slow), (7, slow)), 4) == pytest.approx(item_alone(16, slow))
    exposed = backward.block_clocks(((9, slow), (7, slow)), 2) - item_alone(16, slow)
    assert (exposed > 1) != in_registers  # with two places the next matrices wait for the last step
    fast = backward.Pass(1.0, 16384, 16384, in_registers)
    loads = (2 + 2 + 9 + 7) * 16384
    assert backward.block_clocks(((9, fast), (7, fast)), 4) == pytest.approx(loads / L2["l2"], rel=0.1)


def test_one_launch_of_both_passes_is_no_slower():
    """All heads of a frame fill the SMs evenly in neither pass alone."""
    times = backward.backward(SifLayout.uniform(1, 96, 4, 1032), "clip", 12, 64, (2000.0, 1300.0))
    assert times.persistent < times.grid < times.launches


def test_the_page_shows_the_predictions():
    made, page = read_json(PREDICTIONS), PAGE.read_text(encoding="utf-8")
    assert to_markdown(made) in page and calls.table(made) in page


def test_time_of_a_whole_call():
    """132 frames of 192 rows: forward a tile for each SM, backward two of each kind."""
    assert calls.makespan(np.array([1.0] * 131 + [2.0] * 2)) == 2 and calls.makespan(np.ones(133)) == 2
    made = {
        "kernels": [
            {"work": work, "head_dim": 64, "keys": keys, "clocks": clocks, "shipped": True, "consumers": consumers}
            for work, keys, clocks, consumers in (
                ("forward", 128, 1000, 3),
                ("dq", 128, 2000, 2),
                ("dkdv", 64, 3000, 2),
            )
        ]
    }
    layout = SifLayout.uniform(132, 0, 1, 192)
    steps = (2 + calls.OUTSIDE) * 1000 / calls.CLOCKS
    assert calls.seconds(made, "forward", layout, 1, 64) == pytest.approx(steps + calls.LAUNCH)
    # Two steps of 128 keys and three of 64 queries; the statistics read out and dout.
    steps = 2 * ((2 + calls.OUTSIDE) * 2000 + (3 + calls.OUTSIDE) * 3000) / calls.CLOCKS
    memory = 132 * 192 * 64 * 2 * 2 / calls.BYTES
    assert calls.seconds(made, "backward", layout, 1, 64) == pytest.approx(steps + memory + 2 * calls.LAUNCH)


def test_comparison_with_a_measurement():
    """On 132 SMs 33 heads make 30 tiles of 128 rows for each, or 20 of 192."""
    assert measure.heads_for(132) == 33 and [tiles * 33 / 132 for tiles in measure.TILES] == [30, 20]
    assert measure.steps(128, 192, 132) == 30 * 80
    rows = [
        {"work": work, "head_dim": 64, "keys": 64, "clocks": clocks, "shipped": shipped, "consumers": consumers}
        for work, clocks, shipped, consumers in (
            ("forward", 5, True, 3),
            ("dq", 3, True, 2),
            ("dkdv", 4, True, 2),
            ("dq", 1, False, 2),
        )
    ]
    assert measure.predicted({"kernels": rows}, 132) == {"forward d64": 4800 * 5, "backward d64": 7200 * 7}
    page = measure.table({"forward d64": 48000.0, "backward d64": 25200.0}, {"kernels": rows}, 132)
    assert "| forward d64 | 48000 | 24000 | 2.00 |" in page and "| backward d64 | 25200 | 50400 | 0.50 |" in page


@pytest.mark.emulator
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, for the machine code of the kernels")
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.shipped], ids=lambda v: f"{v.work} {v.head_dim}")
def test_kernels_as_they_ship(variant):
    """The tensor clocks are those of the products; no kernel is faster, and the loop is found on every way."""
    compiled = build(variant, "nvcc")
    products = {"forward": 2, "dq": 3, "dkdv": 4}[variant.work]
    result = simulate(variant, compiled.code, machine())
    assert compiled.said == ""
    flops = products * 2 * variant.rows * variant.keys * variant.head_dim
    assert result.tensor == pytest.approx(flops / 4096, rel=0.01)
    assert result.tensor <= result.clocks < 4 * result.tensor
