"""The error budgets catch what they are there for: the smallest faults of attention, in otherwise exact results."""

import pytest
import torch
from oracle import assert_within_budget, budgets, check_results, check_same_rows, make_case, run

from tivtok_kernels import SifLayout
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.reference import masked_attention

LAYOUT = SifLayout.from_lengths([24], [[48, 48, 48]])
TIV, FRAME_2 = slice(0, 24), slice(72, 120)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def results(case, visible=None, scale=None, dlse=True, delta=True, dout=None):
    """All results in float64 by autograd, with this instead of the right mask, scale, terms of dS and dout."""
    leaves = {n: x.double().requires_grad_() for n, x in case.inputs.items()}
    visible = LAYOUT.visibility("clip") if visible is None else visible
    out, lse = masked_attention(*leaves.values(), visible, case.the_scale if scale is None else scale)
    dout = case.dout.double() if dout is None else dout
    dlse = case.dlse.double() if dlse else torch.zeros_like(case.dlse).double()
    if not delta:  # dS = P * (dP + dLSE) is what dLSE + rowsum(dO * O) gives
        dlse = dlse + (dout * out.detach()).sum(-1)
    grads = torch.autograd.grad((out, lse), list(leaves.values()), (dout, dlse))
    named = {"out": out, "lse": lse} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: x.detach() for name, x in named.items()}


def mask(rows, keys, seen):
    visible = LAYOUT.visibility("clip").clone()
    visible[rows, keys] = seen
    return visible


def without_frame_2(case):
    """Gradients of TIV keys lack what the rows of frame 2 add; all else is right."""
    dout = case.dout.double().clone()
    dout[FRAME_2] = 0
    right, lacking = results(case), results(case, dout=dout)
    for name in ("dk", "dv"):
        right[name][TIV] = lacking[name][TIV]
    return right


def coarse(case):
    """Queries as bfloat16 rounds them (tf32 in place of float32 loses nearly as much)."""
    return results(case_with(case, q=case.inputs["q"].bfloat16()))


def case_with(case, **inputs):
    return type(case)(case.layout, case.scope, case.inputs | inputs, case.dout, case.dlse)


FAULTS = {
    "a key dropped": lambda case: results(case, mask(FRAME_2, 5, False)),
    "range A one key short": lambda case: results(case, mask(FRAME_2, 23, False)),
    "range B one key too long": lambda case: results(case, mask(FRAME_2, 120, True)),
    "one tile's contribution lost": lambda case: results(case, mask(TIV, slice(96, 112), False)),
    "scale 3 % off": lambda case: results(case, scale=1.03 * case.the_scale),
    "no LSE term": lambda case: results(case, dlse=False),
    "no delta": lambda case: results(case, delta=False),
    "TIV gradient misses a frame": without_frame_2,
    "LSE in base 2": lambda case: (found := results(case)) | {"lse": found["lse"] / torch.tensor(2).log()},
}


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault, dtype, backend):
    case = make_case(LAYOUT, head_dim=64).to(dtype)
    found = {n: x if n == "lse" else x.to(dtype) for n, x in FAULTS[fault](case).items()}
    with pytest.raises(AssertionError, match="over its budget"):
        check_results(found, case, Arithmetic.of(backend, dtype))


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_operands_of_fewer_bits_are_caught(dtype, backend):
    case = make_case(LAYOUT, head_dim=64).to(dtype)
    with pytest.raises(AssertionError, match="over its budget"):
        check_results(coarse(case), case, Arithmetic.of(backend, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_results_are_within_budget(dtype):
    case = make_case(LAYOUT, head_dim=64).to(dtype)
    rounded = {n: x if n == "lse" else x.to(dtype) for n, x in results(case).items()}
    check_results(rounded, case, Arithmetic(dtype))


def test_one_element_over_its_budget_is_enough():
    case = make_case(LAYOUT)
    truth, budget = run(case.to(torch.float64), "reference"), budgets(case, Arithmetic(torch.float32))
    for name in truth:
        assert_within_budget(name, truth[name], truth[name], budget[name])
        for wrong in (truth[name].flatten()[7] + 1.01 * budget[name].flatten()[7], torch.nan, torch.inf):
            off = truth[name].clone()
            off.view(-1)[7] = wrong
            with pytest.raises(AssertionError, match="at element 7"):
                assert_within_budget(name, off, truth[name], budget[name])
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget("out", truth["out"][1:], truth["out"], budget["out"])


def test_sums_that_are_cut_differently_pass_for_the_same_rows_and_others_do_not():
    """As the GPU's tests for offsets beyond 32 bits compare a large batch with its last clip."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 64, generator=draw).bfloat16().float() for n in (192, 4096, 4096))

    def pieces(count):
        """Attention by so many pieces of the keys, weights rounded below the maximum of each."""
        parts = []
        for keys, values in zip(k.chunk(count), v.chunk(count), strict=True):
            scores = q @ keys.T / 8
            top = scores.amax(1, keepdim=True)
            weights = (scores - top).exp()
            parts.append((weights.bfloat16().float() @ values / weights.sum(1, keepdim=True), scores.logsumexp(1)))
        outs, lses = (torch.stack(x) for x in zip(*parts, strict=True))
        return (lses.softmax(0)[..., None] * outs).sum(0).bfloat16()

    whole, cut = pieces(1), pieces(3)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(whole[:96], cut[:96])
    check_same_rows(whole[:96], cut[:96], other=whole[96:])
    for got, other in ((whole[96:], whole[96:]), (whole[:96], whole[:96])):
        with pytest.raises(AssertionError):
            check_same_rows(got, cut[:96], other)
