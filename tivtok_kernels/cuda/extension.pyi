"""The extension built from csrc/binding.cpp. Addresses are of device memory; strides count elements.

It works on the current device, which must be that of the plan.
"""

Strided = tuple[int, int, int]  # address, row stride, head stride

HAS_HOPPER: bool  # built for sm_90a
ARCHITECTURES: str  # that it has machine code for, "80,90a"
FORWARD_ARGUMENTS: tuple[str, ...]  # what launch takes by name
BACKWARD_ARGUMENTS: tuple[str, ...]

def versions() -> tuple[int, int]:
    """The newest CUDA that the driver knows (0: no driver), and the toolkit's, as 1000 * major + 10 * minor."""

class Work:
    """A `schedule.WorkList` on the device, for tiles of ``block`` rows."""

    def __init__(self, tiles: int, num_tiles: int, merges: int, num_merges: int, block: int) -> None: ...

class ForwardPlan:
    def launch(
        self,
        stream: int,
        *,
        scale: float,
        q: Strided,
        k: Strided,
        v: Strided,
        k_tiv: Strided,
        v_tiv: Strided,
        out: int,
        lse: int,
        part_out: int,
        part_lse: int,
    ) -> None:
        """The forward kernel and, if tiles are split, the merge of their pieces.

        Raises:
            TypeError: an argument is missing, or there are others.
            RuntimeError: CUDA refused a launch.
        """

class AmpereForward(ForwardPlan):
    def __init__(self, device: int, dtype: str, heads: int, group: int, head_dim: int, work: Work) -> None: ...

class HopperForward(ForwardPlan):
    def __init__(
        self,
        device: int,
        dtype: str,
        heads: int,
        group: int,
        head_dim: int,
        work: Work,
        q_rows: int,
        k_rows: int,
        tiv_rows: int,
        order: int,
        bounds: int,
        blocks: int,
    ) -> None: ...

def ampere_forward_tile(head_dim: int) -> tuple[int, int, int]:
    """Query rows, keys, blocks per SM."""

def hopper_forward_tile(head_dim: int) -> tuple[int, int, int]: ...

class BackwardPlan:
    def launch(
        self,
        stream: int,
        *,
        scale: float,
        rows: int,
        q: Strided,
        dout: Strided,
        k: Strided,
        v: Strided,
        k_tiv: Strided,
        v_tiv: Strided,
        out: int,
        lse: int,
        dlse: int,
        stats: int,
        dq: int,
        dk: int,
        dv: int,
        dk_tiv: int,
        dv_tiv: int,
        part_dq: int,
        part_dk: int,
        part_dv: int,
    ) -> None:
        """Row statistics, both gradient kernels and, if tiles are split, the sums of their pieces.

        Args:
            rows: of q.
            dlse: 0 for none.

        Raises:
            TypeError: an argument is missing, or there are others.
            RuntimeError: CUDA refused a launch.
        """

class AmpereBackward(BackwardPlan):
    def __init__(
        self, device: int, dtype: str, heads: int, group: int, head_dim: int, queries: Work, keys: Work
    ) -> None: ...

class HopperBackward(BackwardPlan):
    def __init__(
        self, device: int, dtype: str, heads: int, group: int, head_dim: int, queries: Work, keys: Work
    ) -> None: ...

def ampere_gradient_tile(keys: bool, head_dim: int) -> tuple[int, int, int]:
    """Rows owned (of keys or of queries), rows walked per step, blocks per SM."""

def hopper_gradient_tile(keys: bool, head_dim: int) -> tuple[int, int, int]: ...
