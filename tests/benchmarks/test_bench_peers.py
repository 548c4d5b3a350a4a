"""Every peer computes the oracle's mask. Libraries that need a GPU are stood in for by what they document."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention import libraries, peers
from benchmarks.attention.cases import Case, Inputs, make_inputs
from benchmarks.compare import all_peers, disagreement, measure, run, truth
from tivtok_kernels import RangeLayout, Scope, SifLayout

CPU = torch.device("cpu")

LAYOUTS = {
    "uniform": SifLayout.uniform(batch=2, num_tiv=3, num_frames=3, frame_tokens=5),
    "one clip": SifLayout.uniform(batch=1, num_tiv=4, num_frames=2, frame_tokens=6),
    "ragged": SifLayout.from_lengths([4, 2, 5], [[6, 3], [5, 0, 7], [4] * 3]),
}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> SifLayout:
    return LAYOUTS[request.param]


@pytest.fixture(params=("clip", "tiv", "broadcast"))
def scope(request) -> Scope:
    return request.param


def check(peer: peers.Peer, layout: SifLayout | RangeLayout, scope: Scope, backward: bool) -> None:
    case = Case("tiny", layout, scope, torch.float32, backward, heads=2, head_dim=8)
    inputs = make_inputs(case, CPU)
    results = run(peer.prepare(case, CPU), inputs, backward)
    assert len(results) == (1 + len(inputs.leaves()) if backward else 1)
    assert disagreement(results, truth(case, inputs), case.dtype) is None


def peer_named(start: str) -> peers.Peer:
    (peer,) = (peer for peer in all_peers() if peer.name.startswith(start))
    return peer


@pytest.mark.parametrize("name", [peers.DENSE, peers.COPIED, "tivtok sdpa", "tivtok reference"])
@pytest.mark.parametrize("backward", [False, True])
def test_cpu_peers(name: str, layout: SifLayout, scope: Scope, backward: bool) -> None:
    check(peer_named(name), layout, scope, backward)


MASKS = {
    "windows": LAYOUTS["ragged"].frame_windows(1, 0),
    "prefix": RangeLayout.shared_prefix([3], [[2, 4]], prefix_queries=False),
    "cross": RangeLayout.cross([3, 4], [2, 5]),
}


@pytest.mark.parametrize("name", [peers.DENSE, peers.COPIED, "tivtok sdpa", "tivtok reference"])
@pytest.mark.parametrize("mask", MASKS)
def test_peers_with_other_masks(name: str, mask: str) -> None:
    check(peer_named(name), MASKS[mask], "ranges", backward=True)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_uncompiled(layout: SifLayout, scope: Scope, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    check(peer_named("FlexAttention"), layout, scope, backward=False)


def per_sequence(s: libraries.Sequences) -> list[tuple[slice, slice]]:
    """Rows and columns of each packed sequence."""
    bounds = (pairwise(starts.tolist()) for starts in (s.row_starts, s.column_starts))
    return [(slice(*rows), slice(*columns)) for rows, columns in zip(*bounds, strict=True)]


def flash_forward(q: Tensor, k: Tensor, v: Tensor, s: libraries.Sequences) -> tuple[Tensor, Tensor]:
    assert s.longest_row == max(r.stop - r.start for r, _ in per_sequence(s))
    assert s.longest_column == max(c.stop - c.start for _, c in per_sequence(s))
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    for rows, columns in per_sequence(s):
        scores = torch.einsum("nhd,mhd->hnm", q[rows], k[columns]) / q.shape[-1] ** 0.5
        out[rows] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v[columns])
        lse[:, rows] = scores.logsumexp(-1)
    return out, lse


def flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, s: libraries.Sequences
) -> tuple[Tensor, ...]:
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for rows, columns in per_sequence(s):
        weights = (torch.einsum("nhd,mhd->hnm", q[rows], k[columns]) * scale - lse[:, rows, None]).exp()
        dweights = torch.einsum("nhd,mhd->hnm", dout[rows], v[columns])
        delta = (dout[rows] * out[rows]).sum(-1).T[..., None]
        dscores = weights * (dweights - delta) * scale
        dq[rows] = torch.einsum("hnm,mhd->nhd", dscores, k[columns])
        dk[columns] = torch.einsum("hnm,nhd->mhd", dscores, q[rows])
        dv[columns] = torch.einsum("hnm,nhd->mhd", weights, dout[rows])
    return dq, dk, dv


@pytest.mark.parametrize("backward", [False, True])
def test_three_flash_calls_merge(layout: SifLayout, scope: Scope, backward: bool, monkeypatch) -> None:
    monkeypatch.setattr(libraries, "flash_forward", flash_forward)
    monkeypatch.setattr(libraries, "flash_backward", flash_backward)
    check(peer_named("torch varlen"), layout, scope, backward)


def test_flash_attention_2_sequences(layout: SifLayout, scope: Scope, monkeypatch) -> None:
    module = ModuleType("flash_attn")

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        s = libraries.Sequences(slice(None), slice(None), cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return flash_forward(q, k, v, s)[0]

    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    check(peer_named("flash-attn 2"), layout, scope, backward=False)


def masked(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """q, k, v (rows, H, D) under a dense mask."""
    return F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), attn_mask=visible).transpose(0, 1)


def test_a_wrong_peer_is_refused_and_never_timed() -> None:
    def ignores_the_mask(x: Inputs) -> Tensor:
        return masked(x.q, x.k, x.v, torch.ones(len(x.q), len(x.k), dtype=torch.bool))

    def breaks(case: Case, device: torch.device) -> peers.Attention:
        raise RuntimeError("no such kernel")

    case = Case("tiny", LAYOUTS["ragged"], "clip", torch.float32, heads=2, head_dim=8)
    line_up = [
        peer_named("tivtok sdpa"),
        peers.Peer("wrong", lambda case, device: None, lambda case, device: ignores_the_mask),
        peers.Peer("broken", lambda case, device: None, breaks),
        peers.Peer("absent", lambda case, device: "not installed", breaks),
    ]
    record, samples = measure(case, CPU, seconds=0.0, peers=line_up)
    assert set(record["peers"]) == set(samples) == {"tivtok sdpa"}
    assert "output is off by" in record["refused"]["wrong"]
    assert record["refused"]["broken"] == "RuntimeError: no such kernel"
    assert record["left_out"] == {"absent": "not installed"}


def test_nan_is_refused() -> None:
    assert disagreement([torch.tensor([float("nan")])], [torch.ones(1)], torch.float32) is not None


def test_flops_count_the_visible_area() -> None:
    layout = LAYOUTS["ragged"]
    for scope in ("clip", "tiv", "broadcast"):
        visible = int(layout.visibility(scope).sum())
        forward = Case("tiny", layout, scope, torch.float32, heads=2, head_dim=8)
        assert forward.flops == 4 * visible * 8 * 2
