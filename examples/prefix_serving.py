"""Many continuations of one cached prefix: its keys and values are stored once, and read where they lie.

Scoring candidates, editing variants, best-of-n: each continuation sees the prefix and itself. `broadcast_attention`
takes the prefix as a tensor of its own, as a cache holds it. There is no causal order inside a continuation.
"""

import torch

from tivtok.attention import SifLayout, broadcast_attention


def main() -> None:
    torch.manual_seed(0)
    heads, kv_heads, head_dim = 4, 2, 16
    prefix, continuations = 40, [7, 3, 12]
    k_cache, v_cache = torch.randn(2, prefix, kv_heads, head_dim, dtype=torch.float64)  # from the prefix, once
    q = torch.randn(sum(continuations), heads, head_dim, dtype=torch.float64)
    k, v = torch.randn(2, sum(continuations), kv_heads, head_dim, dtype=torch.float64)

    layout = SifLayout.from_lengths(num_tiv=[prefix], frame_tokens=[continuations])
    out = broadcast_attention(q, k, v, k_cache, v_cache, layout=layout)

    # One by one, each with its own copy of the prefix.
    start = 0
    for length in continuations:
        rows = slice(start, start + length)
        keys, values = torch.cat([k_cache, k[rows]]), torch.cat([v_cache, v[rows]])
        alone = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in (q[rows], keys, values)), enable_gqa=True
        )
        torch.testing.assert_close(out[rows], alone[0].transpose(0, 1))
        start += length
    print(f"prefix serving: {prefix} cached keys for {len(continuations)} continuations")


if __name__ == "__main__":
    main()
