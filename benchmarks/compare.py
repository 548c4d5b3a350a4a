"""One case, every peer: checked against the truth first, then timed in turn, with the reasons of those left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import method
from benchmarks.attention.cases import Case, Inputs, make_inputs
from benchmarks.attention.libraries import library_peers
from benchmarks.attention.peers import Attention, Peer, default_peer, own_attention, own_peers, torch_peers
from tivtok_kernels import timing

CEILING = "matmul ceiling"

# Largest error against the truth, over the truth's largest value. It tells a wrong mask or a broken kernel from a right
# one; the error budgets proper are the test suite's.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}

# The oracle is the truth while its float64 scores stay below this, the SDPA backend in higher precision above.
_ORACLE_BYTES = 256 << 20

Record = dict[str, Any]


class Measurement(NamedTuple):
    """A JSON-ready record, and the seconds of every round of every peer in it."""

    record: Record
    samples: dict[str, list[float]]


def all_peers() -> list[Peer]:
    return own_peers() + torch_peers() + library_peers()


def run(attention: Attention, inputs: Inputs, backward: bool) -> list[Tensor]:
    """The output and, with ``backward``, the gradients of all inputs."""
    out = attention(inputs)
    return [out, *torch.autograd.grad(out, inputs.leaves(), inputs.dout)] if backward else [out]


def truth(case: Case, inputs: Inputs) -> list[Tensor]:
    """Compute what `run` should return, in float64 (on a GPU, beyond the oracle's reach, in float32)."""
    small = 8 * case.heads * case.rows * case.columns <= _ORACLE_BYTES
    high = torch.float64 if small or inputs.q.device.type == "cpu" else torch.float32
    exact = Inputs(*(None if t is None else t.detach().to(high).requires_grad_(case.backward) for t in inputs))
    backend = "reference" if small else "sdpa"

    return [t.detach() for t in run(own_attention(case, backend), exact, case.backward)]


def disagreement(results: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> str | None:
    """Say what is wrong with the results, None if they are within the tolerance. NaN is wrong."""
    names = ("output", "dq", "dk", "dv", "dk_tiv", "dv_tiv")
    for name, result, exact in zip(names, results, expected, strict=False):
        if result.shape != exact.shape:
            return f"{name} has shape {tuple(result.shape)}, expected {tuple(exact.shape)}"
        error = float((result.detach().to(exact.dtype) - exact).abs().max() / exact.abs().max())
        if not error <= TOLERANCE[dtype]:
            return f"{name} is off by {error:.1e} of its largest value, {TOLERANCE[dtype]:.0e} allowed"
    return None


def measure(case: Case, device: torch.device, seconds: float, peers: Sequence[Peer] | None = None) -> Measurement:
    """Check and time all peers on one case.

    Args:
        seconds: roughly how long the interleaved rounds take.
        peers: by default all of them.

    Returns:
        A record with ``peers`` (name -> times and rates), ``left_out`` (name -> why it cannot express or run the case)
        and ``refused`` (name -> why it failed or disagreed with the truth; it was not timed).
    """
    # On a GPU two sets in rotation, so that no call finds its own inputs in a cache.
    rotation = [make_inputs(case, device, seed) for seed in range(2 if device.type == "cuda" else 1)]
    expected = truth(case, rotation[0])
    left_out, refused, calls, results = {}, {}, {}, {}
    for peer in all_peers() if peers is None else peers:
        if reason := peer.why_not(case, device):
            left_out[peer.name] = reason
            continue
        try:
            attention, results[peer.name] = _prepare(peer, case, rotation[0], expected)
        except Exception as error:  # whatever a foreign library raises: it is reported, and the others are measured
            refused[peer.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        calls[peer.name] = _rotating(attention, rotation, case.backward)
    for name, call in calls.items():
        results[name]["peak_bytes"] = method.peak_bytes(call, device)
        if device.type == "cuda":
            results[name] |= _host_and_graph(call, device)

    ceiling, ceiling_flops = method.matmul_ceiling(device, case.dtype)
    samples = timing.interleave({**calls, CEILING: ceiling}, timing.Stopwatch(device), seconds)
    ceiling_rate = ceiling_flops / method.summary(samples[CEILING])["median_s"]
    for name in calls:
        results[name] |= method.summary(samples[name])
        rate = case.flops / results[name]["median_s"]
        results[name] |= {"flops_per_s": rate, "of_ceiling": rate / ceiling_rate}
    record = {
        "flops": case.flops,
        "tokens": case.columns,
        "default": default_peer(case, device),
        "rounds": len(samples[CEILING]),
        "ceiling_flops_per_s": ceiling_rate,
        "peers": {name: results[name] for name in calls},
        "left_out": left_out,
        "refused": refused,
    }
    return Measurement(record, {name: samples[name] for name in calls})


class WrongResult(AssertionError):
    """A peer that disagrees with the truth."""


def _prepare(peer: Peer, case: Case, inputs: Inputs, expected: list[Tensor]) -> tuple[Attention, Record]:
    """Build the peer, run it once (which is when it compiles), and refuse it if it is wrong."""
    device = inputs.q.device
    started = time.perf_counter()
    attention = peer.prepare(case, device)
    timing.synchronize(device)
    prepared = time.perf_counter()
    outcome = run(attention, inputs, case.backward)
    timing.synchronize(device)
    called = time.perf_counter()
    if wrong := disagreement(outcome, expected, case.dtype):
        raise WrongResult(wrong)
    return attention, {"prepare_s": prepared - started, "first_call_s": called - prepared}


def _rotating(attention: Attention, rotation: list[Inputs], backward: bool) -> timing.Call:
    turn = 0

    def call() -> None:
        nonlocal turn
        turn += 1
        run(attention, rotation[turn % len(rotation)], backward)

    return call


def _host_and_graph(call: timing.Call, device: torch.device) -> Record:
    """Host time of a call, and its device time replayed from a CUDA graph (None where it cannot be captured)."""
    host = method.host_seconds(call, device)
    watch = timing.Stopwatch(device)
    try:
        replay = method.cuda_graph(call)
        graph = timing.interleave({"graph": replay}, watch, seconds=0.0)["graph"]
    except Exception:  # synchronising calls, private streams, allocations: capture fails in many ways
        torch.cuda.synchronize(device)
        return {"host_s": host, "graph_s": None}
    return {"host_s": host, "graph_s": method.summary(graph)["median_s"]}
