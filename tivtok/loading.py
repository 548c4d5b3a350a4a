"""Loading models onto a device, in a precision."""

from __future__ import annotations

import torch

from tivtok.tokenizer import TivTok

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(path_or_name: str, device: str = "auto", precision: str = "auto", compile: bool = False) -> TivTok:
    """Load a model as `TivTok.from_pretrained` does, and move it to a device.

    Args:
        device: "auto" (the GPU where there is one) or any of torch's.
        precision: "float32", "bfloat16", "float16", or "auto": bfloat16 on GPUs that compute in it, else float32. The
            model id is the same in all of them, so that each decodes what another has encoded.
        compile: encode and decode by torch.compile: minutes at first, for each size of frames anew.

    Raises:
        CheckpointError: as `TivTok.from_pretrained`.
        ValueError: the device cannot be used here, or there is no such precision.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision must be one of {', '.join(('auto', *PRECISIONS))}, got {precision!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch raises any of these for a missing device
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
