"""The table and the pictures of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from examples.generate.flow import TRIVIAL_LOSS
from examples.generate.measuring import Source
from examples.generate.settings import Settings
from examples.generate.shapes import CLASSES
from tivtok.files import replacing
from tivtok.video import video_to_frames
from tivtok.views.pictures import contact_sheet, enlarge

QUALITY = {
    "class": ("class", "{:.0%}"),
    "on its path": ("on its path", "{:.0%}"),
    "pixels off": ("off its path, pixels", "{:.2f}"),
    "drift": ("drift, levels of 255", "{:.2f}"),
}
COST = {
    "tokens": ("tokens / frame", "{:.2f}"),
    "flops": ("MFLOP / frame", "{:.1f}"),
    "seconds": ("processor ms / frame", "{:.2f}"),
}
UNIT = {"flops": 1e-6, "seconds": 1e3}


def write_report(path: Path, result: dict[str, Any]) -> None:
    """Write ``path`` with the suffixes .json and .md."""
    texts = {".json": json.dumps(result, indent=1) + "\n", ".md": as_markdown(path.name, result)}
    for suffix, text in texts.items():
        with replacing(path.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def as_markdown(name: str, result: dict[str, Any]) -> str:
    """The page of a run whose pictures are called ``name``."""
    settings, measured, training = (result[key] for key in ("settings", "measured", "training"))
    lengths = [str(frames) for frames in settings["lengths"]]
    columns = QUALITY | COST
    lines = [
        "# Generated videos of moving shapes",
        "",
        f"Written by `{result['command']}` on {result['device']}, {result['threads']} thread(s), torch "
        f"{result['torch']}. What is compared: `examples/README.md`.",
        "",
        f"![True and generated videos]({name}.webp)",
        "",
        f"![Every eighth frame of them]({name}.png)",
        "",
        "| | frames | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---|---" + "|---" * len(columns) + "|",
    ]
    for row, of_length in measured.items():
        for frames in lengths:
            values = [
                text.format(of_length[frames][key] * UNIT.get(key, 1)) if key in of_length[frames] else ""
                for key, (_, text) in columns.items()
            ]
            lines.append(f"| {row} | {frames} | " + " | ".join(values) + " |")
    saved = [
        f"{measured['undivided'][lengths[-1]][key] / measured['split'][lengths[-1]][key]:.1f} times the {what}"
        for key, what in {"tokens": "tokens", "flops": "FLOPs", "seconds": "processor time"}.items()
    ]
    lines += [
        "",
        f"At {lengths[-1]} frames *undivided* takes {', '.join(saved[:2])} and {saved[2]} of *split*.",
        "",
        f"{settings['drawn'] * len(CLASSES)} videos in each row. *class*: colour and motion read back are those asked "
        "for. *on its path*: the disc is within 2 pixels RMS of a path of its class; *off its path* is the median "
        "distance. *drift*: RMS change of pixels that the disc never touches, from the first quarter of the video to "
        f"the last. Costs are the generator's: {settings['euler_steps']} Euler steps, processor time with 12 videos at "
        "once.",
        "",
        "| training | steps | loss at the end | processor minutes |",
        "|---|---|---|---|",
    ]
    for part, its in training.items():
        lines.append(f"| {part} | {its['steps']} | {its['loss']:.4f} | {its['seconds'] / 60:.1f} |")
    lines += ["", f"A generator that knows nothing but means and spreads has a loss of {TRIVIAL_LOSS:.3f}.", ""]
    return "\n".join(lines)


def draw_pictures(path: Path, sources: dict[str, Source], settings: Settings) -> None:
    """``path`` with .png: every eighth frame; with .webp: all frames, moving. Of one video in each colour."""
    frames = min(64, max(settings.lengths))
    labels = torch.tensor([0, 4, 8, 9])  # red across, green up and down, blue around, yellow across
    shown = {name: videos(labels, frames) for name, videos in sources.items()}
    rows = {
        f"{name}: {CLASSES[label]}": video_to_frames(shown[name][at])[::8]
        for at, label in enumerate(labels.tolist())
        for name in sources
    }
    numbers = [str(number) for number in range(0, frames, 8)]
    contact_sheet(path.with_suffix(".png"), rows, numbers, "Moving shapes: true, and as generated")
    pictures = [Image.fromarray(frame.numpy()) for frame in _wall(shown)]
    with replacing(path.with_suffix(".webp")) as temporary:
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=80, loop=0, quality=60)


def _wall(shown: dict[str, Tensor]) -> Tensor:
    """A row for each way, its videos side by side: uint8 (F, H, W, 3)."""
    rows = [torch.cat([video_to_frames(video) for video in videos], dim=2) for videos in shown.values()]
    return enlarge(torch.cat(rows, dim=1), 3)
