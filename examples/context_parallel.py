"""One clip over several processes, each with some of its frames: forward and backward, exact.

Frame rows see TIV tokens and their own frame, so they need no other process. TIV rows see the whole clip: each process
attends to its own frames, and the partial results are merged by their log-sum-exp. What is sent is (heads, head_dim +
1) numbers per TIV row, whatever the clip's length. TIV tokens are on all processes.
"""

import os
import socket

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor

from tivtok.attention import RangeLayout, SifLayout, broadcast_attention, range_attention, sif_attention


def attend(tiv: list[Tensor], frames: list[Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Attention of all TIV rows (the same on every process) and of this process's frame rows.

    Args:
        tiv: q, k, v (M, H, D) of the TIV tokens. frames: those of this process's frames, (sum of lengths, H, D).
        lengths: tokens of each of its frames.
    """
    num_tiv = len(tiv[0])
    layout = SifLayout.from_lengths([num_tiv], [lengths])
    local = broadcast_attention(*frames, tiv[1], tiv[2], layout=layout)
    keys, values = frames[1:]
    if dist.get_rank() == 0:  # one process adds what TIV rows see of one another
        keys, values = torch.cat([tiv[1], keys]), torch.cat([tiv[2], values])
    seen = RangeLayout.cross([num_tiv], [len(keys)])
    out, lse = range_attention(tiv[0], keys, values, seen, return_lse=True)
    total = torch.stack(differentiable.all_gather(lse)).logsumexp(0)
    out = differentiable.all_reduce(out * (lse - total).exp()[..., None])
    return out, local


def train(rank: int, world: int, port: int) -> None:
    """A step on this process's share, compared with the step of one process that has the whole clip."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    draw = torch.Generator().manual_seed(0)
    num_tiv, lengths = 6, [10, 7, 0, 13, 9, 4]
    whole = SifLayout.from_lengths([num_tiv], [lengths])
    q, k, v, weight = torch.randn(4, whole.total_tokens, 2, 16, dtype=torch.float64, generator=draw)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    expected = sif_attention(*leaves, whole)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)

    cuts = [len(lengths) * i // world for i in range(world + 1)]
    mine = lengths[cuts[rank] : cuts[rank + 1]]
    start = num_tiv + sum(lengths[: cuts[rank]])
    rows = slice(start, start + sum(mine))
    tiv = [x.detach()[:num_tiv].clone().requires_grad_() for x in leaves]
    frames = [x.detach()[rows].clone().requires_grad_() for x in leaves]
    out, local = attend(tiv, frames, mine)
    # Every process has the loss of all TIV rows, so each takes its share of it.
    loss = (local * weight[rows]).sum() + (out * weight[:num_tiv]).sum() / world
    loss.backward()
    torch.testing.assert_close(local, expected[rows])
    torch.testing.assert_close(out, expected[:num_tiv])
    for x, y, grad in zip(tiv, frames, wanted, strict=True):
        dist.all_reduce(x.grad)
        torch.testing.assert_close(x.grad, grad[:num_tiv])
        torch.testing.assert_close(y.grad, grad[rows])
    dist.destroy_process_group()


def main(world: int = 2) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train, (world, port), nprocs=world)
    print(f"context parallel: {world} processes agree with one")


if __name__ == "__main__":
    main()
