"""One clip over several processes, each with some of its frames: forward and backward, exact.

Every process has all TIV rows and its own frames, and calls `sif_attention` with the group. What is sent is (heads,
head_dim + 1) numbers per TIV row, whatever the clip's length. Gradients are shares: they add up over the processes.
"""

import tempfile

import torch
import torch.distributed as dist

from tivtok.attention import SifLayout, sif_attention


def train(rank: int, world: int, meeting: str) -> None:
    """A step on this process's share, compared with the step of one process that has the whole clip."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
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
    rows = torch.tensor([*range(num_tiv), *range(start, start + sum(mine))])
    here = [x.detach()[rows].requires_grad_() for x in leaves]
    out = sif_attention(*here, SifLayout.from_lengths([num_tiv], [mine]), group=dist.group.WORLD)
    torch.testing.assert_close(out, expected[rows])

    # Every process has the loss of all TIV rows, so each takes its share of it.
    losses = (out * weight[rows]).flatten(1).sum(1)
    (losses[num_tiv:].sum() + losses[:num_tiv].sum() / world).backward()
    for x, grad in zip(here, wanted, strict=True):
        dist.all_reduce(x.grad[:num_tiv])
        torch.testing.assert_close(x.grad, grad[rows])
    dist.destroy_process_group()


def main(world: int = 2) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a file to meet at, where a port might be taken
        torch.multiprocessing.spawn(train, (world, f"file://{folder}/meeting"), nprocs=world)
    print(f"context parallel: {world} processes agree with one")


if __name__ == "__main__":
    main()
