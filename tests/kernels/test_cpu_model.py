"""The tokenizer on the CPU engine: encode and decode say what they say on the reference backend in float64."""

from functools import partial

import pytest
import torch

from tivtok import TivTok, TivTokConfig
from tivtok.model import decoder, encoder
from tivtok_kernels import broadcast_attention, sif_attention
from tivtok_kernels.cpu import backend
from tivtok_kernels.problem import Problem

if reason := backend.why_not(Problem(torch.device("cpu"))):
    pytest.skip(reason, allow_module_level=True)


@torch.no_grad()
def results(model: TivTok, video: torch.Tensor, name: str, patch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What the model makes of a video with all its attention on the named backend."""
    for module in (encoder, decoder):
        patch.setattr(module, "sif_attention", partial(sif_attention, backend=name))
    patch.setattr(decoder, "broadcast_attention", partial(broadcast_attention, backend=name))
    made = model.encode(video)
    return {"tiv": made.tiv, "tv": made.tv, "video": model.decode(made)}


@pytest.mark.parametrize("kind", ["shared", "per_frame"])
def test_encode_and_decode_are_those_of_the_reference(kind, monkeypatch):
    torch.manual_seed(0)
    model = TivTok(TivTokConfig.preset("tiny").replace(decoder=kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the initialisation, where attention changes next to nothing
            parameter.add_(torch.randn_like(parameter) * 0.05)
    video = torch.rand(1, 3, 16, 64, 64) * 2 - 1
    passes = []
    run = backend._run
    monkeypatch.setattr(backend, "_run", lambda name, *args: (passes.append(name), run(name, *args))[1])

    got = results(model, video, "auto", monkeypatch)
    plain = results(model, video, "reference", monkeypatch)
    truth = results(model.double(), video.double(), "reference", monkeypatch)
    layers = 9 if kind == "shared" else 6  # encoder and decoder, whose TIV rows have passes of their own if shared
    assert passes == ["tivtok_cpu_forward"] * layers
    for name, exact in truth.items():
        allowed = 2 * (plain[name] - exact).abs().max() + 1e-6 * exact.abs().max()
        assert exact.abs().max() > 0.1 and (got[name] - exact).abs().max() <= allowed, name
