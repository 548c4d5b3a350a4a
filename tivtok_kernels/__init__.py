"""Attention kernels for "global tokens + local blocks" masks: layouts, backends, operators."""

from tivtok_kernels.api import available_backends, broadcast_attention, plan_attention, range_attention, sif_attention
from tivtok_kernels.backends import BackendUnavailable
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.ranges import RangeLayout, Segment
from tivtok_kernels.version import __version__

__all__ = [
    "BackendUnavailable",
    "RangeLayout",
    "Scope",
    "Segment",
    "SifLayout",
    "__version__",
    "available_backends",
    "broadcast_attention",
    "plan_attention",
    "range_attention",
    "sif_attention",
]
