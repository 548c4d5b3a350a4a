"""The gradient kernels on the emulator, against the float64 oracle by the error budget."""

from dataclasses import dataclass, replace
from pathlib import Path

import cuda_emulator
import pytest
import torch
from backward_runs import Problem, Tiles, check, gradients, problem
from cuda_emulator import Kernels, Mutation
from oracle import make_case
from planted_faults import build_with_faults, switch_on

from tivtok_kernels import SifLayout

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported)),
]

HERE = Path(__file__).parent
SCOPES = ("clip", "tiv", "broadcast")
RAGGED = SifLayout.from_lengths([3, 0, 37, 2, 0], [[4, 40, 0], [7, 0, 33], [65], [], []])
LONG = SifLayout.from_lengths([5], [[96, 130, 23]])  # 8 steps of 32 under the TIV rows: two pieces
SHORT = SifLayout.from_lengths([3, 4, 5], [[9], [7], [8]])  # one step each
PAIR = SifLayout.from_lengths([5, 3], [[40, 33], [9]])


@dataclass(frozen=True)
class Engine:
    """Kernels under test, in small tiles; ``head_dim``: the columns of those."""

    library: Path
    tiles: Tiles
    head_dim: int

    def check(self, p: Problem, seed: int = 0) -> None:
        check(Kernels(self.library), self.tiles, p, seed)

    def gradients(self, p: Problem, seed: int = 0) -> dict[str, torch.Tensor]:
        return gradients(Kernels(self.library), self.tiles, p, seed)


ENGINES = {"ampere": (Tiles((32, 32), (32, 32)), 32), "hopper": (Tiles((128, 32), (128, 32), blocks=2), 64)}
SHIPPED = {
    ("ampere", 32): Tiles(queries=(128, 32), keys=(128, 32)),
    ("ampere", 64): Tiles(queries=(128, 32), keys=(128, 32)),
    ("ampere", 128): Tiles(queries=(64, 32), keys=(64, 32)),
    ("hopper", 64): Tiles(queries=(128, 128), keys=(128, 64), blocks=3),
    ("hopper", 128): Tiles(queries=(128, 64), keys=(128, 64), blocks=3),
}


@pytest.fixture(scope="session", params=list(ENGINES))
def engine(request):
    return Engine(cuda_emulator.build(HERE / f"{request.param}_backward.cpp"), *ENGINES[request.param])


def one_head(layout, scope="clip", head_dim=32, **options):
    return problem(make_case(layout, scope, heads=1, kv_heads=1, head_dim=head_dim), torch.bfloat16, **options)


@pytest.mark.parametrize("scope", SCOPES)
def test_ragged_clips(engine, scope):
    engine.check(one_head(RAGGED, scope, engine.head_dim))


@pytest.mark.smoke
def test_grouped_queries_of_a_narrow_head_in_slices_of_wider_tensors(engine):
    case = make_case(PAIR, "broadcast", heads=4, kv_heads=2, head_dim=24)
    engine.check(problem(case, torch.float16, fused=True))


@pytest.mark.parametrize("length", [1, 32, 33])
def test_lengths_at_the_edges_of_tiles(engine, length):
    engine.check(one_head(SifLayout.from_lengths([length, 5], [[length, 32], [length]]), head_dim=16))


@pytest.mark.parametrize("scope", ["clip", "broadcast"])
def test_split_tiles_in_any_order_of_threads(engine, scope):
    """Bit for bit the same, whatever the scheduler does."""
    p = problem(make_case(LONG, scope, heads=2, kv_heads=1, head_dim=16), torch.bfloat16, workers=10**6)
    engine.check(p)
    got, expected = engine.gradients(p, seed=1), engine.gradients(p, seed=2)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


def test_an_lse_without_gradient(engine):
    engine.check(one_head(PAIR, with_dlse=False))


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales(engine, scale):
    engine.check(one_head(PAIR, scale=scale))


def low_scores():
    """Scores near -200: exp(-LSE) is infinite, and what is multiplied by it no longer zero."""
    case = make_case(PAIR, heads=1, kv_heads=1, head_dim=32)
    case.inputs["q"] += 10
    case.inputs["k"] -= 10 * 2**-0.5
    return problem(case, torch.bfloat16, scale=0.1)


def test_low_scores(engine):
    p = low_scores()
    assert float(p.lse.max()) < -100
    engine.check(p)


@pytest.mark.parametrize("scope", SCOPES)
def test_other_clips_never_touch_a_clip(engine, scope):
    """The middle one of three clips, whose tiles end in its neighbours' rows; those hold NaN in everything."""
    layout = SifLayout.from_lengths([3, 5, 3], [[20], [38, 7], [20]])
    p = one_head(layout, scope, head_dim=16)
    own = {len(p.out): slice(20, 65) if scope == "broadcast" else slice(23, 73), layout.tiv_tokens: slice(3, 8)}

    def poisoned(x):
        other = torch.full_like(x, torch.nan)
        other[own[len(x)]] = x[own[len(x)]]
        return other

    inputs = {name: poisoned(x) for name, x in p.case.inputs.items()}
    case = replace(p.case, inputs=inputs, dout=poisoned(p.case.dout), dlse=poisoned(p.case.dlse))
    got = engine.gradients(replace(p, case=case, out=poisoned(p.out), lse=poisoned(p.lse)))
    for name, clean in engine.gradients(p).items():
        assert torch.equal(got[name][own[len(clean)]], clean[own[len(clean)]]), name


@pytest.mark.parametrize(
    ("name", "head_dim"),
    [("ampere", 24), ("ampere", 64), ("ampere", 80), ("hopper", 64), ("hopper", 128)],
)
def test_tiles_that_ship(name, head_dim):
    library = cuda_emulator.build(HERE / f"{name}_backward_shipped.cpp")
    tiles = next(t for (engine, width), t in SHIPPED.items() if engine == name and head_dim <= width)
    Engine(library, tiles, head_dim).check(
        one_head(SifLayout.from_lengths([9, 3], [[150, 11], [64]]), head_dim=head_dim)
    )


@pytest.mark.skipif(cuda_emulator.nvcc is None, reason="needs nvcc, for the PTX of the kernels")
@pytest.mark.parametrize(("engine", "arch"), [("ampere", "sm_80"), ("hopper", "sm_90a")], indirect=["engine"])
def test_ptx(engine, arch):
    """What nvcc makes of the kernels rather than their source."""
    name = engine.library.name.split("_")[0]
    tile = {"ampere": "32, Owner::{}, 1, 32, 1, 2", "hopper": "64, Owner::{}, 32"}[name]
    configs = [f"{name}::GradientConfig<dev::bf16, {tile.format(owner)}>" for owner in ("queries", "keys")]
    if name == "hopper":
        configs = [f"hopper::GradientPair<{', '.join(configs)}, 2, 3, 40>"]
    kernels = [f"{name}::gradients<{c}>(const __grid_constant__ GradientParams)" for c in configs]
    kernels += ["statistics::rows<dev::bf16, 8>(const __grid_constant__ RowStatisticsParams)"]
    source = f'#include "backward/{name}/kernel.h"\n#include "backward/statistics/kernel.h"\n'
    source += "".join(f"template __global__ void {kernel};\n" for kernel in kernels)
    kernels = Kernels(engine.library, cuda_emulator.build_ptx(source, arch))
    check(kernels, engine.tiles, one_head(PAIR, "broadcast"), seed=1)


# ---------------------------------------------------------------------------------------------------- planted faults

AMPERE, HOPPER, SIDES, STATISTICS = (
    f"backward/{file}" for file in ("ampere/kernel.h", "hopper/kernel.h", "sides.h", "statistics/kernel.h")
)
OWN_FREE = "dev::mbar_wait(shared.own_empty(places.slot), places.phase ^ 1);"
ELEMENTWISE = [
    Mutation("LSE of the next column", SIDES, "j % 2 ? columns.z : columns.x", "j % 2 ? columns.x : columns.z"),
    Mutation("delta forgotten", SIDES, "(element(m, n, j) - delta)", "element(m, n, j)"),
    Mutation("absent keys not masked", SIDES, "!kKeys && valid < C::kWalked", "false"),
]
FAULTS = {
    "ampere": [
        Mutation("no barrier", AMPERE, "__syncthreads();", ""),
        Mutation("copies not waited for", AMPERE, "dev::cp_async_wait<0>();", "dev::cp_async_wait<1>();"),
        Mutation("copies into the stage in use", AMPERE, "(i + 1) % C::kStages", "i % C::kStages"),
        Mutation(
            "operand not transposed",
            AMPERE,
            "dev::ldmatrix_x4_trans(b, walked + k * 16 * C::kPitch + n * 16);",
            "dev::ldmatrix_x4(b, walked + k * 16 * C::kPitch + n * 16);",
        ),
        *ELEMENTWISE,
        Mutation("a row too many", SIDES, "i < length - start", "i <= length - start"),
        Mutation("range A a row too long", SIDES, "(i < length_a ? a : b)", "(i <= length_a ? a : b)"),
        Mutation("columns beyond the head", SIDES, "from.valid && column < columns", "from.valid"),
        Mutation("one head of a group", SIDES, "++head;", ""),
        Mutation("a row past the tile", SIDES, "tile.row + row >= tile.row_end", "tile.row + row > tile.row_end"),
        Mutation("TIV gradient elsewhere", SIDES, "place.tile.in_tiv ? p.dv_tiv : p.dv", "p.dv"),
        Mutation(
            "pieces of all heads in one place",
            SIDES,
            "(static_cast<int64_t>(tile.slot) * place.heads + place.head)",
            "(static_cast<int64_t>(tile.slot) * place.heads)",
        ),
        Mutation("dLSE forgotten", STATISTICS, "p.dlse[i_row]", "0"),
        Mutation("half of a row in delta", STATISTICS, "distance > 0", "distance > 1"),
    ],
    "hopper": [
        Mutation("barriers used before they are made", HOPPER, "__syncthreads();", ""),
        Mutation("stage freed too early", HOPPER, "4 * P::kConsumers", "4 * P::kConsumers - 1"),
        Mutation("wrong phase of an empty stage", HOPPER, "stages.phase ^ 1", "stages.phase"),
        Mutation(
            "full stage not waited for",
            HOPPER,
            "dev::mbar_wait(shared.full(stages.slot), stages.phase);\n            dev::wgmma_fence();",
            "dev::wgmma_fence();",
        ),
        Mutation(
            "rows owned copied over those of the item before",
            HOPPER,
            f"{OWN_FREE}\n        if (threadIdx.x == 0) shared.item(i) = {{place.tile, place.head, C::kOwner}};",
            "if (threadIdx.x == 0) shared.item(i) = {place.tile, place.head, C::kOwner};",
        ),
        Mutation(
            "the second matrix owned copied over another",
            HOPPER,
            f"{OWN_FREE}\n        copy_owned<C, true>(place, steps > 0);",
            "copy_owned<C, true>(place, steps > 0);",
        ),
        Mutation(
            "item read before it is there",
            HOPPER,
            "dev::mbar_wait(shared.own_full(places.slot), places.phase);",
            "",
        ),
        Mutation(
            "second matrix owned not waited for",
            HOPPER,
            "dev::mbar_wait(shared.own_full(second_place), places.phase);",
            "",
        ),
        Mutation(
            "first matrix owned freed too early",
            HOPPER,
            "if (!C::kOwnInRegisters && is_last) sign_off(shared.own_empty(first_place));",
            "if (!C::kOwnInRegisters && i == 0) sign_off(shared.own_empty(first_place));",
        ),
        Mutation("items in two places", "backward/hopper/config.h", "i % kItems", "i % 2"),
        Mutation("keys behind tiles and not items", HOPPER, "p.num_query_tiles * p.heads", "p.num_query_tiles"),
        Mutation("published before it landed", HOPPER, "dev::cp_async_wait<1>();", "dev::cp_async_wait<2>();"),
        Mutation("copies not shown to wgmma", HOPPER, "dev::fence_proxy_async();", ""),
        Mutation("S read in flight", HOPPER, "wait<1>(weights);", "wait<2>(weights);"),
        Mutation("dP read in flight", HOPPER, "wait<kKeys ? 1 : 0>(d_weights);", "wait<2>(d_weights);"),
        Mutation("stage freed under its last products", HOPPER, "wait<0>(d_first);", "wait<1>(d_first);"),
        Mutation("statistics freed under their readers", HOPPER, "__syncwarp();", ""),
        Mutation("wrong swizzle", "backward/hopper/config.h", "column % 64 / 8 ^ row % 8", "column % 64 / 8 ^ row % 4"),
        Mutation("rows half as far apart", HOPPER, "k * 16 * 128", "k * 16 * 64"),
        Mutation("columns half as far apart", HOPPER, "column % 64 * 2", "column % 64"),
        Mutation("the same rows twice in registers", HOPPER, "row + lane % 16", "row + lane % 8"),
        *ELEMENTWISE,
    ],
}  # fmt: skip


def gauntlet(engine):
    """Small cases that between them show every fault."""
    case = make_case(PAIR, "broadcast", heads=2, kv_heads=1, head_dim=24)
    engine.check(problem(case, torch.bfloat16), seed=1)
    engine.check(low_scores())
    engine.check(problem(make_case(LONG, head_dim=16), torch.bfloat16, workers=10**6))
    engine.check(one_head(SHORT, head_dim=16))


@pytest.fixture(scope="session")
def faulty(tmp_path_factory):
    """Per engine, its kernels with all faults in them, each behind a switch."""
    built = {}

    def build(name):
        if name not in built:
            library = build_with_faults(HERE / f"{name}_backward.cpp", FAULTS[name], tmp_path_factory.mktemp(name))
            built[name] = Engine(library, *ENGINES[name])
        return built[name]

    return build


@pytest.mark.parametrize("name", FAULTS)
def test_without_faults(faulty, name):
    gauntlet(faulty(name))


@pytest.mark.parametrize(
    ("name", "number"),
    [pytest.param(n, i, id=f"{n}: {f.name}") for n, faults in FAULTS.items() for i, f in enumerate(faults, start=1)],
)
def test_planted_faults_are_caught(faulty, name, number):
    engine = faulty(name)
    switch_on(Kernels(engine.library), number)
    try:
        with pytest.raises(AssertionError):
            gauntlet(engine)
    finally:
        switch_on(Kernels(engine.library), 0)
