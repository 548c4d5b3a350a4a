"""Loading models onto a device, in a precision."""

from __future__ import annotations

import re

import torch

from tivtok.tokenizer import TivTok

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_NO_DEVICE = (RuntimeError, AssertionError, ImportError)  # torch raises any of these for a missing device


def load_model(path_or_name: str, device: str = "auto", precision: str = "auto", compile: bool = False) -> TivTok:
    """Load a model as `TivTok.from_pretrained` does, and move it to a device.

    Args:
        device: "auto" (the GPU where there is one), the number of a GPU, or any of torch's.
        precision: "float32", "bfloat16", "float16", or "auto": bfloat16 on GPUs that compute in it, else float32. The
            model id is the same in all of them, so that each decodes what another has encoded.
        compile: encode and decode by torch.compile: minutes at first, for each size of frames anew.

    Raises:
        CheckpointError: as `TivTok.from_pretrained`.
        ValueError: the device cannot be used here, or there is no such precision.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision must be one of {', '.join(('auto', *PRECISIONS))}, got {precision!r}")
    device = device_named(device)
    try:
        torch.zeros(1, device=device).tolist()
    except _NO_DEVICE as error:
        raise ValueError(f'device "{device}" cannot be used here: {str(error).splitlines()[0]}') from None
    if precision == "auto":
        fast = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bfloat16" if fast else "float32"
    model = TivTok.from_pretrained(path_or_name).to(device, PRECISIONS[precision])
    if compile:
        model.encoder.compile()
        for name in ("prepare", "groups"):  # the decoder's two calls
            setattr(model.decoder, name, torch.compile(getattr(model.decoder, name)))
    return model


def device_named(name: str) -> str:
    """One of torch's devices, by a name of ours.

    Args:
        name: as of `load_model`.

    Raises:
        ValueError: it is none of these, or there are fewer GPUs.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{name}" if re.fullmatch(r"\d+", name) else name
    try:
        device = torch.device(name)
    except _NO_DEVICE as error:
        raise ValueError(f'device "{name}" cannot be used here: {str(error).splitlines()[0]}') from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f'device "{name}" cannot be used here: PyTorch {torch.__version__} finds {count} NVIDIA GPUs')
    return name
