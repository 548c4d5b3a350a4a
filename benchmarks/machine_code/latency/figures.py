"""What the latency model takes for granted of an sm_90 SM, each figure with where it was published."""

from __future__ import annotations

from typing import NamedTuple

GUIDE = "CUDA C++ Programming Guide, throughput of native arithmetic instructions, compute capability 9.0"
CHASE = "github.com/HPMLL/NVIDIA-Hopper-Benchmark at ded6f57 (arXiv 2402.13499), H800 PCIe at 1755 MHz"
MT4G = 'report "NVIDIA H100 80GB HBM3" of the topology benchmark MT4G, 1980 MHz'
STUDY = '"CUDA Performance Study, NVIDIA H100 SXM5", 1980 MHz'
SHEET = "NVIDIA H100 data sheet: 989.4 TFLOP/s dense in 16 bits on 132 SMs at 1830 MHz"


class Figure(NamedTuple):
    """A number and its source; without one it is assumed, and ``low`` and ``high`` say between what it is varied."""

    value: float
    unit: str
    source: str = ""
    low: float | None = None
    high: float | None = None


FIGURES = {
    # Throughputs: clocks for which an instruction of one warp keeps its pipe of a sub-partition busy.
    "fma": Figure(1, "clocks", f"{GUIDE}: 128 lanes; {STUDY}: 1.1"),
    "imad": Figure(2, "clocks", f"{GUIDE}: 64 lanes; {STUDY}: 2.1"),
    "alu": Figure(2, "clocks", f"{GUIDE}: 64 lanes for minima, logic, integers, conversions to 16 bits"),
    "mufu": Figure(8, "clocks", f"{GUIDE}: 16 lanes; {STUDY}: 8.5"),
    "memory": Figure(1, "clocks", "", 1, 4),
    "uniform": Figure(2, "clocks", "", 1, 4),
    "tensor": Figure(4096, "FLOP/clock", SHEET),
    "shared": Figure(128, "bytes/clock", "CUDA C++ Programming Guide: 32 banks of 4 bytes"),
    "l2": Figure(18.6, "bytes/clock", f"{MT4G}: 4529 GiB/s read by 132 SMs", 13.7, 37.2),
    # Latencies: from issue to when another instruction may count on the result.
    "shared_latency": Figure(30, "clocks", f"{STUDY}: 28.6; {MT4G}: 29.9; {CHASE}: 32.0"),
    "l2_latency": Figure(264, "clocks", f"{CHASE}: 264; {STUDY}: 260; {MT4G}: 219"),
    "tma_latency": Figure(369, "clocks", f"{CHASE}: 369, of 16 bytes from L2 with arrival and wait"),
    "mufu_latency": Figure(24, "clocks", "", 12, 40),
    "shuffle_latency": Figure(24, "clocks", "", 12, 40),
    "read": Figure(10, "clocks", "", 4, 30),  # until the sources of an instruction may be overwritten
    "barrier": Figure(24, "clocks", "", 8, 60),  # from the last arrival to the first instruction behind the wait
    "fence": Figure(40, "clocks", "", 10, 200),
    "drain": Figure(32, "clocks", "", 0, 128),  # from the last multiplication of a group to the end of its wait
    "queue": Figure(2, "products", "", 1, 16),  # issued in a sub-partition and not begun
}

Machine = dict[str, float]


def machine(**changes: float) -> Machine:
    """The values by name; ``changes`` replaces some.

    Raises:
        ValueError: a change names no figure.
    """
    if unknown := changes.keys() - FIGURES.keys():
        raise ValueError(f"changes must name figures ({', '.join(FIGURES)}), got {', '.join(sorted(unknown))}")
    return {name: figure.value for name, figure in FIGURES.items()} | changes
