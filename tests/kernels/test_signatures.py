"""The shapes and dtypes that the docstrings of the public functions name, checked by jaxtyping on real calls.

Written here and not at the functions: their tensors may be packed, batched or apart, and torch.compile traces them.
"""

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Float32, TypeCheckError, jaxtyped
from torch import Tensor

from tivtok_kernels import RangeLayout, SifLayout, broadcast_attention, range_attention, sif_attention
from tivtok_kernels.prepare import prepare_qk

checked = jaxtyped(typechecker=beartype)
LAYOUT = SifLayout.uniform(2, 3, 2, 4)


@checked
def packed(
    q: Float[Tensor, "N H D"], k: Float[Tensor, "N Hk D"], v: Float[Tensor, "N Hk D"], layout: SifLayout
) -> tuple[Float[Tensor, "N H D"], Float32[Tensor, "N H"]]:
    return sif_attention(q, k, v, layout, return_lse=True)


@checked
def batched(
    q: Float[Tensor, "B n H D"], k: Float[Tensor, "B n Hk D"], v: Float[Tensor, "B n Hk D"], layout: SifLayout
) -> tuple[Float[Tensor, "B n H D"], Float32[Tensor, "B n H"]]:
    return sif_attention(q, k, v, layout, return_lse=True)


@checked
def ranges(
    q: Float[Tensor, "N H D"], k: Float[Tensor, "M Hk D"], v: Float[Tensor, "M Hk D"], layout: RangeLayout
) -> tuple[Float[Tensor, "N H D"], Float32[Tensor, "N H"]]:
    return range_attention(q, k, v, layout, return_lse=True)


@checked
def broadcast(
    q: Float[Tensor, "B T L H D"],
    k: Float[Tensor, "B T L Hk D"],
    v: Float[Tensor, "B T L Hk D"],
    k_tiv: Float[Tensor, "B M Hk D"],
    v_tiv: Float[Tensor, "B M Hk D"],
) -> tuple[Float[Tensor, "B T L H D"], Float32[Tensor, "B T L H"]]:
    return broadcast_attention(q, k, v, k_tiv, v_tiv, return_lse=True)


@checked
def broadcast_packed(
    q: Float[Tensor, "F H D"],
    k: Float[Tensor, "F Hk D"],
    v: Float[Tensor, "F Hk D"],
    k_tiv: Float[Tensor, "M Hk D"],
    v_tiv: Float[Tensor, "M Hk D"],
) -> tuple[Float[Tensor, "F H D"], Float32[Tensor, "F H"]]:
    return broadcast_attention(q, k, v, k_tiv, v_tiv, layout=LAYOUT, return_lse=True)


@checked
def prepared(
    qkv: Float[Tensor, "*batch rows 96"],
    rotary: tuple[Float[Tensor, "rows half"], Float[Tensor, "rows half"]],
    norm: tuple[Float[Tensor, " D"], Float[Tensor, " D"]],
) -> tuple[Float[Tensor, "*batch rows 2 D"], Float[Tensor, "*batch rows 2 D"], Float[Tensor, "*batch rows 2 D"]]:
    return prepare_qk(qkv, 2, rotary, norm)


CALLS = {
    packed: ([(22, 4, 8), (22, 2, 8), (22, 2, 8)], LAYOUT),
    batched: ([(2, 11, 4, 8), (2, 11, 2, 8), (2, 11, 2, 8)], LAYOUT),
    ranges: ([(5, 4, 8), (7, 2, 8), (7, 2, 8)], RangeLayout.cross([2, 3], [4, 3])),
    broadcast: ([(2, 3, 5, 4, 8), *[(2, 3, 5, 2, 8)] * 2, *[(2, 6, 2, 8)] * 2],),
    broadcast_packed: ([(16, 4, 8), *[(16, 2, 8)] * 2, *[(6, 2, 8)] * 2],),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_results_have_the_shapes_that_are_promised(function, dtype):
    shapes, *layout = CALLS[function]
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    out, lse = function(*inputs, *layout)
    assert out.dtype == dtype
    for x, grad in zip(inputs, torch.autograd.grad(out.sum() + lse.sum(), inputs), strict=True):
        assert (grad.shape, grad.dtype) == (x.shape, dtype)


def test_prepared_queries_and_keys():
    table, weight = torch.randn(5, 8), torch.ones(16)
    for leading in ((), (3,), (2, 3)):
        prepared(torch.randn(*leading, 5, 96), (table, table), (weight, weight))


def test_a_wrong_shape_would_be_seen():
    with pytest.raises(TypeCheckError):
        packed(*(torch.randn(shape) for shape in [(22, 4, 8), (21, 2, 8), (22, 2, 8)]), LAYOUT)
