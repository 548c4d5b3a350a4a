"""Packing of the backward's arguments, with an extension that records; a GPU is pretended."""

import importlib.util
import re
import sys
from pathlib import Path
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

    def launch(self, stream, arguments):
        self.launched = stream, arguments


@pytest.fixture(params=["ampere", "hopper"])
def launch_backward(request, monkeypatch):
    """The module, on an extension that records."""
    monkeypatch.setattr(Recorder, "made", [])
    fake = SimpleNamespace(HAS_HOPPER=request.param == "hopper", Owner=SimpleNamespace(queries="queries", keys="keys"))
    fake.Shape = fake.Work = fake.Shares = lambda **fields: SimpleNamespace(**fields)
    fake.gradient_tile = lambda engine, owner, head_dim: SimpleNamespace(
        owned=64 if owner == "keys" else 128, walked=32, blocks_per_sm=1
    )
    fake.ForwardPlan = fake.AmpereForward = fake.HopperForward = fake.BackwardPlan = Recorder
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


def check_shares(shares, engine, lists):
    """The persistent kernel's alone, of all items on 64 processors."""
    assert (shares is not None) == (engine == "hopper")
    if shares is not None:
        assert shares.blocks == min(64, lists["queries"].num_tiles * 4 + lists["keys"].num_tiles * 2)
        assert shares.order and shares.bounds


@pytest.mark.parametrize("scope", ["clip", "broadcast"])
@pytest.mark.parametrize("with_dlse", [False, True])
def test_every_argument_by_its_name(launch_backward, scope, with_dlse):
    layout = SifLayout.uniform(1, 64, 16, 64)  # TIV keys are seen by enough rows to be split
    case = make_case(layout, scope, heads=4, kv_heads=2, head_dim=64).to(torch.bfloat16)
    inputs = list(case.inputs.values())
    tiv = tuple(inputs[3:]) or None
    out, lse, dlse = torch.empty_like(case.dout), case.dlse + 1, case.dlse if with_dlse else None
    grads = launch_backward.backward(Call(*inputs[:3], tiv, layout, scope, -0.5), out, lse, case.dout, dlse)
    assert [x.shape for x in grads] == [x.shape for x in inputs]

    (plan,) = Recorder.made
    engine, shape = plan.args
    assert engine == ("hopper" if launch_backward.extension.HAS_HOPPER else "ampere")
    assert [getattr(shape, n) for n in ("dtype", "heads", "group", "head_dim")] == ["bfloat16", 4, 2, 64]
    lists = {name: plan.kwargs[name] for name in ("queries", "keys")}
    assert {name: work.block for name, work in lists.items()} == {"queries": 128, "keys": 64}  # rows per tile
    check_shares(plan.kwargs["shares"], engine, lists)
    stream, arguments = plan.launched
    assert (stream, arguments["scale"], arguments["rows"]) == (77, -0.5, len(out))
    k_tiv, v_tiv = tiv or inputs[1:3]
    strided = {"q": inputs[0], "dout": case.dout, "k": inputs[1], "v": inputs[2], "k_tiv": k_tiv, "v_tiv": v_tiv}
    for name, x in strided.items():
        assert arguments[name] == (x.data_ptr(), *x.stride()[:2])
    names = ("dq", "dk", "dv", "dk_tiv", "dv_tiv")
    pointers = dict(zip(names, grads if tiv else [*grads, *grads[1:]], strict=True)) | {"out": out, "lse": lse}
    assert {name: arguments[name] for name in pointers} == {name: x.data_ptr() for name, x in pointers.items()}
    assert arguments["dlse"] == (dlse.data_ptr() if with_dlse else 0) and arguments["row_stats"]
    assert arguments["part_dk"] and arguments["part_dv"]
    assert bool(arguments["part_dq"]) == (scope == "clip")  # only TIV queries of a clip are split
    stub = Path(tivtok_kernels.cuda.__file__).with_name("extension.pyi").read_text()
    stated = re.search(r"class BackwardArguments(.*?)class", stub, re.DOTALL)[1]
    assert sorted(arguments) == sorted(re.findall(r"^    (\w+):", stated, re.MULTILINE))


def test_an_output_that_hooks_put_elsewhere_is_aligned(launch_backward):
    """As offloading of activations does that packs several into one buffer: rows are read 16 bytes at a time."""
    layout = SifLayout.uniform(1, 8, 2, 8)
    case = make_case(layout, heads=4, kv_heads=2, head_dim=64).to(torch.bfloat16)
    inputs = list(case.inputs.values())
    out = torch.randn(case.dout.numel() + 1).to(torch.bfloat16)[1:].view(case.dout.shape)
    assert out.is_contiguous() and out.data_ptr() % 16
    launch_backward.backward(Call(*inputs, None, layout, "clip", 1.0), out, case.dlse, case.dout, None)
    (plan,) = Recorder.made
    assert plan.launched[1]["out"] % 16 == 0


def test_a_plan_is_not_made_during_a_capture_though_its_lists_are_there(launch_backward, monkeypatch):
    """Another dtype has the same lists, but reads them back, uploads how they are shared out and loads its kernels."""
    layout, device = SifLayout.uniform(1, 9, 2, 7), torch.device("cuda", 0)
    plans = launch_backward._backward_plan, sys.modules["tivtok_kernels.cuda.launch"]._forward_plan
    heads = launch_backward.Heads(4, 2, 64)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for module in (launch_backward, sys.modules["tivtok_kernels.cuda.launch"]):
        for name in {"query_work", "key_work"} & set(vars(module)):
            monkeypatch.setattr(module, name, lambda *given, **options: pytest.fail("went on to the lists"))
    for plan in plans:
        with pytest.raises(RuntimeError, match="run it once before the capture"):
            plan(layout, "clip", heads, torch.float16, device)
