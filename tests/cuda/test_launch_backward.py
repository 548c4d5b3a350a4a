"""Packing of the backward's arguments, with an extension that records; a GPU is pretended."""

import importlib.util
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from oracle import make_case

import tivtok_kernels.cuda
from tivtok_kernels import SifLayout
from tivtok_kernels.cuda import configs
from tivtok_kernels.problem import Call


class Recorder:
    """Stands in for every class of the extension."""

    made: ClassVar[list] = []

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        self.made.append(self)

    def launch(self, *args):
        self.launched = args


@pytest.fixture(params=["ampere", "hopper"])
def launch_backward(request, monkeypatch):
    """The module, on an extension that records."""
    monkeypatch.setattr(Recorder, "made", [])
    fake = SimpleNamespace(HAS_HOPPER=request.param == "hopper", Work=lambda *args: args)
    for engine in ("Ampere", "Hopper"):
        setattr(fake, f"{engine}Forward", Recorder)
        setattr(fake, f"{engine}Backward", type(f"{engine}Backward", (Recorder,), {}))
        setattr(fake, f"{engine.lower()}_gradient_tile", lambda keys, head_dim: (64 if keys else 128, 32, 1))
    fake.ForwardPlan = fake.BackwardPlan = Recorder
    monkeypatch.setitem(sys.modules, "tivtok_kernels.cuda.extension", fake)
    monkeypatch.setattr(tivtok_kernels.cuda, "extension", fake, raising=False)
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 64)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77, raising=False)
    for name in ("tivtok_kernels.cuda.launch", "tivtok_kernels.cuda.launch_backward"):
        spec = importlib.util.find_spec(name)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("scope", ["clip", "broadcast"])
@pytest.mark.parametrize("with_dlse", [False, True])
def test_addresses_in_the_order_of_the_binding(launch_backward, scope, with_dlse):
    layout = SifLayout.uniform(1, 64, 16, 64)  # TIV keys are seen by enough rows to be split
    case = make_case(layout, scope, heads=4, kv_heads=2, head_dim=64).to(torch.bfloat16)
    inputs = list(case.inputs.values())
    tiv = tuple(inputs[3:]) or None
    out, lse, dlse = torch.empty_like(case.dout), case.dlse + 1, case.dlse if with_dlse else None
    grads = launch_backward.backward(Call(*inputs[:3], tiv, layout, scope, -0.5), out, lse, case.dout, dlse)
    assert [x.shape for x in grads] == [x.shape for x in inputs]

    (plan,) = Recorder.made
    assert type(plan).__name__ == ("HopperBackward" if launch_backward.extension.HAS_HOPPER else "AmpereBackward")
    assert [plan.kwargs[n] for n in ("dtype", "heads", "group", "head_dim")] == ["bfloat16", 4, 2, 64]
    assert plan.kwargs["queries"][4] == 128 and plan.kwargs["keys"][4] == 64  # rows per tile
    scale, rows, stream, addresses = plan.launched
    assert (scale, rows, stream, len(addresses)) == (-0.5, len(out), 77, 30)
    q, k, v = inputs[:3]
    strided = [n for x in (q, case.dout, k, v, *(tiv or (k, v))) for n in (x.data_ptr(), *x.stride()[:2])]
    assert addresses[:20] == [*strided, out.data_ptr(), lse.data_ptr()]
    assert addresses[20] == (dlse.data_ptr() if with_dlse else 0) and addresses[21]
    assert addresses[22:27] == [x.data_ptr() for x in (grads if tiv else [*grads, *grads[1:]])]
    assert all(addresses[28:]) and bool(addresses[27]) == (scope == "clip")  # only TIV queries of a clip are split
