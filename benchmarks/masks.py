"""Draw who sees whom: ``python -m benchmarks.masks`` writes the pictures of README and of docs/masks.md.

Rows are queries, columns are keys; range A of a row is blue, range B orange.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tivtok.files import replacing
from tivtok_kernels import RangeLayout, SifLayout

FOLDER = Path(__file__).parents[1] / "docs" / "images"
HIDDEN, RANGE_A, RANGE_B = "#e8e8e8", "#4477aa", "#ee9933"  # by value of a cell
SIZE = 14  # of a cell, in pixels
TOP, LEFT, BOTTOM = 38, 66, 30  # margins of a panel


class Panel(NamedTuple):
    """One mask.

    Attributes:
        caption: below it.
        cells: uint8 (rows, columns): 0 hidden, 1 range A, 2 range B.
        rows, columns: names of tokens; equal neighbours share a label.
    """

    caption: str
    cells: Tensor
    rows: list[str]
    columns: list[str]


def _clip(caption: str, layout: SifLayout, mask: RangeLayout) -> Panel:
    names = _names(("TIV", layout.num_tiv[0]), *((f"frame {i + 1}", n) for i, n in enumerate(layout.frame_tokens[0])))
    return Panel(caption, _cells(mask), names, names)


def _cells(layout: RangeLayout) -> Tensor:
    cells = torch.zeros(layout.q_rows, layout.k_rows, dtype=torch.uint8)
    for run in layout.segments:
        rows = cells[run.q_start : run.q_start + run.q_len]
        rows[:, run.a_start : run.a_start + run.a_len] = 1
        rows[:, run.b_start : run.b_start + run.b_len] = 2
    return cells


def _names(*runs: tuple[str, int]) -> list[str]:
    return [name for name, count in runs for _ in range(count)]


CLIP = SifLayout.uniform(1, 3, 4, 4)
SMALL = SifLayout.uniform(1, 2, 4, 2)
_PREFIX = (("prefix", 3), ("one", 2), ("two", 3))
_BLOCKS = _names(*((f"{kind} {i}", 2) for kind in ("noisy", "clean") for i in (1, 2, 3)))

# Name of the picture: its rows of panels.
PICTURES: dict[str, list[list[Panel]]] = {
    "arrowhead": [
        [
            _clip("encoder: TIV tokens see the clip", CLIP, CLIP.ranges("clip")),
            _clip("decoder: TIV tokens see one another", CLIP, CLIP.ranges("tiv")),
        ]
    ],
    "masks": [
        [
            _clip("frame_windows(back=1, ahead=1)", SMALL, SMALL.frame_windows(1, 1)),
            _clip("frame_windows(ahead=0)", SMALL, SMALL.frame_windows(ahead=0)),
            Panel("block_diffusion([6], block=2)", _cells(RangeLayout.block_diffusion([6], 2)), _BLOCKS, _BLOCKS),
        ],
        [
            Panel(
                "shared_prefix([3], [[2, 3]])",
                _cells(RangeLayout.shared_prefix([3], [[2, 3]])),
                _names(*_PREFIX),
                _names(*_PREFIX),
            ),
            Panel(
                "the same, prefix_queries=False",
                _cells(RangeLayout.shared_prefix([3], [[2, 3]], prefix_queries=False)),
                _names(*_PREFIX[1:]),
                _names(*_PREFIX),
            ),
            Panel(
                "documents([4, 2, 3])",
                _cells(RangeLayout.documents([4, 2, 3])),
                _names(("first", 4), ("second", 2), ("third", 3)),
                _names(("first", 4), ("second", 2), ("third", 3)),
            ),
            Panel(
                "cross([3, 4], [2, 5])",
                _cells(RangeLayout.cross([3, 4], [2, 5])),
                _names(("rows 1", 3), ("rows 2", 4)),
                _names(("keys 1", 2), ("keys 2", 5)),
            ),
        ],
    ],
}


def draw(picture: list[list[Panel]]) -> str:
    """Rows of panels, as SVG."""
    parts, width, top = [], 0, 0
    for row in picture:
        left, bottom = 0, top
        for panel in row:
            parts += _panel(panel, left + LEFT, top + TOP)
            left += LEFT + max(panel.cells.shape[1] * SIZE, 6 * len(panel.caption) - LEFT) + SIZE
            bottom = max(bottom, top + TOP + panel.cells.shape[0] * SIZE + BOTTOM)
        width, top = max(width, left), bottom
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}" '
        'font-family="sans-serif" font-size="12" role="img">'
    )
    title = "<title>Who sees whom: rows are queries, columns are keys</title>"
    return "\n".join([head, title, f'<rect width="{width}" height="{top}" fill="white"/>', *parts, "</svg>", ""])


def _panel(panel: Panel, left: int, top: int) -> list[str]:
    """One path for each colour, one square for each query and key, and the names around."""
    squares: dict[str, list[str]] = {RANGE_A: [], RANGE_B: [], HIDDEN: []}
    for row, values in enumerate(panel.cells.tolist()):
        for column, value in enumerate(values):
            colour = (HIDDEN, RANGE_A, RANGE_B)[value]
            squares[colour].append(f"M{left + column * SIZE} {top + row * SIZE}h{SIZE - 1}v{SIZE - 1}h{1 - SIZE}z")
    rows, columns = panel.cells.shape
    middle, below = left + columns * SIZE / 2, top + rows * SIZE + 20
    return [
        *(f'<path fill="{colour}" d="{"".join(paths)}"/>' for colour, paths in squares.items() if paths),
        *(_text(left + at * SIZE, top - 6 - 13 * (i % 2), name, "middle") for i, (at, name) in _labels(panel.columns)),
        *(_text(left - 6, top + at * SIZE + 4, name, "end") for _, (at, name) in _labels(panel.rows)),
        _text(middle, below, panel.caption, "middle"),
    ]


def _labels(names: list[str]) -> list[tuple[int, tuple[float, str]]]:
    """Number, middle (in tokens) and name of each run of equal names."""
    labels, start = [], 0
    for name, run in groupby(names):
        count = len(list(run))
        labels.append((start + count / 2, name))
        start += count
    return list(enumerate(labels))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        with replacing(FOLDER / f"{name}.svg") as temporary:
            temporary.write_text(draw(picture), encoding="utf-8")
        print(f"wrote {FOLDER / name}.svg")
