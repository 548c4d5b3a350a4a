"""One self-contained HTML page about a video and its tokens: no scripts, no files beside it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape

from PIL import Image
from torch import Tensor

from tivtok.files import printable, replacing
from tivtok.views.pictures import timeline

TIMELINE_WIDTH = 960

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p { max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: 2px 12px 2px 0; text-align: left; vertical-align: top; }
.frames { width: 100%; table-layout: fixed; } .frames th:first-child { width: 7.5rem; }
.frames img { width: 100%; min-width: 64px; }
.frames td, .frames th { padding: 2px 4px 2px 0; vertical-align: middle; font-weight: normal; white-space: nowrap; }
img { display: block; image-rendering: pixelated; }
.timeline { width: 100%; height: 22px; } .scope { width: 300px; height: 300px; border: 1px solid #8888; }
.pair { display: flex; flex-wrap: wrap; gap: 2rem; } figure { margin: 0; } figcaption { max-width: 300px; }
.ends { display: flex; justify-content: space-between; }
"""


def write_page(
    path: str | os.PathLike[str],
    title: str,
    facts: dict[str, str],
    rows: dict[str, Tensor],
    labels: Sequence[str],
    tiv_index: Tensor,
    scopes: dict[str, Tensor],
) -> None:
    """Write the page.

    Args:
        facts: name -> value, for the table on top.
        rows: label -> uint8 (F, H, W, 3), all of one shape.
        labels: of the F columns.
        tiv_index: int64 (T,), the TIV set of each frame group.
        scopes: caption -> picture uint8 (N, N, 3).

    Raises:
        OSError: the file cannot be written.
    """
    title = printable(title)
    sets = int(tiv_index.max()) + 1
    shared = (
        "one TIV set, shared by all" if sets == 1 else f"{sets} TIV sets; where the colour changes, so does the set"
    )
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>',
        f"<h1>{escape(title)}</h1>",
        _table([[f"<th>{escape(name)}</th>", f"<td>{escape(value)}</td>"] for name, value in facts.items()]),
        "<h2>What the tokens hold</h2>",
        "<p>“TIV only” is decoded with the TV tokens of a plain grey video; “TV adds” is what the reconstruction has "
        "beyond that, on grey.</p>",
        f'<div class="scroll">{_frames(rows, labels)}</div>',
        "<h2>TIV sets over time</h2>",
        f"<p>{len(tiv_index)} frame groups, {shared}.</p>",
        _image(timeline(tiv_index, TIMELINE_WIDTH), "TIV sets over time", "timeline"),
        '<div class="ends"><span>first frame</span><span>last frame</span></div>',
        "<h2>Who sees whom</h2>",
        "<p>Queries down, keys across, of one chunk. Blue: what TIV queries see. Orange: the TIV keys that all others "
        "see. Green: their own frame group. White: not seen, not computed.</p>",
        '<div class="pair">',
        *(
            f"<figure>{_image(picture, caption, 'scope')}<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, picture in scopes.items()
        ),
        "</div></html>\n",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _frames(rows: dict[str, Tensor], labels: Sequence[str]) -> str:
    head = ["<th></th>", *(f"<th>{escape(label)}</th>" for label in labels)]
    body = [
        [f"<th>{escape(name)}</th>"]
        + [f"<td>{_image(frame, f'{name}, {label}')}</td>" for frame, label in zip(frames, labels, strict=True)]
        for name, frames in rows.items()
    ]
    return _table([head, *body], "frames")


def _table(rows: list[list[str]], kind: str = "facts") -> str:
    return f'<table class="{kind}">' + "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows) + "</table>"


def _image(picture: Tensor, description: str, kind: str = "frame") -> str:
    data = io.BytesIO()
    Image.fromarray(picture.contiguous().numpy()).save(data, format="PNG")
    source = base64.b64encode(data.getvalue()).decode()
    return f'<img class="{kind}" alt="{escape(description)}" src="data:image/png;base64,{source}">'
