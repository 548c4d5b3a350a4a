"""The resource report: what it reads from machine code, what it makes of it, and the verdict on shipped kernels."""

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.machine_code import __main__ as command
from benchmarks.machine_code import pipes, report, sass
from benchmarks.machine_code.checks import faults
from benchmarks.machine_code.compile import Job, Resources, compile_all, dot_units, shipped, tile_flops
from benchmarks.machine_code.machine import blocks_per_sm
from tivtok_kernels import SifLayout
from tivtok_kernels.problem import Call, Preparation
from tivtok_kernels.triton.configs import Config

# A kernel in small: a loop over full tiles, a wait of it that retries behind the end, a loop over tails, a spill.
LISTING = """
 Function toy_kernel:
  REG:168 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
        .headerflags @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                       /* 0x00000a00ff017b82 */
                                                                                /* 0x000ff00000000800 */
        /*0010*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64] ; /* 0x0000000000000000 */
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], RZ, !UPT ; /* 0x0 */
        /*0030*/              @!P2 BRA 0x00e0 ;                                 /* 0x0 */
        /*0040*/                   MUFU.EX2 R24, R24 ;                          /* 0x0 */
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R88, R120, gdesc[UR28].tnspB, R88, gsb0 ; /* 0x0 */
        /*0060*/              @P0 BRA 0x0010 ;                                  /* 0x0 */
        /*0070*/                   STL.64 [R1], R8 ;                            /* 0x0 */
        /*0080*/                   MUFU.EX2 R24, R24 ;                          /* 0x0 */
        /*0090*/              @!P1 FSEL R3, R3, -INF , P4 ;                     /* 0x0 */
        /*00a0*/                   HGMMA.64x64x16.F32.BF16 R88, R120, gdesc[UR28].tnspB, R88, gsb0 ; /* 0x0 */
        /*00b0*/                   LDSM.16.M88.4 R8, [R4] ;                     /* 0x0 */
        /*00c0*/              @UP1 BRA.U 0x0080 ;                               /* 0x0 */
        /*00d0*/                   EXIT ;                                       /* 0x0 */
        /*00e0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR4], R6 ; /* 0x0 */
        /*00f0*/                   BRA 0x0040 ;                                 /* 0x0 */
"""


def code(*lines: str) -> list[sass.Instruction]:
    return sass.parse("\n".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)))


def test_parser_reads_instructions_and_their_predicates():
    instructions = sass.parse(LISTING)
    assert len(instructions) == 16
    assert instructions[9] == sass.Instruction(0x90, "FSEL", "R3, R3, -INF , P4", "!P1")
    assert instructions[4].opcode == "MUFU.EX2" and instructions[4].name == "MUFU"


def test_parser_reads_usage_and_refuses_text_without_it():
    assert sass.parse_usage(LISTING) == (168, 16)
    with pytest.raises(ValueError, match="REG"):
        sass.parse_usage("nothing of the kind")


def test_counts():
    counts = sass.count(sass.parse(LISTING))
    assert (counts.instructions, counts.hgmma, counts.ldgsts, counts.ex2) == (16, 3, 1, 2)
    assert (counts.spill_loads, counts.spill_stores, counts.async_copies) == (0, 1, 1)
    others = sass.count(
        code("UTCHMMA gdesc[UR4], gdesc[UR6]", "UTCBAR [UR4]", "UTMALDG.3D [UR8], [UR4]", "HMMA.16816 R1")
    )
    assert (others.tcgen05, others.utmaldg, others.hmma, others.hgmma) == (1, 1, 1, 0)


def test_main_loop_is_the_one_over_full_tiles():
    """Neither the longer one over tails, nor what the retried wait seems to span."""
    instructions = sass.parse(LISTING)
    spans = [(body[0].address, body[-1].address) for body in sass.loops(instructions)]
    assert spans == [(0x10, 0x60), (0x80, 0xC0)]
    assert sass.main_loop(code("MUFU.EX2 R1, R1", "EXIT")) is None


def test_main_loop_looks_into_outer_loops_and_skips_short_tiles():
    outer = code("MOV R1, R2", "MUFU.EX2 R1, R1", "BRA 0x10", "BRA 0x0")
    assert [i.address for i in sass.main_loop(outer)] == [0x10, 0x20]
    fewer_exponentials = code("MUFU.EX2 R1, R1", "BRA 0x0", "MUFU.EX2 R1, R1", "MUFU.EX2 R1, R1", "NOP", "BRA 0x20")
    assert sass.main_loop(fewer_exponentials)[0].address == 0x20
    few, many = "HGMMA.64x32x16.F32.BF16 R1, R2, gdesc[UR4], R1", "HGMMA.64x64x16.F32.BF16 R1, R2, gdesc[UR4], R1"
    fewer_products = code(few, "MUFU.EX2 R1, R1", "BRA 0x0", many, "MUFU.EX2 R1, R1", "NOP", "BRA 0x30")
    assert sass.main_loop(fewer_products)[0].address == 0x30


def test_pipe_model_of_a_128_by_128_tile():
    """The figures anyone can check: 2 products of 128 x 128 x 64 and 128 x 128 exponentials, 8 warps."""
    first = ["HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24"] * 4
    second = ["HGMMA.64x64x16.F32.BF16 R88, R120, gdesc[UR28], R88"] * 8
    loop = code(
        *first, *second, *["MUFU.EX2 R1, R1"] * 64, *["FFMA R1, R2, R3, R4"] * 100, *["SHFL.BFLY PT, R1, R2"] * 4
    )
    model = pipes.pipes(loop, warps=8)
    assert model.tensor == 2 * 2 * 128 * 128 * 64 / 4096 == 1024
    assert model.exponentials == 128 * 128 / 16 == 1024
    assert model.arithmetic == 100 * 8 * 32 / 128
    right = 2 * (128 * 64 + 128 * 64) * 2  # K and V, by each of two warp groups
    left = 128 * 64 * 2  # Q; P comes from registers
    assert model.shared == (right + left + 4 * 8 * 32 * 4) / 128
    assert model.overlapped == 1024 and model.serial == sum(model)
    assert 8 * sass.matrix_flops(loop) == 2 * 2 * 128 * 128 * 64


def test_pipe_model_of_other_instructions():
    assert pipes.pipes(code("HMMA.16816.F32.BF16 R1, R2, R3, R4"), 4).tensor == 4 * 4096 / 4096
    assert pipes.pipes(code("HMMA.16816.F32 R1, R2, R3, R4"), 4).tensor == 4 * 4096 / 4096
    assert pipes.pipes(code("HGMMA.64x64x8.F32.TF32 R1, R2, gdesc[UR4], R1"), 4).tensor == 2 * 64 * 64 * 8 / 2048
    for opcode, width in {"LDS.128": 16, "STS.U16": 2, "LDS": 4, "STSM.16.M88.2": 8, "LDSM.16.MT88.4": 16}.items():
        assert pipes.pipes(code(f"{opcode} R1, [R2]"), 4).shared == width * 128 / 128


def test_tflops_of_the_model_at_full_tensor_rate():
    """All SMs at 4096 FLOP per clock: what the model calls the peak."""
    assert pipes.tflops(4096, 1) == pytest.approx(4096 * 132 * 1.755e9 / 1e12)


@pytest.mark.parametrize(
    ("arguments", "blocks"),
    [
        ((90, 168, 4, 0), 3),  # 168 * 128 registers
        ((90, 32, 4, 0), 16),  # 2048 threads
        ((86, 32, 4, 0), 12),  # 1536 threads
        ((90, 32, 4, 100 << 10), 2),  # shared memory
        ((80, 32, 4, 100 << 10), 1),
        ((86, 32, 4, 100 << 10), 0),  # more than one block may have
        ((90, 255, 8, 227 << 10), 1),
        ((100, 32, 4, 0, 256), 2),  # tensor memory
    ],
)
def test_blocks_per_sm(arguments, blocks):
    assert blocks_per_sm(*arguments) == blocks


def test_dot_units():
    dialect = """
      %a = ttng.warp_group_dot %q, %k, %c {isAsync = true} : tensor<64x64xbf16, #x> -> tensor<64x128xf32, #mma>
      %b:3 = ttng.warp_group_dot_wait %a {pendings = 0 : i32}
      ttng.tc_gen5_mma %q, %k, %s, %false, %true : !ttg.memdesc<64x64xbf16, #shared>
      %c = tt.dot %q, %k, %z : tensor<1x1xbf16, #ttg.dot_op<{opIdx = 0, parent = #mma1}>> -> tensor<64x128xf32, #mma1>
      %d = tt.dot %q, %k, %z, inputPrecision = ieee : tensor<1x1xf32, #x> -> tensor<64x128xf32, #blocked3> loc(#loc1)
    """
    assert dot_units(dialect) == {"wgmma": 1, "tcgen05": 1, "mma": 1, "fma": 1}


JOB = Job("forward", 90, 64, "half", False, Config(64, 128, 4, 2, 2))
SMALL = JOB._replace(config=Config(32, 64, 4, 2, 2))
LOOP = sass.count(
    code("LDGSTS.E.BYPASS.128 [R4], [R2]", "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24", "MUFU.EX2 R1, R1")
)
CLEAN = Resources(168, 0, 65536, 0, 4, 2, {"wgmma": 4}, LOOP, LOOP, 2.0**21, pipes.Pipes(512, 528, 400, 600))


@pytest.mark.parametrize(
    ("job", "change", "words"),
    [
        (JOB, {"total": LOOP._replace(spill_loads=2, spill_stores=1)}, "3 spills"),
        (JOB, {"loop": LOOP._replace(ldgsts=0)}, "no asynchronous copy"),
        (JOB, {"loop": None}, "no main loop"),
        (JOB, {"dots": {"wgmma": 2, "mma": 2}}, "not on wgmma: {'mma': 2}"),
        (JOB._replace(arch=100), {}, "not on tcgen05: {'wgmma': 4}"),
        (JOB._replace(arch=80), {"dots": {"fma": 4}}, "not on mma: {'fma': 4}"),
        (JOB._replace(math="tf32"), {"dots": {"mma": 4}}, "not on wgmma: {'mma': 4}"),
        (SMALL, {"dots": {"mma": 4}}, "not on wgmma: {'mma': 4}"),
        (JOB, {"dots": {}}, "no matrix product"),
        (JOB, {"blocks_per_sm": 0}, "no block fits"),
        (JOB, {"blocks_per_sm": 1}, "counts on 2 blocks per SM, 1 fit"),
    ],
)
def test_every_fault_is_found(job, change, words):
    assert faults(JOB, CLEAN) == []
    assert any(words in line for line in faults(job, CLEAN._replace(**change)))


def test_faults_that_a_kind_of_kernel_cannot_have():
    helper = CLEAN._replace(loop=None, dots={}, pipes=None)
    assert faults(JOB._replace(kernel="delta"), helper) == []
    assert faults(JOB._replace(math="ieee"), CLEAN._replace(dots={"fma": 4}, loop=LOOP._replace(ldgsts=0))) == []
    assert faults(SMALL._replace(math="tf32"), CLEAN._replace(dots={"mma": 4}, loop=LOOP._replace(ldgsts=0))) == []


def test_report_in_all_forms(tmp_path):
    found = {JOB: CLEAN, JOB._replace(kernel="delta"): CLEAN._replace(loop=None, dots={}, loop_flops=0, pipes=None)}
    entries = json.loads(json.dumps(report.to_json(found, "9.9")))["kernels"]
    assert entries[0]["config"]["block_k"] == 128 and entries[0]["loop"]["ldgsts"] == 1 and entries[0]["faults"] == []
    bound = pipes.tflops(tile_flops(JOB), 600)
    text = report.to_markdown(found, "9.9")
    assert f"| {bound:.0f} |" in text and "triton 9.9" in text and "never run" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1

    page = tmp_path / "page.md"
    page.write_text(f"# Head\n\n{report.BEGIN}\nold\n{report.END}\n\nfoot\n")
    report.write_section(page, text)
    assert page.read_text() == f"# Head\n\n{report.BEGIN}\n{text}\n{report.END}\n\nfoot\n"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="resources: begin"):
        report.write_section(page, text)
    assert page.read_text() == "no marks\n"


def test_command_refuses_what_matches_nothing():
    result = CliRunner().invoke(command.app, ["--arch", "75"])
    assert result.exit_code == 2 and "no shipped kernel" in result.output


@pytest.mark.parametrize(("found", "exit_code"), [(CLEAN, 0), (CLEAN._replace(dots={"mma": 4}), 1)])
def test_command_writes_its_files_and_fails_on_faults(monkeypatch, tmp_path, found, exit_code):
    found = found._replace(blocks_per_sm=32)  # more than any row of the table counts on
    monkeypatch.setattr(command, "compile_all", lambda jobs: ((job, found) for job in reversed(jobs)))
    options = ["--arch", "90", "--kernel", "dq", "--math", "half", "--json", str(tmp_path / "new" / "a.json")]
    result = CliRunner().invoke(command.app, [*options, "--markdown", str(tmp_path / "a.md")])
    assert result.exit_code == exit_code
    kernels = json.loads((tmp_path / "new" / "a.json").read_text())["kernels"]
    expected = [job for job in shipped() if (job.arch, job.kernel, job.math) == (90, "dq", "half")]
    assert [(k["head_dim"], k["tiv_apart"]) for k in kernels] == [(job.head_dim, job.tiv_apart) for job in expected]
    assert (tmp_path / "a.md").read_text().count("| dq") == len(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md", "new"]


@pytest.mark.emulator
def test_shipped_kernels_are_clean():
    """What most calls run: 16 bits, head_dim 64, all passes and architectures. One test, so that it compiles once."""
    jobs = [
        job
        for job in shipped()
        if job.is_pass and job.math == "half" and job.head_dim == 64 and job.arch != 86
        if job.arch == 90 or not job.tiv_apart
    ]
    verdicts = {}
    for job, found in compile_all(jobs):
        verdicts[job] = faults(job, found)
        if job.arch != 100 and found.loop_flops != tile_flops(job):
            verdicts[job].append(f"computes {found.loop_flops / tile_flops(job):.2f} times its tile")
    assert len(verdicts) == 16
    assert {job: lines for job, lines in verdicts.items() if lines} == {}


@pytest.mark.parametrize("tiv_apart", [False, True])
def test_kernels_are_launched_as_they_are_compiled(monkeypatch, tiv_apart):
    """Types, alignment, constants and options of every launch of a forward and a backward are those of the report."""
    pytest.importorskip("triton")
    from benchmarks.machine_code import signatures
    from tivtok_kernels.triton import configs, launch, prepare

    launched = {}

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *values, **named: launched.setdefault(self.kernel, (values, named))

    for kernel, function in signatures.FUNCTIONS.items():
        module = prepare if "qk" in kernel else launch
        monkeypatch.setattr(module, function.__name__, Recorder(kernel))
    layout = SifLayout.uniform(1, 64, 16, 64)  # the row of TIV queries is long enough to be split among 64 workers
    config = Config(64, 64, 4, 2, 2)
    monkeypatch.setattr(configs, "select", lambda *_: config)
    monkeypatch.setattr(configs, "workers", lambda *_: 64)
    scope = "broadcast" if tiv_apart else "clip"
    rows = layout.local_tokens if tiv_apart else layout.total_tokens
    q, k, v = (torch.zeros(rows, 2, 64, dtype=torch.bfloat16) for _ in range(3))
    tiv = tuple(torch.zeros(64, 2, 64, dtype=torch.bfloat16) for _ in range(2)) if tiv_apart else None
    call = Call(q, k, v, tiv, layout, scope, 0.125)
    out, lse = launch.forward(call)
    launch.backward(call, out, lse, dout=out, dlse=lse)
    qk, table, weight = torch.stack([q, k], 1), torch.zeros(rows, 32), torch.zeros(64)
    preparation = Preparation(qk, table, table, weight, weight, 1e-6)
    prepare.forward(preparation)
    prepare.backward(preparation, q, k)

    shape = launch.Shape(64, 1, tiv_apart, "half")
    assert set(launched) == set(signatures.FUNCTIONS) - ({"merge_outputs"} if tiv_apart else set())  # no long rows
    for kernel, (values, named) in launched.items():
        build = signatures.build(kernel, shape, config)
        assert named == build.constants | build.options, kernel
        runtime = {name: kind for name, kind in build.signature.items() if kind != "constexpr"}
        for (name, kind), value in zip(runtime.items(), values, strict=True):
            assert kind == _kind(value), (kernel, name)


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        assert value.data_ptr() % 16 == 0
        names = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
        return names[value.dtype]
    return {float: "fp32", int: "i32"}[type(value)]
