"""Scope-induced attention for other projects: ``from tivtok.attention import SifLayout, sif_attention``.

A front for `tivtok_kernels`; it needs nothing else of the tokenizer.
"""

from tivtok_kernels import (
    BackendUnavailable,
    RangeLayout,
    SifLayout,
    available_backends,
    broadcast_attention,
    plan_attention,
    range_attention,
    sif_attention,
)

__all__ = [
    "BackendUnavailable",
    "RangeLayout",
    "SifLayout",
    "available_backends",
    "broadcast_attention",
    "plan_attention",
    "range_attention",
    "sif_attention",
]
