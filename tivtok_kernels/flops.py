"""What torch's FlopCounterMode counts for the operators of attention: two matrix products forward, five backward.

Imported only when a counter is active, since torch's module imports triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from tivtok_kernels import ops


@register_flop_formula(torch.ops.tivtok.sif_attention, get_raw=True)
def _forward(q: Tensor, k: Any, v: Any, k_tiv: Any, v_tiv: Any, encoded: Tensor, *options: Any, out_val: Any) -> int:
    return 2 * _product(q, encoded, ops.Options(*options))


@register_flop_formula(torch.ops.tivtok.sif_attention_backward, get_raw=True)
def _backward(dout: Tensor, *inputs: Any, out_val: Any) -> int:
    encoded, *options = inputs[8:]
    return 5 * _product(dout, encoded, ops.Options(*options))


def tell_counters() -> None:
    """Tell the counters that are active now: each copied torch's registry when it was made, maybe before ours."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            for operator in (torch.ops.tivtok.sif_attention, torch.ops.tivtok.sif_attention_backward):
                counter.flop_registry.setdefault(operator, flop_registry[operator])


def _product(q: Tensor, encoded: Tensor, options: ops.Options) -> int:
    """One product of queries and visible keys, or of weights and values."""
    return 2 * ops.decode(encoded, options.scope).ranges(options.scope).area * q.shape[1] * q.shape[2]
