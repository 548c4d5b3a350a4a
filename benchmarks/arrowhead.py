"""Draw who sees whom, the picture of README: ``python -m benchmarks.arrowhead`` writes docs/images/arrowhead.svg."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tivtok.attention import SifLayout
from tivtok.files import replacing
from tivtok_kernels import Scope

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "arrowhead.svg"
NUM_TIV, NUM_FRAMES, FRAME_TOKENS = 3, 4, 4
CELL, MARGIN, GAP, CAPTION = 14, 66, 46, 30  # pixels
PANELS: dict[Scope, str] = {"clip": "encoder: TIV tokens see the clip", "tiv": "decoder: TIV tokens see one another"}
TIV, OWN_FRAME, HIDDEN = "#4477aa", "#ee9933", "#e8e8e8"


def draw() -> str:
    """The masks of both scopes side by side, as SVG."""
    layout = SifLayout.uniform(1, NUM_TIV, NUM_FRAMES, FRAME_TOKENS)
    side = layout.total_tokens * CELL
    width = len(PANELS) * (MARGIN + side) + GAP + 10
    height = MARGIN + side + CAPTION
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>Who sees whom: rows are queries, columns are keys</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (scope, caption) in enumerate(PANELS.items()):
        left = MARGIN + number * (side + MARGIN + GAP)
        parts += [*_cells(layout, scope, left), *_labels(left, side)]
        parts.append(f'<text x="{left + side / 2:g}" y="{MARGIN + side + 20}" text-anchor="middle">{caption}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _cells(layout: SifLayout, scope: Scope, left: int) -> list[str]:
    """One path for each colour, one square for each query and key."""
    squares: dict[str, list[str]] = {TIV: [], OWN_FRAME: [], HIDDEN: []}
    for row, sees in enumerate(layout.visibility(scope).tolist()):
        for column, seen in enumerate(sees):
            colour = HIDDEN if not seen else TIV if min(row, column) < NUM_TIV else OWN_FRAME
            squares[colour].append(f"M{left + column * CELL} {MARGIN + row * CELL}h{CELL - 1}v{CELL - 1}h{1 - CELL}z")
    return [f'<path fill="{colour}" d="{"".join(paths)}"/>' for colour, paths in squares.items()]


def _labels(left: int, side: int) -> list[str]:
    """The names of the tokens, above the columns and before the rows."""
    names = ["TIV"] * NUM_TIV + [f"frame {i + 1}" for i in range(NUM_FRAMES) for _ in range(FRAME_TOKENS)]
    labels, start = [], 0
    for name, run in groupby(names):
        count = len(list(run))
        middle = (start + count / 2) * CELL
        labels.append(f'<text x="{left + middle:g}" y="{MARGIN - 8}" text-anchor="middle">{name}</text>')
        labels.append(f'<text x="{left - 6}" y="{MARGIN + middle + 4:g}" text-anchor="end">{name}</text>')
        start += count
    labels.append(f'<text x="{left + side / 2:g}" y="{MARGIN - 30}" text-anchor="middle" fill="#777">keys</text>')
    labels.append(f'<text x="{left - 6}" y="{MARGIN - 8}" text-anchor="end" fill="#777">queries</text>')
    return labels


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    with replacing(PICTURE) as temporary:
        temporary.write_text(draw(), encoding="utf-8")
    print(f"wrote {PICTURE}")
