"""Registers of wgmma in flight: code that is right, and every fault that can be planted in it."""

from __future__ import annotations

import pytest

from benchmarks.machine_code import sass
from benchmarks.machine_code.hazards import hazards, hgmma, registers, targets

# Scores of two steps and an output, as in the Hopper forward: products overlap with exponentials of the step before.
RIGHT = [
    "MOV R100, RZ",  # 0x00
    "WARPGROUP.ARRIVE",  # 0x10
    "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT",  # 0x20
    "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR12], R24, gsb0",  # 0x30
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",  # 0x40
    "MUFU.EX2 R40, R24",  # 0x50
    "F2FP.BF16.F32.PACK_AB R60, R41, R40",  # 0x60
    "WARPGROUP.ARRIVE",  # 0x70
    "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0",  # 0x80
    "HGMMA.64x16x16.F32.BF16 R80, R60, gdesc[UR16].tnspB, R80, gsb0",  # 0x90
    "MUFU.EX2 R44, R45",  # 0xa0
    "WARPGROUP.DEPBAR.LE gsb0, 0x1",  # 0xb0
    "FMNMX R46, R24, R25, !PT",  # 0xc0
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",  # 0xd0
    "FMUL R80, R80, R46",  # 0xe0
    "@P0 BRA 0x70",  # 0xf0
    "STG.E.64 desc[UR4][R2.64], R80",  # 0x100
    "EXIT",  # 0x110
]


def code(lines: list[str]) -> list[sass.Instruction]:
    return sass.parse("\n".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)))


def changed(at: int, line: str) -> list[str]:
    return [*RIGHT[: at // 16], line, *RIGHT[at // 16 + 1 :]]


def test_right_code_has_none():
    assert hazards(code(RIGHT)) == []
    assert hazards(code(["MOV R1, R2", "EXIT"])) == []


@pytest.mark.parametrize(
    ("at", "line", "found"),
    [
        (0x10, "NOP", "no ARRIVE before it"),
        (0x70, "NOP", "no ARRIVE before it"),
        (0x40, "NOP", "0x0050 MUFU.EX2: touches R24 in flight"),
        (0x40, "WARPGROUP.DEPBAR.LE gsb0, 0x1", "0x0050 MUFU.EX2: touches R24 in flight"),
        (0xB0, "NOP", "0x00c0 FMNMX: touches R24, R25 in flight"),
        (0xB0, "WARPGROUP.DEPBAR.LE gsb0, 0x2", "0x00c0 FMNMX: touches R24, R25 in flight"),
        (0xD0, "NOP", "0x00e0 FMUL: touches R80 in flight"),
        (0xD0, "WARPGROUP.DEPBAR.LE gsb0, 0x1", "0x00e0 FMUL: touches R80 in flight"),
        (0xA0, "MUFU.EX2 R61, R45", "touches R61 in flight"),  # the left operand
        (0xA0, "MUFU.EX2 R45, R87", "touches R87 in flight"),  # the last accumulator
        (0xA0, "LDS.128 R20, [R2]", None),
        (0xA0, "LDS.128 R21, [R2]", "touches R24 in flight"),  # its fourth register
        (0xA0, "LDSM.16.M88.4 R57, [R2]", "touches R60 in flight"),
        (0xA0, "STS.64 [R2], R79", "touches R80 in flight"),
        (0xA0, "STG.E.128 desc[UR4][R2.64], R28", "touches R28, R29, R30, R31 in flight"),
        (0xA0, "IMAD.WIDE R62, R4, 0x2, R6", "touches R62, R63 in flight"),
        (0xA0, "LDG.E R4, desc[UR4][R22.64]", None),
        (0xA0, "LDG.E R4, desc[UR4][R23.64]", "touches R24 in flight"),
        (0xA0, "@!P3 MOV R60, RZ", "touches R60 in flight"),
        (0xA0, "HGMMA.64x16x16.F32.BF16 R60, gdesc[UR8], RZ, !UPT, gsb0", "of another product in flight"),
        (0xA0, "HGMMA.64x16x16.F32.BF16 R104, R24, gdesc[UR8], RZ, !UPT, gsb0", "of another product in flight"),
    ],
)
def test_planted_faults(at, line, found):
    lines = hazards(code(changed(at, line)))
    assert lines == [] if found is None else any(found in each for each in lines), lines


def test_a_source_written_after_the_fence():
    late = [*RIGHT[:6], RIGHT[7], RIGHT[6], *RIGHT[8:]]  # the weights are packed behind ARRIVE
    assert any("R60 written after ARRIVE" in line for line in hazards(code(late)))


def test_on_the_way_round_a_loop():
    """Straight on all is well; what the branch leads back to touches what is in flight."""
    again = changed(0xD0, "NOP")
    again[0xE0 // 16] = "NOP"
    again[0x100 // 16] = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    again[0xF0 // 16] = "@P0 BRA 0x60"
    assert any("0x0060" in line and "touches R60 in flight" in line for line in hazards(code(again)))
    without_branch = [*again[: 0xF0 // 16], "NOP", *again[0x100 // 16 :]]
    assert hazards(code(without_branch)) == []


def test_a_jump_that_cannot_be_followed():
    for line in ("BRX R2 -0x10", "BRA 0x5000"):
        with pytest.raises(ValueError, match=r"0x0000"):
            hazards(code(changed(0, line)))


def test_operands():
    wide, plain, pair = code(["LDS.128 R4, [R8]", "FFMA R1, R2, R3, UR4", "LDG.E.64 R4, desc[UR4][R2.64+0x10]"])
    assert registers(wide) == {4, 5, 6, 7, 8} and targets(wide) == {4, 5, 6, 7}
    assert registers(plain) == {1, 2, 3} and registers(pair) == {2, 3, 4, 5}
    (one,) = code(["HGMMA.64x128x16.F32 R24, R4, gdesc[UR8].tnspB, R24, gsb0"])
    assert (len(one_ := hgmma(one).sums), min(one_), hgmma(one).left) == (64, 24, {4, 5, 6, 7})
    assert hgmma(one).adds and hgmma(one).commits


@pytest.mark.parametrize(("wait", "found"), [("WARPGROUP.DEPBAR.LE gsb0, 0x0", 0), ("NOP", 1)])
def test_threads_meet_where_their_own_branch_ends(wait, found):
    """A barrier that two branches use, the first of them while products are in flight."""
    lines = [
        "WARPGROUP.ARRIVE",  # 0x00
        "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0",  # 0x10
        "BSSY B0, 0x50",  # 0x20
        "@P0 BRA 0x40",  # 0x30
        "BSYNC B0",  # 0x40
        wait,  # 0x50
        "BSSY B0, 0x90",  # 0x60
        "@P0 BRA 0x80",  # 0x70
        "BSYNC B0",  # 0x80
        "FADD R0, R24, R25",  # 0x90
        "EXIT",  # 0xa0
    ]
    assert len(hazards(code(lines))) == found
