"""Quality against bytes: coded tokens, and H.264 and AV1 at no more bytes, clip by clip."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.dumps import beside
from benchmarks.studies.record import Record, fingerprint
from tivtok.files import replacing
from tivtok.metrics import PROTOCOL, psnr
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.codecs import Codec, Codecs, Coded
from tivtok.tokens.format import PACKED
from tivtok.video import VideoReader, find_videos, fit, frames_to_video, video_to_frames

# Times the step of the calibration: where the curve is looked at.
STEPS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
# Encoder -> its options, and its coarsest quantiser.
VIDEO_CODECS: dict[str, tuple[dict[str, str], int]] = {
    "libx264": ({"preset": "veryslow", "x264-params": "log-level=none"}, 51),
    "libsvtav1": ({"preset": "4"}, 63),
}
NAMES = {"libx264": "H.264 (x264 veryslow)", "libsvtav1": "AV1 (SVT-AV1 preset 4)"}

out = Console(highlight=False, markup=False)


def coded(
    data: Annotated[Path, typer.Option(help="A folder of clips that neither training nor calibration has seen.")],
    model: Annotated[str, typer.Option(help="A checkpoint that `tivtok calibrate` was run on.")] = "tiny",
    only: Annotated[list[str] | None, typer.Option(help="Name patterns of the clips; all by default.")] = None,
    frames: Annotated[int, typer.Option(help="Of each clip, from its start; shorter clips are taken whole.")] = 64,
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
    note: Annotated[str, typer.Option(help="Kept with the numbers: what the clips are.")] = "",
) -> None:
    """PSNR against bytes, one TIV set a clip, beside video codecs at the same bytes. Goes on where it was stopped."""
    tokenizer = TivTok.from_pretrained(model)
    calibration = Calibration.from_pretrained(model)
    settings = {
        "model": f"{tokenizer.config.name}, id {tokenizer.model_id}",
        "step": calibration.codecs.tv.parameters()["step"],
        "steps": STEPS,
        "size": list(tokenizer.config.native_size),
        "frames": frames,
        "data": note,
        "clips": fingerprint(data),
        "only": only,
        "protocol": PROTOCOL,
    }
    record = Record.open(results / "coded.json.gz", settings)
    chosen = [path for path in find_videos(data) if any(fnmatch(path.name, pattern) for pattern in only or ["*"])]
    if not chosen:
        raise ValueError(f"there are no clips in {data} by the names {only or ['*']}")
    for path in chosen:
        if path.stem not in record.measured:
            reader = VideoReader(path, allow_truncated=True)
            clip = fit(next(iter(reader.chunks(frames))), *tokenizer.config.native_size)
            record.add(path.stem, measure(tokenizer, calibration, clip))
            out.print(f"measured {path.stem}")
    with replacing(beside(record.path, ".md")) as temporary:
        temporary.write_text(report(record.settings, record.measured))
    plot(record.settings, record.measured, beside(record.path, ".png"))
    out.print(f"wrote {record.path}, .md and .png", soft_wrap=True)


@torch.no_grad()
def measure(model: TivTok, calibration: Calibration, clip: Tensor) -> dict[str, Any]:
    """[bytes, dB] of uint8 frames (F, H, W, 3) as tokens of each kind, and by codec at no more bytes than each."""
    tokens = model.encode(frames_to_video(clip)[None])
    plain = video_to_frames(model.decode(tokens)[0])
    rows: dict[str, Any] = {"float16": {"tokens": [2 * tokens.num_values, _psnr(plain, clip)]}}
    kinds = {"int8": tokens.stored("int8")}
    kinds |= {f"{s:g}": tokens.stored("coded", with_step(calibration, s)) for s in STEPS}
    for kind, (stored, _) in kinds.items():
        again = Tokens.from_stored(stored, {name: getattr(tokens, name) for name in _SCALARS})
        rows[kind] = {"tokens": [len(stored[PACKED]), _psnr(video_to_frames(model.decode(again)[0]), clip)]}
    for codec in VIDEO_CODECS:
        known: dict[int, list[float]] = {}
        for row in rows.values():
            row[codec] = best_within(codec, clip, row["tokens"][0], known)
    return rows


_SCALARS = ("num_frames", "height", "width", "fps", "preset", "model_id")


def with_step(calibration: Calibration, times: float) -> Calibration:
    """The same channels, quantised in steps that are so many times as long."""
    tiv, tv = (_with_step(codec, times) for codec in calibration.codecs)
    return Calibration(Codecs(tiv, tv), calibration.model_id)


def best_within(
    codec: str, clip: Tensor, limit: int, known: dict[int, list[float]] | None = None
) -> list[float] | None:
    """[bytes, dB] of the finest quantiser that takes at most ``limit`` bytes; None where the coarsest takes more.

    Args:
        known: [bytes, dB] of this clip by quantiser, as far as they are known; grows.
    """
    known = {} if known is None else known
    low, high, best = 0, VIDEO_CODECS[codec][1] + 1, None
    while low < high:
        middle = (low + high) // 2
        if middle not in known:
            packets, size = encode(codec, clip, middle)
            known[middle] = [size, _psnr(torch.from_numpy(np.stack(list(decode(packets)))), clip)]
        if known[middle][0] <= limit:
            best, high = known[middle], middle
        else:
            low = middle + 1
    return best


def encode(codec: str, clip: Tensor, crf: int) -> tuple[bytes, int]:
    """The clip in a container, and the bytes of its packets alone: a container is no part of the comparison."""
    file, size = io.BytesIO(), 0
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(25), options=VIDEO_CODECS[codec][0] | {"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        frames = [av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24") for frame in clip]
        for frame in [*frames, None]:
            for packet in stream.encode(frame):
                size += packet.size - _remarks(bytes(packet), codec)
                container.mux(packet)
    return file.getvalue(), size


def _remarks(packet: bytes, codec: str) -> int:
    """Bytes of x264's remark on itself, some 700: supplemental information, which no decoder needs."""
    units = packet.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:] if codec == "libx264" else []
    return sum(len(unit) + 3 for unit in units if unit and unit[0] & 31 == 6)


def decode(data: bytes) -> Iterator[np.ndarray]:
    """The frames, uint8 (H, W, 3)."""
    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def report(settings: dict[str, Any], measured: dict[str, Any]) -> str:
    """The means over clips as Markdown."""
    height, width = settings["size"]
    lines = [
        "# Coded tokens: quality against bytes",
        "",
        f"Model {settings['model']}, {width}x{height}, {settings['frames']} frames at most, one TIV set. "
        f"{settings['data']}",
        "",
        "Written by `python -m benchmarks.studies coded`. Means over clips of PSNR in dB. Bytes are those of the "
        "packed tokens and of the packets, neither with its container. A codec has the finest quantiser that takes no "
        "more bytes, in each clip; clips that its coarsest cannot make so small are left out of its column.",
        "",
        "![PSNR against bytes](coded.png)",
        "",
        f"| tokens | bytes a clip | PSNR | {' | '.join(f'{NAMES[c]}: tokens, codec, clips' for c in VIDEO_CODECS)} |",
        "|---|---|---|" + "---|" * len(VIDEO_CODECS),
    ]
    for kind in next(iter(measured.values()), {}):
        rows = [clip[kind] for clip in measured.values()]
        cells = [_against([(row["tokens"], row[codec]) for row in rows]) for codec in VIDEO_CODECS]
        size, quality = np.mean([row["tokens"] for row in rows], axis=0)
        name = kind if kind in ("float16", "int8") else f"coded, {settings['step'] * float(kind):.3g} a step"
        lines.append(f"| {name} | {size:,.0f} | {quality:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _against(pairs: list[tuple[list[float], list[float] | None]]) -> str:
    both = [(tokens[1], codec[1]) for tokens, codec in pairs if codec is not None]
    if not both:
        return "none so small"
    ours, theirs = np.mean(both, axis=0)
    return f"{ours:.2f}, {theirs:.2f}, {len(both)}"


def plot(settings: dict[str, Any], measured: dict[str, Any], path: Path) -> None:
    """PSNR against bytes, means over all clips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    kinds = list(next(iter(measured.values())))
    packed = [kind for kind in kinds if kind not in ("float16", "int8")]
    axis.plot(*_curve(measured, packed, "tokens"), "o-", label="coded tokens")
    for kind, marker in (("int8", "s"), ("float16", "^")):
        axis.plot(*_curve(measured, [kind], "tokens"), marker, label=f"{kind} tokens")
    for codec in VIDEO_CODECS:
        axis.plot(*_curve(measured, kinds, codec), ".--", label=NAMES[codec])
    axis.set(xscale="log", xlabel="bytes a clip, without containers (mean)", ylabel="PSNR in dB (mean)")
    axis.set_title(f"Quality against bytes, {settings['model']}", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def _curve(measured: dict[str, Any], kinds: list[str], of: str) -> tuple[list[float], list[float]]:
    """Bytes and dB by kind of tokens, ascending; kinds that not all clips could be made as small as are left out."""
    rows = [[clip[kind][of] for clip in measured.values()] for kind in kinds]
    points = sorted(np.mean(row, axis=0).tolist() for row in rows if None not in row)
    return [size for size, _ in points], [quality for _, quality in points]


def _with_step(codec: Codec, times: float) -> Coded:
    stated = codec.parameters()
    mean = np.array(stated["centres"]) / 8 * stated["step"]
    std = 2.0 ** (np.array(stated["scales"]) / 4 - 2) * stated["step"]
    return Coded.fitted(mean, std, times * stated["step"])


def _psnr(frames: Tensor, clip: Tensor) -> float:
    return round(float(psnr(frames, clip).clamp(max=100).mean()), 4)
