"""A transformer block with scope-induced attention: TIV tokens see their clip, frame tokens see TIV and their frame."""

import torch
from torch import Tensor, nn

from tivtok.attention import SifLayout, sif_attention


class Block(nn.Module):
    """A pre-norm block on packed tokens (N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, layout: SifLayout) -> Tensor:
        # (N, 3, heads, head_dim): q, k and v are strided slices, which the kernels read in place.
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        x = x + self.project(sif_attention(q, k, v, layout).flatten(1))
        return x + self.mlp(self.mlp_norm(x))


def main() -> None:
    torch.manual_seed(0)
    layout = SifLayout.from_lengths(num_tiv=[4, 0], frame_tokens=[[9, 9, 6], [5, 7]])  # two clips, ragged
    block = Block(width=32, heads=4)
    x = torch.randn(layout.total_tokens, 32, requires_grad=True)
    out = block(x, layout)

    # A change in frame 3 of the first clip reaches that frame and the clip's TIV tokens, and nobody else.
    changed = x.detach().clone()
    changed[4 + 9 + 9 : 4 + 9 + 9 + 6] += 1
    moved = (block(changed, layout) - out).abs().amax(1) > 0
    assert moved.tolist() == [True] * 4 + [False] * 18 + [True] * 6 + [False] * 12
    out.square().mean().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    print("block:", tuple(out.shape), "of", layout.num_clips, "clips")


if __name__ == "__main__":
    main()
