"""Who sees whom: the one place that knows the arrowhead mask of scope-induced attention.

A packed batch is clip after clip, each ``[TIV | frame 1 | ... | frame T]``. TIV tokens are global, every other
token is local to its frame (TivTok, arXiv 2606.17590, Eq. 3-4):

    visible(i, j)  =  group(i) == TIV  or  group(j) == TIV  or  group(i) == group(j)      (same clip)

Each run of query rows therefore sees at most two contiguous key ranges, A (shared) and B (own frame):

    | scope       | rows    | range A    | range B |
    |-------------|---------|------------|---------|
    | "clip"      | TIV     | whole clip | -       |
    | "tiv"       | TIV     | TIV        | -       |
    | both        | frame t | TIV        | frame t |
    | "broadcast" | frame t | TIV, in a tensor of its own | frame t |

Backends work from `SifLayout.ranges`; `SifLayout.visibility` states the same mask densely, from the formula above.
`SifLayout.frame_windows` is the same with range B widened to neighbouring frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch

from tivtok_kernels.caching import traceable_cache
from tivtok_kernels.lengths import as_length, as_lengths, boundaries
from tivtok_kernels.ranges import RangeLayout, Segment

# "ranges" is the scope of a `RangeLayout`, which has but one.
Scope = Literal["clip", "tiv", "broadcast", "ranges"]


@dataclass(frozen=True)
class SifLayout:
    """Lengths of every clip in a packed batch. Immutable, hashable, cheap to reuse.

    Attributes:
        num_tiv: TIV tokens of each clip (zero allowed).
        frame_tokens: for each clip, the tokens of each of its frames (zero allowed, and so are clips without frames).
        encoded: the same as one int64 CPU tensor, for operators; not to be written to (`lengths` is a copy). Of each
            clip num_tiv, the number of its frames, and their lengths. ``torch.compile`` sees only this tensor, so
            that new lengths are new data and not a new program.
        tiv_tokens, local_tokens: TIV tokens and frame tokens of all clips.
    """

    num_tiv: tuple[int, ...]
    frame_tokens: tuple[tuple[int, ...], ...]
    encoded: torch.Tensor = field(init=False, repr=False, compare=False)
    tiv_tokens: int = field(init=False, repr=False, compare=False)
    local_tokens: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.num_tiv) != len(self.frame_tokens):
            raise ValueError(
                f"num_tiv and frame_tokens must describe the same clips: "
                f"got {len(self.num_tiv)} TIV counts and {len(self.frame_tokens)} lists of frame lengths"
            )
        flat: list[int] = []
        for clip, (tiv, frames) in enumerate(zip(self.num_tiv, self.frame_tokens, strict=True)):
            if tiv < 0:
                raise ValueError(f"num_tiv[{clip}] must be >= 0, got {tiv}")
            if any(n < 0 for n in frames):
                raise ValueError(f"frame_tokens[{clip}] must hold lengths >= 0, got {list(frames)}")
            flat += [tiv, len(frames), *frames]
        with torch.inference_mode(False):  # a cached layout outlives the mode it was made in
            encoded = torch.tensor(flat, dtype=torch.int64, device="cpu")
        known = {
            "encoded": encoded,
            "tiv_tokens": sum(self.num_tiv),
            "local_tokens": sum(map(sum, self.frame_tokens)),
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Looked up several times per call. Not made with the layout: torch 2.12 cannot trace it in compiled models."""
        return hash((self.num_tiv, self.frame_tokens))

    @cached_property
    def calls(self) -> dict[Any, Any]:
        """What the public functions found out of calls with this layout."""
        return {}

    def __reduce__(self) -> tuple[object, ...]:
        return SifLayout, (self.num_tiv, self.frame_tokens)

    @property
    def lengths(self) -> torch.Tensor:
        """A copy of `encoded`."""
        return self.encoded.clone()

    @classmethod
    def from_lengths(cls, num_tiv: Sequence[int], frame_tokens: Sequence[Sequence[int]]) -> SifLayout:
        """Ragged clips: ``from_lengths(num_tiv=[96, 0], frame_tokens=[[1032] * 4, [7, 0, 13]])``.

        Raises:
            TypeError: a length is not an integer.
            ValueError: a length is negative, or the two arguments describe different numbers of clips.
        """
        tiv = as_lengths("num_tiv", num_tiv)
        if isinstance(frame_tokens, (str, bytes)) or not isinstance(frame_tokens, Iterable):
            raise TypeError(f"frame_tokens must be a list of frame lengths per clip, got {frame_tokens!r}")
        frames = tuple(as_lengths(f"frame_tokens[{clip}]", lengths) for clip, lengths in enumerate(frame_tokens))
        return cls(tiv, frames)

    @classmethod
    def uniform(cls, batch: int, num_tiv: int, num_frames: int, frame_tokens: int) -> SifLayout:
        """``batch`` equal clips of ``num_tiv`` TIV tokens and ``num_frames`` frames of ``frame_tokens`` tokens.

        Raises:
            TypeError: an argument is not an integer.
            ValueError: an argument is negative.
        """
        names = ("batch", "num_tiv", "num_frames", "frame_tokens")
        values = (batch, num_tiv, num_frames, frame_tokens)
        return _uniform(*(as_length(name, value) for name, value in zip(names, values, strict=True)))

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: torch.Tensor | Sequence[int], num_frames: Sequence[int]) -> SifLayout:
        """Make a layout from the boundaries that variable-length attention takes, ``[0, 96, 1128, 2160, ...]``.

        Args:
            cu_seqlens: where every piece (the TIV tokens of a clip, or one of its frames) begins, in packed order, and
                where the last one ends. A GPU tensor is copied to the CPU, which waits for the GPU.
            num_frames: frames of each clip: it takes one piece of TIV tokens (which may be empty), then these.

        Raises:
            TypeError: a number is not an integer.
            ValueError: the boundaries do not begin with 0, decrease, or are not as many as the pieces of all clips.
        """
        bounds = as_lengths("cu_seqlens", cu_seqlens.tolist() if isinstance(cu_seqlens, torch.Tensor) else cu_seqlens)
        frames = as_lengths("num_frames", num_frames)
        if not bounds or bounds[0] != 0 or list(bounds) != sorted(bounds):
            raise ValueError(f"cu_seqlens must begin with 0 and never decrease, got {list(bounds)}")
        pieces = [end - start for start, end in itertools.pairwise(bounds)]
        first = boundaries(n + 1 for n in frames)
        if len(pieces) != first[-1]:
            raise ValueError(
                f"cu_seqlens must bound one piece of TIV tokens and the frames of each clip, {first[-1]} pieces, "
                f"got {len(pieces)}"
            )
        return cls(
            tuple(pieces[i] for i in first[:-1]),
            tuple(tuple(pieces[i + 1 : end]) for i, end in itertools.pairwise(first)),
        )

    @classmethod
    def from_tensor(cls, encoded: torch.Tensor) -> SifLayout:
        """The layout whose ``encoded`` tensor this is. Cached by content, so that asking again costs about 2 us."""
        return _decode(encoded.numpy().tobytes())

    def repeat(self, batch: int) -> SifLayout:
        """Repeat the clips ``batch`` times."""
        return SifLayout(self.num_tiv * batch, self.frame_tokens * batch)

    def __len__(self) -> int:
        return self.num_clips

    @property
    def num_clips(self) -> int:
        return len(self.num_tiv)

    @property
    def total_tokens(self) -> int:
        """Rows of the packed batch, N."""
        return self.tiv_tokens + self.local_tokens

    @property
    def is_uniform(self) -> bool:
        """True when all clips are equal, so that the packed batch is also a dense (B, N / B) one."""
        return len(set(self.num_tiv)) <= 1 and len(set(self.frame_tokens)) <= 1

    def area(self, tiv_scope: Scope = "clip") -> int:
        """Visible (query, key) pairs: a forward pass costs ``4 * area * head_dim`` FLOPs per head."""
        return self.ranges(tiv_scope).area

    def ranges(self, scope: Scope = "clip") -> RangeLayout:
        """The mask as runs of rows with two key ranges each.

        Rows are those of the packed batch. For ``"broadcast"`` the TIV tokens live in a tensor of their own: range A
        counts rows of that tensor, everything else rows of the packed frame tokens.
        """
        return _ranges(self, _check_scope(scope), 0, 0)

    def segments(self, scope: Scope) -> tuple[Segment, ...]:
        """The runs of `ranges`, in row order, without empty ones."""
        return self.ranges(scope).segments

    def frame_windows(
        self, back: int | None = None, ahead: int | None = None, *, tiv_scope: Literal["clip", "tiv"] = "clip"
    ) -> RangeLayout:
        """Frame rows see their clip's TIV tokens and a window of its frames, their own among them.

        ``frame_windows(ahead=0)`` is causal over frames, ``frame_windows(1, 1)`` sees the frame before and the one
        after; TIV rows see what ``tiv_scope`` says, as in `sif_attention`.

        Args:
            back: frames before the own one; None for all there are.
            ahead: frames after it; None likewise.

        Raises:
            TypeError, ValueError: one of them is not an integer >= 0, or tiv_scope is not one of these two.
        """
        if tiv_scope not in ("clip", "tiv"):
            raise ValueError(f'tiv_scope must be "clip" or "tiv", got {tiv_scope!r}')
        most = max(map(len, self.frame_tokens), default=0)
        widths = [most if n is None else as_length(name, n) for name, n in (("back", back), ("ahead", ahead))]
        return _ranges(self, tiv_scope, *widths)

    def visibility(self, tiv_scope: Scope = "clip", device: torch.device | str | None = None) -> torch.Tensor:
        """The dense mask, for tests and pictures: bool (N, N), True where the query (row) sees the key (column).

        For ``"broadcast"`` it is (frame tokens, TIV tokens + frame tokens), TIV columns first.
        """
        _check_scope(tiv_scope)
        clip, group = _token_labels(self)
        same_clip = clip[:, None] == clip[None, :]
        visible = same_clip & ((group[None, :] == 0) | (group[:, None] == group[None, :]))
        if tiv_scope == "clip":
            visible |= same_clip & (group[:, None] == 0)
        if tiv_scope == "broadcast":
            rows = visible[group > 0]
            visible = torch.cat([rows[:, group == 0], rows[:, group > 0]], dim=1)
        return visible.to(device)


def _check_scope(scope: Scope) -> Scope:
    if scope not in ("clip", "tiv", "broadcast"):
        raise ValueError(f'tiv_scope must be "clip" or "tiv" (or "broadcast" for frame rows alone), got {scope!r}')
    return scope


@traceable_cache(maxsize=256)
def _uniform(batch: int, num_tiv: int, num_frames: int, frame_tokens: int) -> SifLayout:
    return SifLayout((num_tiv,) * batch, ((frame_tokens,) * num_frames,) * batch)


@lru_cache(maxsize=1024)
def _decode(data: bytes) -> SifLayout:
    flat = memoryview(data).cast("q").tolist()
    num_tiv, frame_tokens, at = [], [], 0
    while at < len(flat):
        tiv, num_frames = flat[at : at + 2]
        num_tiv.append(tiv)
        frame_tokens.append(tuple(flat[at + 2 : at + 2 + num_frames]))
        at += 2 + num_frames
    return SifLayout(tuple(num_tiv), tuple(frame_tokens))


@lru_cache(maxsize=1024)
def _ranges(layout: SifLayout, scope: Scope, back: int, ahead: int) -> RangeLayout:
    apart = scope == "broadcast"
    tiv = np.array(layout.num_tiv, dtype=np.int64)
    count = np.array([len(frames) for frames in layout.frame_tokens], dtype=np.int64)
    tokens = np.fromiter(itertools.chain.from_iterable(layout.frame_tokens), dtype=np.int64)
    bound = np.concatenate([[0], np.cumsum(tokens)])  # of frames, all clips' TIV tokens left out
    first = np.cumsum(count) - count  # frame of each clip
    rows = bound[first + count] - bound[first] + (0 if apart else tiv)
    start = np.cumsum(rows) - rows
    tiv_row = np.cumsum(tiv) - tiv if apart else start

    clip = np.repeat(np.arange(len(tiv)), count)
    frame = np.arange(len(tokens))
    shift = (start + (0 if apart else tiv) - bound[first])[clip]  # from `bound` to rows
    b = bound[np.maximum(frame - back, first[clip])] + shift
    b_end = bound[np.minimum(frame + ahead + 1, (first + count)[clip])] + shift
    table = np.empty((len(tokens) + (0 if apart else len(tiv)), 6), dtype=np.int64)
    of_frame = frame if apart else frame + clip + 1  # each clip's TIV rows stand before its frames
    table[of_frame] = np.stack([bound[:-1] + shift, tokens, tiv_row[clip], tiv[clip], b, b_end - b], 1)
    if not apart:
        seen = rows if scope == "clip" else tiv
        table[first + np.arange(len(tiv))] = np.stack([start, tiv, start, seen, start, np.zeros_like(tiv)], 1)
    return RangeLayout(table, int(rows.sum()), layout.tiv_tokens if apart else None)


def _token_labels(layout: SifLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) clip of each packed token, and (N,) its group: 0 for TIV, t for frame t = 1..T."""
    clips, groups = [], []
    for clip, (num_tiv, frames) in enumerate(zip(layout.num_tiv, layout.frame_tokens, strict=True)):
        sizes = torch.tensor([num_tiv, *frames])
        groups.append(torch.arange(len(sizes)).repeat_interleave(sizes))
        clips.append(torch.full_like(groups[-1], clip))
    empty = torch.empty(0, dtype=torch.int64)
    return torch.cat([empty, *clips]), torch.cat([empty, *groups])
