"""The training mask of block diffusion (BD3-LM, arXiv 2503.09573), against the same mask as FlexAttention states it.

A sequence stands twice in a row, noisy and clean. A noisy block is denoised given itself and the clean blocks before.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from tivtok.attention import RangeLayout, range_attention


def main() -> None:
    torch.manual_seed(0)
    length, block, heads, head_dim = 24, 4, 2, 16

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        row_is_clean, key_is_clean = row >= length, key >= length
        row_block, key_block = row % length // block, key % length // block
        own_noise = ~row_is_clean & ~key_is_clean & (row_block == key_block)
        clean_before = ~row_is_clean & key_is_clean & (row_block > key_block)
        clean_so_far = row_is_clean & key_is_clean & (row_block >= key_block)
        return own_noise | clean_before | clean_so_far

    dense = create_mask(visible, 1, 1, 2 * length, 2 * length, device="cpu")
    layout = RangeLayout.block_diffusion([length], block)
    assert torch.equal(layout.visibility(), dense[0, 0])

    q, k, v = torch.randn(3, 2 * length, heads, head_dim, dtype=torch.float64)
    out = range_attention(q, k, v, layout)
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=dense)
    torch.testing.assert_close(out, expected[0].transpose(0, 1))
    print(f"block diffusion: {layout.area} of {(2 * length) ** 2} pairs, in {len(layout.segments)} runs of rows")


if __name__ == "__main__":
    main()
