"""Run by torchrun on two processes: a training step of the model, each with some of the clips' frame groups."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from tivtok import TivTok, TivTokConfig

GROUPS, BATCH, SIDE = 4, 2, 16


def loss_of(model: TivTok, tiv: torch.Tensor, tv: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Squared error of the frames at hand: what the processes have of it adds up."""
    decoded = model.decode_groups(model.prepare(tiv[:, None]), tv, [tv.shape[1]], SIDE, SIDE)
    return (decoded - video).square().sum() / (BATCH * GROUPS)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = TivTok(replace(TivTokConfig.preset("tiny"), groups_per_chunk=GROUPS)).double()
    per_group = model.config.frames_per_group
    video = torch.rand(BATCH, 3, GROUPS * per_group, SIDE, SIDE, dtype=torch.float64) * 2 - 1

    tiv, tv = model.encoder(video)
    loss_of(model, tiv, tv, video).backward()
    wanted = {name: x.grad for name, x in model.named_parameters()}
    model.zero_grad()

    first, last = [(0, 1), (1, GROUPS)][rank]
    mine = video[:, :, first * per_group : last * per_group]
    its_tiv, its_tv = model.encoder(mine, group=dist.group.WORLD, first_group=first)
    torch.testing.assert_close(its_tiv, tiv)
    torch.testing.assert_close(its_tv, tv[:, first:last])

    loss_of(model, its_tiv, its_tv, mine).backward()
    for name, x in model.named_parameters():
        grad = torch.zeros_like(x) if x.grad is None else x.grad
        dist.all_reduce(grad)
        assert (wanted[name] is None) == (not grad.any()), name
        if wanted[name] is not None:
            torch.testing.assert_close(grad, wanted[name], msg=lambda text, name=name: f"{name}: {text}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
