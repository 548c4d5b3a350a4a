"""What backends share about tensors."""

import torch

from tivtok_kernels.tensors import aligned


def test_rows_on_16_byte_boundaries_are_read_in_place():
    qkv = torch.zeros(6, 3, 2, 64, dtype=torch.bfloat16)
    assert all(aligned(x) is x for x in (*qkv.unbind(1), qkv[:1, 0], qkv[:, 0, :1], qkv[:, 0, :1].expand(-1, 4, -1)))


def test_others_are_copied():
    odd = torch.zeros(6, 2, 65, dtype=torch.bfloat16)[..., 1:]
    for x in (odd, odd.mT):
        assert aligned(x) is not x and torch.equal(aligned(x), x) and aligned(x).is_contiguous()


def test_strides_that_some_kernels_cannot_address():
    x = torch.zeros(6, 2, 64)
    assert aligned(x, max_row_stride=129) is x and aligned(x, max_row_stride=128) is not x
    assert aligned(x, max_head_stride=65) is x and aligned(x, max_head_stride=64) is not x
    for expanded in (x[:, :1].expand(-1, 4, -1), x[:1].expand(4, -1, -1)):
        assert aligned(expanded, expanded=False) is not expanded
