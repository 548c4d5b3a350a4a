"""Instructions executed by one small `sif_attention` call: a regression guard for the host path without noise."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from torch.utils.benchmark import Timer

from benchmarks.compare import Record

_CALLS = 20

# So small that checks, dispatch and planning are what is counted. The warm calls fill caches.
_SETUP = """
import torch
from tivtok_kernels import SifLayout, sif_attention
layout = SifLayout.uniform(batch=1, num_tiv=4, num_frames=2, frame_tokens=8)
q = torch.ones(20, 2, 16)
for _ in range(20):
    sif_attention(q, q, q, layout)
"""


def why_not() -> str | None:
    return None if shutil.which("valgrind") else "valgrind is not installed"


def measure_instructions() -> Record:
    """Count with valgrind's callgrind; importing torch under it takes a minute or two."""
    if reason := why_not():
        return {"left_out": reason}
    with _this_python_first():
        stats = Timer("sif_attention(q, q, q, layout)", _SETUP).collect_callgrind(number=_CALLS, collect_baseline=False)
    return {"instructions_per_call": stats.counts() // _CALLS}


@contextmanager
def _this_python_first():
    """collect_callgrind starts "python": make that this interpreter, with this checkout importable."""
    before = {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH")}
    first = {"PATH": Path(sys.executable).parent, "PYTHONPATH": Path(__file__).parents[2]}
    os.environ.update({name: os.pathsep.join(filter(None, (str(first[name]), before[name]))) for name in first})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
