"""What a backend is told about a call before it is asked to run it, and the calls themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.ranges import RangeLayout

Direction = Literal["forward", "backward"]

# Why backends that are made of torch's products refuse `Problem.batch_invariant`.
NOT_INVARIANT = (
    "torch's matrix products may take sums in another order where the batch is another, so it is not batch-invariant"
)

# (q, k, v, k_tiv or None, v_tiv or None, wants_lse) -> (out, lse), as `Call` has them.
Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, bool], tuple[Tensor, Any]]


class Problem(NamedTuple):
    """The facts that backend predicates decide on. None: not known yet, so not a reason to refuse."""

    device: torch.device
    dtype: torch.dtype | None = None
    head_dim: int | None = None
    deterministic: bool = False
    direction: Direction = "forward"
    batch_invariant: bool = False


class Call(NamedTuple):
    """One attention as backends get it: validated, packed, contiguous last dimension, at least one row.

    Attributes:
        q: (N, H, D). k, v: (M, Hk, D), H a multiple of Hk.
        tiv: None or, with scope "broadcast", (k_tiv, v_tiv), each (TIV rows, Hk, D); N and M count frame rows then.
        scope: of a `SifLayout`; "ranges" with a `RangeLayout`.
        batch_invariant: whether a row's results may depend on nothing but what the row sees, bit for bit.
        wants_lse: whether anybody reads the LSE; a backend may return anything for it where nobody does.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tiv: tuple[Tensor, Tensor] | None
    layout: SifLayout | RangeLayout
    scope: Scope
    scale: float
    wants_lse: bool = True
    batch_invariant: bool = False

    @property
    def ranges(self) -> RangeLayout:
        """The mask as ranges, for backends that need not know of clips."""
        return self.layout.ranges(self.scope)

    @property
    def tiv_or_own(self) -> tuple[Tensor, Tensor]:
        """The keys and values whose rows range A of a segment counts."""
        return self.tiv or (self.k, self.v)


class Preparation(NamedTuple):
    """One preparation of queries and keys as backends get it: validated, contiguous last dimension, at least one row.

    Attributes:
        qk: (N, 2, H, D).
        cos, sin: None or (rows, D / 2), N a multiple of rows.
        q_weight, k_weight: None or (D,).
        eps: of the norm.
    """

    qk: Tensor
    cos: Tensor | None
    sin: Tensor | None
    q_weight: Tensor | None
    k_weight: Tensor | None
    eps: float
