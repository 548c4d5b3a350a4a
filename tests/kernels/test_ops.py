"""The operators as torch sees them: schema, fake kernel, autograd, torch.compile."""

import pytest
import torch
from oracle import make_case
from torch._dynamo.testing import CompileCounterWithBackend

from tivtok_kernels import SifLayout, broadcast_attention, ops, sif_attention

LAYOUTS = [
    SifLayout.from_lengths([3, 2], [[4, 5], [6]]),
    SifLayout.from_lengths([7], [[2, 3, 4, 5, 6]]),
    SifLayout.from_lengths([2, 4, 6], [[11, 0], [3], [5, 5, 5]]),
    SifLayout.from_lengths([9, 2], [[8, 9], [2, 2, 2]]),
    SifLayout.from_lengths([5, 5, 5, 5], [[3], [4], [5], [6]]),
]


@pytest.mark.parametrize("scope", ["clip", "broadcast"])
def test_opcheck(scope):
    case = make_case(LAYOUTS[0], scope, heads=4, kv_heads=2)
    q, k, v, *tiv = (x.requires_grad_() for x in case.inputs.values())
    k_tiv, v_tiv = tiv or (None, None)
    args = (q, k, v, k_tiv, v_tiv, case.layout.lengths, scope, 0.25, "auto", False, False)
    torch.library.opcheck(torch.ops.tivtok.sif_attention.default, args)

    out, lse = ops.sif_attention(*args)
    detached = [x if x is None else x.detach() for x in (case.dout, case.dlse, *args[:5], out, lse)]
    torch.library.opcheck(torch.ops.tivtok.sif_attention_backward.default, (*detached, *args[5:]))


@pytest.mark.parametrize("scope", ["clip", "tiv", "broadcast"])
def test_new_lengths_do_not_recompile(scope):
    """Forward and backward: one program, and at most one more when sizes turn dynamic, for five layouts."""
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def call(inputs, layout):
        if scope == "broadcast":
            return broadcast_attention(**inputs, layout=layout)
        return sif_attention(**inputs, layout=layout, tiv_scope=scope)

    for layout in LAYOUTS:
        case = make_case(layout, scope)
        leaves = {n: x.requires_grad_() for n, x in case.inputs.items()}
        out = call(leaves, layout)
        grads = torch.autograd.grad(out, list(leaves.values()), case.dout)
        if scope == "broadcast":
            expected = broadcast_attention(**leaves, layout=layout)
        else:
            expected = sif_attention(**leaves, layout=layout, tiv_scope=scope)
        torch.testing.assert_close(out, expected)
        for got, want in zip(grads, torch.autograd.grad(expected, list(leaves.values()), case.dout), strict=True):
            torch.testing.assert_close(got, want)
    assert counter.frame_count <= 2


def test_unused_lse_costs_no_gradient_of_its_own(monkeypatch):
    """Without a gradient for the LSE the backend must be told so, not handed zeros."""
    from tivtok_kernels import sdpa

    seen = []
    original = sdpa.backward
    monkeypatch.setattr(sdpa, "backward", lambda *given: seen.append(given[-1]) or original(*given))
    case = make_case(LAYOUTS[0])
    q, k, v = (x.requires_grad_() for x in case.inputs.values())
    sif_attention(q, k, v, LAYOUTS[0], backend="sdpa").sum().backward()
    sif_attention(q, k, v, LAYOUTS[0], backend="sdpa", return_lse=True)[1].sum().backward()
    assert seen[0] is None and seen[1] is not None
