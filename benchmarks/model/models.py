"""The tokenizer as a whole: encode and decode latency, memory, tokens per second, training step; no file I/O.

On one chunk all three also under torch.compile, whose gain this reports.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks import method
from benchmarks.compare import CEILING, Measurement
from tivtok import TivTok, TivTokConfig, Tokens
from tivtok_kernels import ops, timing

FRAMES = (16, 32, 128)

# What the name of a stage under torch.compile ends with.
COMPILED = ", compiled"

# Latency of the paper's T128 in its comparison (seconds, by video frames), measured by its authors on their hardware.
PAPER_SECONDS = {("t128-base", 32): 0.20, ("t128-base", 128): 0.71}


class ModelCase(NamedTuple):
    config: TivTokConfig
    frames: int
    train: bool

    @property
    def title(self) -> str:
        return f"{self.config.name} {self.frames}f"

    @property
    def stages(self) -> tuple[str, ...]:
        if not self.train:
            return ("encode", "decode")
        eager = ("encode", "decode", "training step")
        return (*eager, *(stage + COMPILED for stage in eager))


def model_cases(device: torch.device) -> Iterator[ModelCase]:
    """Presets by length, training and torch.compile on one chunk. On a CPU the presets that finish in seconds."""
    if device.type == "cuda":
        for preset in ("t128", "t512", "t1024"):
            for frames in FRAMES:
                config = TivTokConfig.preset(preset)
                yield ModelCase(config, frames, train=frames == config.chunk_frames)
    else:
        for frames in FRAMES:
            yield ModelCase(TivTokConfig.preset("tiny"), frames, train=frames == 16)
        yield ModelCase(TivTokConfig.preset("t128", "small"), 16, train=False)


def measure_model(case: ModelCase, device: torch.device, seconds: float) -> Measurement:
    """Time the stages of a model with random weights on one random clip, taking turns with the matmul ceiling.

    Inference is bfloat16 on a GPU and float32 on a CPU; the training step autocasts float32 weights on a GPU. In the
    record, ``in_matmuls`` is a stage's time over that of the ceiling's matrix product, and ``attention`` the part of
    encoding's or decoding's time that attention takes (on a CPU: a GPU would have to wait for it).
    """
    torch.manual_seed(0)
    video = torch.rand(1, 3, case.frames, *case.config.native_size, device=device) * 2 - 1
    inference = TivTok(case.config).to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    clip = video.to(next(inference.parameters()).dtype)
    with torch.no_grad():
        tokens = inference.encode(clip)
    calls: dict[str, timing.Call] = {
        "encode": torch.no_grad()(lambda: inference.encode(clip)),
        "decode": torch.no_grad()(lambda: inference.decode(tokens)),
    }
    if case.train:
        calls["training step"] = _training_step(TivTok(case.config).to(device), video)
        encode = torch.compile(inference.encode_chunks)
        decode = torch.compile(_decode)
        calls["encode" + COMPILED] = torch.no_grad()(lambda: encode(clip))
        calls["decode" + COMPILED] = torch.no_grad()(lambda: decode(inference, tokens))
        compiled = TivTok(case.config).to(device)
        compiled.compile()
        calls["training step" + COMPILED] = _training_step(compiled, video)

    for call in calls.values():
        call()
    peaks = {stage: method.peak_bytes(call, device) for stage, call in calls.items()}
    ceiling, _ = method.matmul_ceiling(device, clip.dtype)
    samples = timing.interleave({**calls, CEILING: ceiling}, timing.Stopwatch(device), seconds)
    matmul_s = method.summary(samples[CEILING])["median_s"]
    stages = {stage: method.summary(samples[stage]) | {"peak_bytes": peaks[stage]} for stage in calls}
    for stage in stages.values():
        stage["in_matmuls"] = stage["median_s"] / matmul_s
    if device.type == "cpu":
        for name in ("encode", "decode"):
            stages[name]["attention"] = _share_of_attention(calls[name])
    for name, stage in stages.items():
        if name.startswith(("encode", "decode")):
            stage["tokens_per_s"] = tokens.num_tokens / stage["median_s"]
    record = {
        "frames": case.frames,
        "size": list(case.config.native_size),
        "tokens": tokens.num_tokens,
        "rounds": len(samples["encode"]),
        "stages": stages,
        "paper_s": PAPER_SECONDS.get((case.config.name, case.frames)),
    }
    return Measurement(record, {stage: samples[stage] for stage in calls})


def _decode(model: TivTok, tokens: Tokens) -> torch.Tensor:
    """`TivTok.decode` of all frames, without its bookkeeping of which are wanted and which model made the tokens."""
    groups = [tokens.tv.shape[1]]
    return model.decode_groups(model.prepare(tokens.tiv), tokens.tv, groups, tokens.height, tokens.width)


def _share_of_attention(call: timing.Call) -> float:
    """The part of a call's time that is spent in attention's forward, whichever backend: median of five calls.

    Raises:
        RuntimeError: no attention was seen in the call.
    """
    seconds, shares = 0.0, []
    forward = ops._run_forward  # all ways to a backend's forward end here, those past torch's dispatcher, too

    def timed(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal seconds
        started = time.perf_counter()
        results = forward(*arguments)
        seconds += time.perf_counter() - started
        return results

    ops._run_forward = timed  # type: ignore[assignment]
    try:
        for _ in range(5):
            seconds, started = 0.0, time.perf_counter()
            call()
            shares.append(seconds / (time.perf_counter() - started))
    finally:
        ops._run_forward = forward
    if not min(shares):
        raise RuntimeError("no attention was seen in a call of which its share was to be measured")
    return statistics.median(shares)


def _training_step(model: TivTok, video: torch.Tensor) -> timing.Call:
    """Forward, L1 loss, backward and AdamW on one clip."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(video.device.type, torch.bfloat16, enabled=video.device.type == "cuda"):
            loss = F.l1_loss(model(video), video)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
