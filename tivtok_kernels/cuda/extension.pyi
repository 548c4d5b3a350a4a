"""The extension built from csrc/binding.cpp. Addresses are of device memory; strides count elements.

It works on the current device, which must be that of the plan.
"""

from typing import TypedDict

from tivtok_kernels.cuda.configs import Engine

Strided = tuple[int, int, int]  # address, row stride, head stride

HAS_HOPPER: bool  # built for sm_90a
ARCHITECTURES: str  # that it has machine code for, "80,90a"
FORWARD_ARGUMENTS: tuple[str, ...]  # what launch takes by name
BACKWARD_ARGUMENTS: tuple[str, ...]

def versions() -> tuple[int, int]:
    """The newest CUDA that the driver knows (0: no driver), and the toolkit's, as 1000 * major + 10 * minor."""

class Shape:
    """What all launches of a plan have in common but for their rows. ``dtype``: "bfloat16" or "float16"."""

    def __init__(self, *, device: int, dtype: str, heads: int, group: int, head_dim: int) -> None: ...

class Work:
    """A `schedule.WorkList` on the device, for tiles of ``block`` rows."""

    def __init__(self, *, tiles: int, num_tiles: int, merges: int, num_merges: int, block: int) -> None: ...

class RowCounts:
    """Rows of q, of k and v, of k_tiv and v_tiv (0 where no TIV row exists). Where HAS_HOPPER."""

    def __init__(self, *, q: int, k: int, tiv: int) -> None: ...

class Shares:
    """`shares.Shares` on the device, and the blocks that they are for."""

    def __init__(self, *, order: int, bounds: int, blocks: int) -> None: ...

class ForwardTile:
    """Query rows, keys per step."""

    block_q: int
    block_k: int
    blocks_per_sm: int

class GradientTile:
    """Rows owned, rows walked per step."""

    owned: int
    walked: int
    blocks_per_sm: int

class Owner:
    """Which rows a block of a gradient kernel owns."""

    queries: Owner
    keys: Owner

class ForwardArguments(TypedDict):
    """What a launch is told."""

    scale: float
    q: Strided
    k: Strided
    v: Strided
    k_tiv: Strided
    v_tiv: Strided
    out: int
    lse: int
    part_out: int
    part_lse: int

class ForwardPlan:
    def launch(self, stream: int, arguments: ForwardArguments) -> None:
        """The forward kernel and, if tiles are split, the merge of their pieces.

        Raises:
            TypeError: an argument is missing, or there are others.
            RuntimeError: CUDA refused a launch.
        """

class AmpereForward(ForwardPlan):
    def __init__(self, shape: Shape, work: Work) -> None: ...

class HopperForward(ForwardPlan):
    """Where HAS_HOPPER."""

    def __init__(self, shape: Shape, work: Work, rows: RowCounts, shares: Shares) -> None: ...

def ampere_forward_tile(head_dim: int) -> ForwardTile: ...
def hopper_forward_tile(head_dim: int) -> ForwardTile:
    """Where HAS_HOPPER."""

class BackwardArguments(TypedDict):
    """What a launch is told; ``rows``: of q; ``dlse``: 0 for none."""

    scale: float
    rows: int
    q: Strided
    dout: Strided
    k: Strided
    v: Strided
    k_tiv: Strided
    v_tiv: Strided
    out: int
    lse: int
    dlse: int
    row_stats: int
    dq: int
    dk: int
    dv: int
    dk_tiv: int
    dv_tiv: int
    part_dq: int
    part_dk: int
    part_dv: int

class BackwardPlan:
    def __init__(self, engine: Engine, shape: Shape, *, queries: Work, keys: Work, shares: Shares | None) -> None:
        """
        Args:
            shares: of the items of ``queries`` and then of ``keys``, of the engine "hopper" alone.

        Raises:
            ValueError: no such engine or head_dim, or shares are missing or there for nothing.
        """

    def launch(self, stream: int, arguments: BackwardArguments) -> None:
        """Row statistics, all gradients and, if tiles are split, the sums of their pieces.

        Raises:
            TypeError: an argument is missing, or there are others.
            RuntimeError: CUDA refused a launch.
        """

def gradient_tile(engine: Engine, owner: Owner, head_dim: int) -> GradientTile: ...
