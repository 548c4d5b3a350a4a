"""The extension built from csrc/binding.cpp. Addresses are of device memory; strides count elements."""

HAS_HOPPER: bool  # built for sm_90a

class Work:
    """A `schedule.WorkList` on the device, for tiles of ``block`` rows."""

    def __init__(self, tiles: int, num_tiles: int, merges: int, num_merges: int, block: int) -> None: ...

class ForwardPlan:
    def launch(self, scale: float, stream: int, addresses: list[int], /) -> None:
        """The forward kernel and, if tiles are split, the merge of their pieces.

        Args:
            addresses: pointer, row stride and head stride of q, k, v, k_tiv, v_tiv, then the pointers out, lse,
                part_out, part_lse.

        Raises:
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
        kept_pairs: int,
    ) -> None: ...

def ampere_forward_tile(head_dim: int) -> tuple[int, int, int]:
    """Query rows, keys, blocks per SM."""

def hopper_forward_tile(head_dim: int) -> tuple[int, int, int, int]:
    """Query rows, keys, blocks per SM, the most pairs of key tiles that a block can keep."""

class BackwardPlan:
    def launch(self, scale: float, rows: int, stream: int, addresses: list[int], /) -> None:
        """Row statistics, both gradient kernels and, if tiles are split, the sums of their pieces.

        Args:
            rows: of q.
            addresses: pointer, row stride and head stride of q, dout, k, v, k_tiv, v_tiv, then the pointers out, lse,
                dlse (0: none), stats, dq, dk, dv, dk_tiv, dv_tiv, part_dq, part_dk, part_dv.

        Raises:
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
