"""The flex backend on the CPU, without torch.compile. FlexAttention refuses gradients there, though they are right."""

import pytest
import torch
from oracle import make_case, run

from tivtok_kernels import BackendUnavailable, RangeLayout, SifLayout, backends, flex, sif_attention
from tivtok_kernels.problem import Problem

RAGGED = SifLayout.from_lengths([3, 0, 150, 2], [[4, 20, 0], [7, 0, 260], [133, 290], []])


@pytest.mark.parametrize("scope", ["clip", "tiv", "broadcast"])
def test_against_the_oracle(scope, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex, "why_not", lambda problem: None)
    backends.choose.cache_clear()
    case = make_case(RAGGED, scope, heads=2, kv_heads=1)
    got, truth = run(case, "flex"), run(case.to(torch.float64), "reference")
    backends.choose.cache_clear()
    for name in truth:
        torch.testing.assert_close(got[name].double(), truth[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("scope", ["clip", "tiv", "broadcast"])
def test_blocks_are_counted_without_a_dense_mask(scope):
    layout = RAGGED.ranges(scope)
    dense = layout.visibility().long()
    rows, keys = (-(-n // flex.BLOCK) * flex.BLOCK for n in dense.shape)
    padded = torch.nn.functional.pad(dense, (0, keys - dense.shape[1], 0, rows - dense.shape[0]))
    blocks = padded.view(rows // flex.BLOCK, flex.BLOCK, keys // flex.BLOCK, flex.BLOCK).sum((1, 3))
    assert flex.visible_per_block(layout).tolist() == blocks.tolist()
    assert (blocks == flex.BLOCK**2).any() and (blocks == 0).any()


def test_gradients_on_the_cpu_are_refused():
    layout = RangeLayout.documents([3, 4])
    with pytest.raises(BackendUnavailable, match='"flex" cannot run this call: FlexAttention has no backward'):
        backends.choose("attention", "flex", Problem(torch.device("cpu"), direction="backward"))
    x = torch.zeros(layout.q_rows, 1, 16, requires_grad=True)
    out = sif_attention(x, x, x, SifLayout.from_lengths([3], [[4]]), backend="flex")
    with pytest.raises(BackendUnavailable, match="no backward on the CPU"):
        out.sum().backward()


def test_auto_does_not_take_it_on_the_cpu():
    assert "flex" not in backends._auto_order("attention", Problem(torch.device("cpu")))
    assert "flex" in backends._auto_order("attention", Problem(torch.device("xpu")))
