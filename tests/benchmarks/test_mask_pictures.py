"""The pictures of masks are the masks."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.attention.cases import masks
from benchmarks.pictures import HIDDEN, IMAGES, NAMES, PICTURES, draw


@pytest.mark.parametrize("name", PICTURES)
def test_cells_are_coloured_where_the_layout_says_visible(name: str) -> None:
    panels, columns = PICTURES[name]
    layouts = [panel.layout for panel in panels()]
    squares = {True: 0, False: 0}
    for path in ElementTree.fromstring(draw(panels(), columns)).iter("{http://www.w3.org/2000/svg}path"):
        squares[path.attrib["fill"] != HIDDEN] += path.attrib["d"].count("M")
    assert sum(squares.values()) == sum(layout.q_rows * layout.k_rows for layout in layouts)
    assert squares[True] == sum(layout.area for layout in layouts)


@pytest.mark.parametrize("name", PICTURES)
def test_the_committed_picture_is_the_one_drawn(name: str) -> None:
    panels, columns = PICTURES[name]
    assert (IMAGES / name).read_text(encoding="utf-8") == draw(panels(), columns)


def test_names_are_as_many_as_tokens() -> None:
    for name, layout in masks(1).items():
        assert tuple(sum(count for _, count in names) for names in NAMES[name]) == (layout.q_rows, layout.k_rows)
