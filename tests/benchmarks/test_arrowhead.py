"""README's picture of the mask is the mask."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.arrowhead import FRAME_TOKENS, HIDDEN, NUM_FRAMES, NUM_TIV, PANELS, PICTURE, draw
from tivtok.attention import SifLayout


def test_cells_are_coloured_where_the_layout_says_visible() -> None:
    layout = SifLayout.uniform(1, NUM_TIV, NUM_FRAMES, FRAME_TOKENS)
    squares = {True: 0, False: 0}
    for path in ElementTree.fromstring(draw()).iter("{http://www.w3.org/2000/svg}path"):
        squares[path.attrib["fill"] != HIDDEN] += path.attrib["d"].count("M")
    assert sum(squares.values()) == len(PANELS) * layout.total_tokens**2
    assert squares[True] == sum(layout.area(scope) for scope in PANELS)


def test_the_committed_picture_is_the_one_drawn() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw()
