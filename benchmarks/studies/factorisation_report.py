"""Tables and pictures of `benchmarks.studies.factorisation`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.dumps import beside, read_json
from tivtok.files import replacing
from tivtok.video import video_to_frames

FRAMES_SHOWN = 8
ROWS = (
    "still picture",
    "full",
    "frozen TV",
    "others' change of TV",
    "TV tokens' worth",
    "clock",
    "own tokens: motion with the clip",
    "swap: motion with the TV clip",
    "swap: motion with the TIV clip",
    "TIV alone, against the still picture",
    "full, against the still picture",
    "reversal: TIV distance",
    "reversal: dB lost with the forward TIV",
    "reversal: motion with the backward clip",
    "reversal: motion with the forward clip",
)
QUALITY = (
    "still picture",
    "one set",
    "resampling, numbers of one set",
    "DCT, numbers of one set",
    "DCT, divided alike, one set",
    "own sets",
    "resampling, numbers of own sets",
    "DCT, numbers of own sets",
    "DCT, divided alike, own sets",
)


def write_report(path: Path) -> None:
    """The tables of a results file, as Markdown beside it."""
    record = read_json(path)
    summary, settings = record["summary"], record["settings"]
    model = settings["model"]
    chunk = model["patch"][0] * model["groups_per_chunk"]
    lines = [
        "# What TIV and TV tokens hold",
        "",
        f"Model {model['name']}, id `{settings['model_id']}`: {model['num_tiv']} TIV tokens and {model['num_tv']} TV "
        f"tokens per frame group, of {model['latent_dim']} numbers each. {settings['data']}",
        "",
        "Written by `python -m benchmarks.studies factorisation`; docs/factorisation.md says what the rows mean. Means "
        "over sources of their clips' means.",
        "",
        *_table(f"{chunk} frames", ROWS, summary),
    ]
    for frames in sorted((key for key in summary["all"] if key.isdigit()), key=int):
        at_length = {name: values[frames] for name, values in summary.items() if frames in values}
        lines += ["", *_table(f"{frames} frames, PSNR dB", QUALITY, at_length)]
        if int(frames) > chunk:
            lost = [f"{v['own sets'] - v['one set']:.2f}" for v in at_length.values()]
            lines += [f"| lost by sharing | {' | '.join(lost)} |"]
    shown = [beside(path, f"-{bucket}.png") for bucket in ("still", "slow", "fast")]
    rows = "original, reconstruction, TIV only, TV adds, another clip, TIV of the first with TV of the other"
    lines += ["", *(f"![{picture.stem}: {rows}]({picture.name})" for picture in shown if picture.exists())]
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n")


def _table(title: str, rows: tuple[str, ...], columns: Mapping[str, dict[str, Any]]) -> list[str]:
    def cell(values: dict[str, Any], row: str) -> str:
        return "" if values.get(row) is None else f"{values[row]:.4f}" if "distance" in row else f"{values[row]:.2f}"

    heads = [f"{name} ({values['clips']} of {values['sources']})" for name, values in columns.items()]
    return [
        f"| {title}; clips of sources | {' | '.join(heads)} |",
        f"|---{'|---' * len(heads)}|",
        *(
            f"| {row} | {' | '.join(cell(values, row) for values in columns.values())} |"
            for row in rows
            if any(row in values for values in columns.values())
        ),
    ]


def draw(pictures: Mapping[str, Mapping[str, Tensor]], folder: Path, name: str) -> None:
    """One picture per bucket: a row per video (3, F, H, W), some of its frames side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for bucket, rows in pictures.items():
        figure, axes = pyplot.subplots(len(rows), 1, figsize=(FRAMES_SHOWN, 1.15 * len(rows)), layout="constrained")
        for axis, (title, video) in zip(axes, rows.items(), strict=True):
            frames = video_to_frames(video)
            shown = frames[:: max(1, len(frames) // FRAMES_SHOWN)][:FRAMES_SHOWN]
            axis.imshow(shown.permute(1, 0, 2, 3).flatten(1, 2).numpy())
            axis.set_title(title, fontsize=7, loc="left", pad=2)
            axis.axis("off")
        with replacing(folder / f"{name}-{bucket}.png") as temporary:
            figure.savefig(temporary, dpi=100, format="png")
        pyplot.close(figure)
