"""RangeLayout: every constructor against a dense mask written down on its own, on every backend that runs here."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_within_budget

from tivtok_kernels import RangeLayout, SifLayout, available_backends, range_attention
from tivtok_kernels.error_budgets import Arithmetic, budgets
from tivtok_kernels.reference import masked_attention

CLIPS = SifLayout.from_lengths([3, 0, 2], [[4, 0, 2, 3], [2, 3, 1], []])


def labels(lengths):
    """(N,) the piece of each row."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def windows(layout, back, ahead, tiv_scope):
    """By the formula: TIV keys of the clip, and frames at most so far away."""
    clip = labels([tiv + sum(frames) for tiv, frames in zip(layout.num_tiv, layout.frame_tokens, strict=True)])
    frame = torch.cat([labels([tiv, *frames]) for tiv, frames in zip(layout.num_tiv, layout.frame_tokens, strict=True)])
    same, is_tiv = clip[:, None] == clip, frame == 0
    near = (frame[:, None] - frame <= back) & (frame - frame[:, None] <= ahead)
    rows_of_tiv = torch.ones_like(near) if tiv_scope == "clip" else is_tiv.expand_as(near)
    return same & torch.where(is_tiv[:, None], rows_of_tiv, is_tiv | near)


def prefixes(prefix, continuations, prefix_queries):
    group = labels([p + sum(c) for p, c in zip(prefix, continuations, strict=True)])
    piece = torch.cat([labels([p, *c]) for p, c in zip(prefix, continuations, strict=True)])
    mask = (group[:, None] == group) & ((piece == 0) | (piece[:, None] == piece))
    return mask if prefix_queries else mask[piece > 0]


def diffusion(lengths, block):
    """The three rules of block diffusion (M_BD, M_OBC, M_BC), sequence by sequence."""
    parts = []
    for length in lengths:
        number = torch.arange(length) // block
        own, earlier = number[:, None] == number, number[:, None] > number
        noisy = torch.cat([own, earlier], 1)
        clean = torch.cat([torch.zeros_like(own), own | earlier], 1)
        parts.append(torch.cat([noisy, clean]))
    return torch.block_diag(*parts).bool()


def token_by_token(prefix, lengths):
    """A prefix that sees itself, then tokens in causal order, sequence by sequence."""
    parts = []
    for first, length in zip(prefix, lengths, strict=True):
        place = torch.arange(first + length)
        parts.append((place < first) | (place <= place[:, None]))
    return torch.block_diag(*parts).bool()


CASES = {
    "the frame before": (CLIPS.frame_windows(1, 0), windows(CLIPS, 1, 0, "clip")),
    "the frames around": (CLIPS.frame_windows(1, 1, tiv_scope="tiv"), windows(CLIPS, 1, 1, "tiv")),
    "frame-causal": (CLIPS.frame_windows(ahead=0), windows(CLIPS, 99, 0, "clip")),
    "all frames": (CLIPS.frame_windows(), windows(CLIPS, 99, 99, "clip")),
    "own frame": (CLIPS.frame_windows(0, 0), CLIPS.visibility()),
    "documents": (RangeLayout.documents([3, 0, 5, 1]), labels([3, 5, 1])[:, None] == labels([3, 5, 1])),
    "cross": (RangeLayout.cross([3, 0, 4], [5, 2, 1]), labels([3, 0, 4])[:, None] == labels([5, 2, 1])),
    "shared prefix": (
        RangeLayout.shared_prefix([4, 0, 2], [[3, 2], [1, 5], []]),
        prefixes([4, 0, 2], [[3, 2], [1, 5], []], True),
    ),
    "cached prefix": (
        RangeLayout.shared_prefix([4, 2], [[3, 2, 2], [1]], prefix_queries=False),
        prefixes([4, 2], [[3, 2, 2], [1]], False),
    ),
    "block diffusion": (RangeLayout.block_diffusion([8, 5], 3), diffusion([8, 5], 3)),
    "token by token": (
        SifLayout.from_lengths([3, 0], [[1] * 6, [1] * 5]).frame_windows(ahead=0, tiv_scope="tiv"),
        token_by_token([3, 0], [6, 5]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_constructors_mean_their_dense_mask(name):
    layout, mask = CASES[name]
    assert torch.equal(layout.visibility(), mask)
    assert (layout.q_rows, layout.k_rows, layout.area) == (*mask.shape, int(mask.sum()))
    assert torch.equal(from_key_runs(layout), mask.long())


def from_key_runs(layout):
    apart = layout.a_rows or 0
    mask = torch.zeros(layout.q_rows, apart + layout.k_rows, dtype=torch.int64)
    for start, length, a, a_len, b, b_len, in_tiv in layout.key_runs.tolist():
        first = start if in_tiv else apart + start
        mask[a : a + a_len, first : first + length] += 1
        mask[b : b + b_len, first : first + length] += 1
    return mask


def backends_here():
    status = available_backends("cpu", torch.float32, 16)
    return [
        pytest.param(n, marks=pytest.mark.skipif(s != "ok", reason=s))
        for n, s in status.items()
        if n != "flex"  # no gradients there
    ]


@pytest.mark.parametrize("backend", backends_here())
@pytest.mark.parametrize("name", CASES)
def test_within_budget_of_the_dense_oracle(name, backend, monkeypatch):
    if backend == "triton":
        from tivtok_kernels.triton import configs

        monkeypatch.setattr(configs, "select", lambda *_: configs.Config(16, 16, 4, 1, 1))
    layout, mask = CASES[name]
    check(layout, mask, backend)


def check(layout, mask, backend, **shape):
    """Output, LSE and gradients against float64 attention under the dense mask, differentiated by autograd."""
    checked_by(layout, mask, Arithmetic.of(backend, shape.get("dtype", torch.float32)), **shape)(backend)


def checked_by(layout, mask, arithmetic, heads=2, kv_heads=1, head_dim=16, dtype=torch.float32):
    """`check` as a function of the backend: the truth is found once for all that have one arithmetic."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(len(mask), heads), (mask.shape[1], kv_heads), (mask.shape[1], kv_heads), (len(mask), heads)]
    q, k, v, dout = (torch.randn(*shape, head_dim, generator=draw).to(dtype) for shape in shapes)
    dlse = torch.randn(len(mask), heads, generator=draw)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    truth = masked_attention(*exact, mask, head_dim**-0.5)
    expected = [*truth, *torch.autograd.grad(truth, exact, (dout.double(), dlse.double()))]
    found = budgets(arithmetic, mask, (q, k, v), dout, dlse, head_dim**-0.5)

    def check_backend(backend):
        got = range_attention(*leaves, layout, backend=backend, return_lse=True)
        results = [*got, *torch.autograd.grad(got, leaves, (dout, dlse))]
        for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), results, expected, strict=True):
            assert_within_budget(name, x.detach(), y.detach(), found[name])

    return check_backend


def dense(runs, num_keys):
    """The mask of `RangeLayout.from_runs`."""
    rows = list(accumulate((n for n, *_ in runs), initial=0))
    mask = torch.zeros(rows[-1], num_keys, dtype=torch.bool)
    for start, (n, *ranges) in zip(rows[:-1], runs, strict=True):
        for key, end in ranges:
            mask[start : start + n, key:end] = True
    return mask


@st.composite
def two_ranges(draw):
    """Any two disjoint ranges of up to 12 keys for each of up to 6 runs of rows."""
    num_keys = draw(st.integers(1, 12))
    runs = []
    for _ in range(draw(st.integers(0, 6))):
        a, a_end, b, b_end = sorted(draw(st.tuples(*[st.integers(0, num_keys)] * 4)))
        if a_end - a + b_end - b:
            ranges = [(a, a_end), (b, b_end)]
            runs.append((draw(st.integers(0, 3)), *(ranges if draw(st.booleans()) else ranges[::-1])))
    return runs, num_keys


@given(two_ranges())
@settings(deadline=None)
def test_any_two_ranges_are_transposed_or_refused(case):
    runs, num_keys = case
    mask = dense(runs, num_keys)
    begins = mask & ~torch.cat([torch.zeros(1, num_keys, dtype=torch.bool), mask[:-1]])
    if int(begins.sum(0).max()) > 2:
        with pytest.raises(ValueError, match="at most two separate runs"):
            RangeLayout.from_runs(runs, num_keys)
        return
    layout = RangeLayout.from_runs(runs, num_keys)
    assert torch.equal(layout.visibility(), mask)
    assert torch.equal(from_key_runs(layout), mask.long())
    assert RangeLayout.from_tensor(layout.encoded) == layout


def test_repeat_is_what_the_constructor_makes_of_twice_the_lengths():
    assert RangeLayout.documents([3, 2]).repeat(2) == RangeLayout.documents([3, 2, 3, 2])
    layout = CLIPS.ranges("broadcast").repeat(2)
    assert layout == CLIPS.repeat(2).ranges("broadcast")


def test_keys_that_a_run_shares_with_its_neighbours_are_summed_in_sdpa():
    """Windows of equal length at equal distances, which overlap."""
    layout = SifLayout.uniform(1, 2, 6, 3)
    check(layout.frame_windows(2, 1), windows(layout, 2, 1, "clip"), "sdpa")


def test_sinks_are_one_line():
    """docs/masks.md: against one more key, of score ``sink`` and value 0, in the softmax of every row."""
    layout = RangeLayout.documents([3, 4])
    q, k, v = torch.randn(3, 7, 2, 8, dtype=torch.float64)
    sink = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    out, lse = range_attention(q, k, v, layout, return_lse=True)
    got = out * torch.sigmoid(lse - sink)[..., None]
    scores = torch.einsum("nhd,mhd->hnm", q, k) * 8**-0.5
    scores = scores.masked_fill(~layout.visibility(), -torch.inf)
    weights = torch.cat([scores, sink[:, None, None].expand(-1, 7, 1)], 2).softmax(2)[..., :-1]
    expected = torch.einsum("hnm,mhd->nhd", weights, v)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.sin().sum(), sink)[0], torch.autograd.grad(expected.sin().sum(), sink)[0]
    )


def test_from_cu_seqlens():
    layout = SifLayout.from_lengths([3, 0], [[4, 2], [5]])
    bounds = [0, 3, 7, 9, 9, 14]
    assert SifLayout.from_cu_seqlens(bounds, [2, 1]) == layout
    assert SifLayout.from_cu_seqlens(torch.tensor(bounds, dtype=torch.int32), [2, 1]) == layout
    assert SifLayout.from_cu_seqlens([0], []).num_clips == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RangeLayout.from_runs([(2, (0, 5), (5, 5))], 4), ValueError, r"runs\[0\] must be within the 4 keys"),
        (lambda: RangeLayout.from_runs([(2, (0, 3), (2, 4))], 4), ValueError, r"runs\[0\] must not overlap"),
        (lambda: RangeLayout.from_runs([(2, (1, 1), (2, 2))], 4), ValueError, r"at least one key, but runs\[0\]"),
        (lambda: RangeLayout.from_runs([(2, (0, 1))], 4), TypeError, r"runs\[0\] must be \(rows,"),
        (lambda: RangeLayout.from_runs([(2.5, (0, 1), (1, 1))], 4), TypeError, r"runs\[0\] must be an integer"),
        (lambda: RangeLayout.cross([2, 2], [3]), ValueError, "got 2 and 1 lengths"),
        (lambda: RangeLayout.cross([2], [0]), ValueError, "at least one key"),
        (lambda: RangeLayout.shared_prefix([2], []), ValueError, "got 1 and 0 groups"),
        (lambda: RangeLayout.block_diffusion([4], 0), ValueError, "block must be positive"),
        (lambda: RangeLayout.documents([3, -1]), ValueError, r"lengths\[1\] must be >= 0"),
        (lambda: CLIPS.frame_windows(back=-1), ValueError, "back must be >= 0, got -1"),
        (lambda: CLIPS.frame_windows(tiv_scope="broadcast"), ValueError, "tiv_scope must be"),
        (lambda: SifLayout.from_cu_seqlens([0, 3, 2], [1]), ValueError, "never decrease"),
        (lambda: SifLayout.from_cu_seqlens([0, 3], [1]), ValueError, "2 pieces, got 1"),
        (
            lambda: range_attention(*[torch.zeros(5, 1, 8)] * 3, RangeLayout.documents([4])),
            ValueError,
            "q must have the layout's 4 rows, got 5",
        ),
        (
            lambda: range_attention(*[torch.zeros(4, 1, 8)] * 3, RangeLayout.cross([4], [3])),
            ValueError,
            "k and v must have the layout's 3 rows, got 4",
        ),
        (
            lambda: range_attention(*[torch.zeros(4, 1, 8)] * 3, CLIPS),
            TypeError,
            "must be a RangeLayout, got SifLayout",
        ),
    ],
)
def test_wrong_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
