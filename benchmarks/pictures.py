"""Draw who sees whom: ``python -m benchmarks.pictures`` writes README's picture and the one of docs/masks.md."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from benchmarks.attention.cases import masks
from tivtok.attention import SifLayout
from tivtok.files import replacing
from tivtok_kernels import RangeLayout

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CELL, MARGIN, GAP, CAPTION = 14, 66, 46, 30  # pixels
RANGE_A, RANGE_B, HIDDEN = "#4477aa", "#ee9933", "#e8e8e8"

Names = list[tuple[str, int]]  # of tokens: a name and how many it has, in row order

CLIP: Names = [("TIV", 3), *((f"frame {i}", 4) for i in range(1, 5))]
FRAMES: Names = [("TIV", 2), *((f"frame {i}", 2) for i in range(1, 6))]
DOCUMENTS: Names = [("doc 1", 3), ("doc 2", 5), ("doc 3", 2)]
CONTINUED: Names = [("a", 2), ("b", 3), ("c", 1)]
PREFIX: Names = [("prefix", 4), *CONTINUED]
NUMBERS: Names = [(name.removeprefix("frame "), count) for name, count in FRAMES]
BLOCKS: Names = [(f"{kind} {i}", 2) for kind in ("noisy", "clean") for i in range(1, 4)]
RUNS: Names = [("run 1", 3), ("run 2", 2), ("run 3", 4)]

# Queries and keys of each of `masks`, whose unit here is one token.
NAMES: dict[str, tuple[Names, Names]] = {
    "frames around": (FRAMES, NUMBERS),
    "frame-causal": (FRAMES, NUMBERS),
    "documents": (DOCUMENTS, DOCUMENTS),
    "cross-attention": ([("a", 4), ("b", 3)], [("a", 2), ("b", 3)]),
    "shared prefix": (PREFIX, PREFIX),
    "cached prefix": (CONTINUED, PREFIX),
    "block diffusion": (BLOCKS, [("noisy", 6), ("clean", 6)]),
    "any two ranges": (RUNS, [("", 8)]),
}


class Panel(NamedTuple):
    """One mask, its caption, and the names of its queries and keys."""

    layout: RangeLayout
    caption: str
    queries: Names
    keys: Names


def arrowhead() -> list[Panel]:
    """The masks of both scopes of a clip."""
    layout = SifLayout.uniform(1, 3, 4, 4)
    captions = {"clip": "encoder: TIV tokens see the clip", "tiv": "decoder: TIV tokens see one another"}
    return [Panel(layout.ranges(scope), caption, CLIP, CLIP) for scope, caption in captions.items()]


def gallery() -> list[Panel]:
    """All other masks that have a constructor."""
    return [Panel(layout, name, *NAMES[name]) for name, layout in masks(1).items()]


PICTURES = {"arrowhead.svg": (arrowhead, 2), "masks.svg": (gallery, 3)}  # panels, and how many of them stand in a row


def draw(panels: Sequence[Panel], columns: int) -> str:
    """The panels in rows of ``columns``, as SVG: a square for each query and key."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    tops = list(accumulate((_height(row) for row in rows), initial=0))
    side = CELL * max(panel.layout.k_rows for panel in panels)
    step = MARGIN + side + GAP
    width, height = columns * step - GAP + 10, tops[-1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>Who sees whom: rows are queries, columns are keys</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for top, row in zip(tops, rows, strict=False):
        for number, panel in enumerate(row):
            parts += _panel(panel, MARGIN + number * step, top + MARGIN)
    return "\n".join([*parts, "</svg>", ""])


def _height(row: Sequence[Panel]) -> int:
    return MARGIN + CELL * max(panel.layout.q_rows for panel in row) + CAPTION


def _panel(panel: Panel, left: int, top: int) -> list[str]:
    width, height = panel.layout.k_rows * CELL, panel.layout.q_rows * CELL
    return [
        *_cells(panel.layout, left, top),
        *(
            f'<text x="{left + middle:g}" y="{top - 8}" text-anchor="middle">{name}</text>'
            for name, middle in _middles(panel.keys)
        ),
        *(
            f'<text x="{left - 6}" y="{top + middle + 4:g}" text-anchor="end">{name}</text>'
            for name, middle in _middles(panel.queries)
        ),
        f'<text x="{left + width / 2:g}" y="{top - 30}" text-anchor="middle" fill="#777">keys</text>',
        f'<text x="{left - 6}" y="{top - 8}" text-anchor="end" fill="#777">queries</text>',
        f'<text x="{left + width / 2:g}" y="{top + height + 20}" text-anchor="middle">{panel.caption}</text>',
    ]


def _cells(layout: RangeLayout, left: int, top: int) -> list[str]:
    """One path for each colour."""
    colours = [[HIDDEN] * layout.k_rows for _ in range(layout.q_rows)]
    for run in layout.segments:
        for row in colours[run.q_start : run.q_start + run.q_len]:
            row[run.a_start : run.a_start + run.a_len] = [RANGE_A] * run.a_len
            row[run.b_start : run.b_start + run.b_len] = [RANGE_B] * run.b_len
    squares: dict[str, list[str]] = {RANGE_A: [], RANGE_B: [], HIDDEN: []}
    for i, row in enumerate(colours):
        for j, colour in enumerate(row):
            squares[colour].append(f"M{left + j * CELL} {top + i * CELL}h{CELL - 1}v{CELL - 1}h{1 - CELL}z")
    return [f'<path fill="{colour}" d="{"".join(paths)}"/>' for colour, paths in squares.items()]


def _middles(names: Names) -> list[tuple[str, float]]:
    """Each name and the middle of its tokens, in pixels."""
    starts = accumulate((count for _, count in names), initial=0)
    return [(name, (start + count / 2) * CELL) for (name, count), start in zip(names, starts, strict=False)]


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for file_name, (panels, columns) in PICTURES.items():
        with replacing(IMAGES / file_name) as temporary:
            temporary.write_text(draw(panels(), columns), encoding="utf-8")
        print(f"wrote {IMAGES / file_name}")
