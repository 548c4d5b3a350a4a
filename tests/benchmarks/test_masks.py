"""The pictures of masks are the masks."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree

import pytest

from benchmarks.masks import CLIP, FOLDER, HIDDEN, PICTURES, RANGE_A, RANGE_B, SMALL, draw


def squares(name: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for path in ElementTree.fromstring(draw(PICTURES[name])).iter("{http://www.w3.org/2000/svg}path"):
        counted[path.attrib["fill"]] += path.attrib["d"].count("M")
    return counted


def test_cells_are_coloured_where_the_layout_says_visible() -> None:
    counted = squares("arrowhead")
    assert sum(counted.values()) == 2 * CLIP.total_tokens**2
    assert counted[RANGE_A] + counted[RANGE_B] == CLIP.area("clip") + CLIP.area("tiv")
    windows = PICTURES["masks"][0][0]
    assert int((windows.cells > 0).sum()) == SMALL.frame_windows(1, 1).area
    assert squares("masks")[HIDDEN] == sum(int((p.cells == 0).sum()) for row in PICTURES["masks"] for p in row)


def test_every_token_has_a_name() -> None:
    for panel in (panel for picture in PICTURES.values() for row in picture for panel in row):
        assert (len(panel.rows), len(panel.columns)) == panel.cells.shape


@pytest.mark.parametrize("name", PICTURES)
def test_the_committed_picture_is_the_one_drawn(name: str) -> None:
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == draw(PICTURES[name])
