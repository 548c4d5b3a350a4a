"""An aggregator of views: camera and register tokens of all frames are global, image patches see them and their frame.

Feed-forward 3D models such as VGGT (arXiv 2503.11651) put a camera token and registers in front of every frame's
patches, and let everything see everything in their global layers, at a cost of frames squared. With the special tokens
global and the patches local, the cost grows with the number of frames. Tokens come as frames have them; `to_packed`
brings the special ones to the front, once before all layers.
"""

import torch
from torch import Tensor

from tivtok.attention import SifLayout, sif_attention


def to_packed(x: Tensor, special: int) -> Tensor:
    """(frames, special + patches, ...) -> (tokens, ...): special tokens of all frames, then the patches of each."""
    return torch.cat([x[:, :special].flatten(0, 1), x[:, special:].flatten(0, 1)])


def from_packed(x: Tensor, frames: int, special: int) -> Tensor:
    """The inverse of `to_packed`."""
    first, rest = x[: frames * special], x[frames * special :]
    return torch.cat([first.unflatten(0, (frames, special)), rest.unflatten(0, (frames, -1))], dim=1)


def main() -> None:
    torch.manual_seed(0)
    frames, special, patches, heads, head_dim = 6, 5, 20, 2, 16  # a camera token and four registers
    layout = SifLayout.uniform(batch=1, num_tiv=frames * special, num_frames=frames, frame_tokens=patches)
    tokens = torch.randn(frames, special + patches, 3, heads, head_dim, dtype=torch.float64)
    q, k, v = to_packed(tokens, special).unbind(1)
    out = from_packed(sif_attention(q, k, v, layout), frames, special)

    # The same with torch's attention and a dense mask, in the order of frames.
    frame = torch.arange(frames).repeat_interleave(special + patches)
    is_special = torch.arange(special + patches).lt(special).repeat(frames)
    visible = is_special[:, None] | is_special | (frame[:, None] == frame)
    heads_first = [x.flatten(0, 1).transpose(0, 1)[None] for x in tokens.unbind(2)]
    dense = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=visible)
    torch.testing.assert_close(out, dense[0].transpose(0, 1).unflatten(0, (frames, -1)))
    print(f"aggregator: {layout.area() / layout.total_tokens**2:.0%} of the dense pairs")


if __name__ == "__main__":
    main()
