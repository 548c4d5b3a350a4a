"""Ceilings, memory and host time of calls; `tivtok_kernels.timing` has the stopwatch."""

from __future__ import annotations

import ctypes
import statistics
import time
from pathlib import Path

import torch

from tivtok_kernels.timing import Call, synchronize


def summary(samples: list[float]) -> dict[str, float]:
    """Median and spread, in seconds."""
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return {"median_s": statistics.median(samples), "p10_s": deciles[0], "p90_s": deciles[-1]}


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> tuple[Call, float]:
    """A large square matrix product and its FLOPs: what the machine reaches where nothing is in the way."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return (lambda: a @ b), 2.0 * size**3


def copy_ceiling(device: torch.device) -> tuple[Call, float]:
    """A large copy and the bytes it reads and writes."""
    source = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 28), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return (lambda: target.copy_(source)), 2.0 * source.nbytes


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Memory that ``call`` needs at its worst beyond what was held before it.

    On a GPU what torch allocates. On a CPU the growth of the process's peak resident set, which Linux lets a process
    reset, from where glibc has given back all free memory; None on other systems.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        call()
        return _status_bytes("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def host_seconds(call: Call, device: torch.device, repeats: int = 30) -> float:
    """Median time for which a call keeps the host busy; on a GPU that is launching it, not waiting for it."""
    samples = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    synchronize(device)
    return statistics.median(samples)


def cuda_graph(call: Call) -> Call:
    """The replay of a captured call: the same kernels without their host overhead.

    Where the end of a capture fails, torch goes on with the stream of the capture and with a generator of random
    numbers that takes itself to be in one: both are put back.
    """
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    stream, generator = torch.cuda.current_stream(), torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        with torch.cuda.graph(graph):
            call()
    except Exception:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(before)
        raise
    return graph.replay
