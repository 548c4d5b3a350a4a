"""Run by torchrun: clips with their frames spread over the processes, against the same clips in one process."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import ref

import torch
import torch.distributed as dist

from tivtok_kernels import SifLayout, sif_attention

# Clips as (TIV tokens, the frames of each process in turn): ragged, processes without frames of a clip or of any,
# clips without TIV tokens, empty frames.
CLIPS = {
    "one clip": [(6, [[10, 7], [0, 13], [9]])],
    "ragged": [(5, [[4], [], [3, 3]]), (0, [[2, 2], [7], []]), (3, [[], [8], [1]]), (2, [[], [], []])],
    "all on the first": [(4, [[5, 6], [], []])],
    "all on the last": [(4, [[], [5, 6], []]), (1, [[], [3], []])],
}
SENT: list[int] = []  # numbers that went out by each exchange of the call at hand


@dataclass
class Case:
    clips: list[tuple[int, list[list[int]]]]
    heads: int
    kv_heads: int
    dtype: torch.dtype
    backend: str
    scope: str

    def frames_of(self, frames: list[list[int]], rank: int, world: int) -> list[int]:
        """Those of the lists that are this process's: the last process takes what is left."""
        mine = frames[rank : rank + 1] if rank < world - 1 else frames[rank:]
        return [n for part in mine for n in part]

    def run(self, rank: int, world: int) -> None:
        whole = SifLayout.from_lengths([m for m, _ in self.clips], [self.frames_of(f, 0, 1) for _, f in self.clips])
        mine = SifLayout.from_lengths(
            [m for m, _ in self.clips], [self.frames_of(f, rank, world) for _, f in self.clips]
        )
        rows, is_tiv = self.my_rows(rank, world)
        draw = torch.Generator().manual_seed(0)
        shapes = [(whole.total_tokens, h, 16) for h in (self.heads, self.kv_heads, self.kv_heads)]
        inputs = [torch.randn(shape, generator=draw).to(self.dtype) for shape in shapes]
        weight = torch.randn(shapes[0], generator=draw).to(self.dtype)
        lse_weight = torch.randn(shapes[0][:2], generator=draw, dtype=torch.float64)
        options = {"tiv_scope": self.scope, "return_lse": True}

        alone = [x.double().clone().requires_grad_() for x in inputs]
        out, lse = sif_attention(*alone, whole, backend="reference", **options)
        ((out * weight).sum() + (lse * lse_weight).sum()).backward()

        here = [x[rows].requires_grad_() for x in inputs]
        SENT.clear()
        its_out, its_lse = sif_attention(*here, mine, backend=self.backend, group=dist.group.WORLD, **options)
        share = torch.ones(len(rows), dtype=torch.float64).masked_fill(
            is_tiv, 1 / world
        )  # what all compute counts once
        loss = (its_out * weight[rows] * share[:, None, None].to(self.dtype)).sum()
        (loss + (its_lse * lse_weight[rows] * share[:, None]).sum()).backward()

        bound = 1e-12 if self.dtype == torch.float64 else 2e-5
        torch.testing.assert_close(its_out.double(), out[rows], rtol=bound, atol=bound)
        torch.testing.assert_close(its_lse.double(), lse[rows], rtol=bound, atol=bound)
        for got, want in zip(here, alone, strict=True):
            gradient = got.grad.double()
            torch.testing.assert_close(gradient[~is_tiv], want.grad[rows][~is_tiv], rtol=bound, atol=bound)
            tiv = gradient[is_tiv]
            dist.all_reduce(tiv)
            torch.testing.assert_close(tiv, want.grad[rows][is_tiv], rtol=bound, atol=bound)
        if self.scope == "clip":  # LSE and output there, both back: whatever the number of frames
            tiv_rows = int(is_tiv.sum())
            assert SENT[:3] == [tiv_rows * self.heads, tiv_rows * self.heads * 16, tiv_rows * self.heads * 17], SENT

    def my_rows(self, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the whole batch that are here, and which of them are TIV rows."""
        rows: list[int] = []
        is_tiv: list[bool] = []
        at = 0
        for num_tiv, frames in self.clips:
            rows += range(at, at + num_tiv)
            is_tiv += [True] * num_tiv
            before = sum(n for part in frames[:rank] for n in part)
            count = sum(self.frames_of(frames, rank, world))
            first = at + num_tiv + before
            rows += range(first, first + count)
            is_tiv += [False] * count
            at += num_tiv + sum(n for part in frames for n in part)
        return torch.tensor(rows, dtype=torch.int64), torch.tensor(is_tiv, dtype=torch.bool)


def count_what_is_sent() -> None:
    gather, reduce = dist.all_gather, dist.all_reduce

    def all_gather(every, x, group=None):
        SENT.append(x.numel())
        return gather(every, x, group=group)

    def all_reduce(x, op=dist.ReduceOp.SUM, group=None):
        SENT.append(x.numel())
        return reduce(x, op=op, group=group)

    dist.all_gather, dist.all_reduce = all_gather, all_reduce


def check_refusal(rank: int) -> None:
    other = SifLayout.from_lengths([11 + rank], [[3]])  # as no case above has them
    x = torch.randn(other.total_tokens, 1, 8)
    try:
        sif_attention(x, x, x, other, group=dist.group.WORLD)
    except ValueError as error:
        assert "same TIV tokens on every process" in str(error)
    else:
        raise AssertionError("different clips were taken")


def check_end() -> None:
    """A group that is ended is gone, though a graph is left: the call's backward says so."""
    layout = SifLayout.from_lengths([2], [[3]])
    x = torch.randn(layout.total_tokens, 1, 8, requires_grad=True)
    out = sif_attention(x, x, x, layout, group=dist.group.WORLD)
    group = ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert group() is None, "somebody keeps the group"
    try:
        out.sum().backward()
    except RuntimeError as error:
        assert "group" in str(error) and "ended" in str(error), error
    else:
        raise AssertionError("a backward without its group")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    count_what_is_sent()
    for name, clips in CLIPS.items():
        for kv_heads, dtype, backend, scope in (
            (2, torch.float64, "reference", "clip"),
            (1, torch.float64, "sdpa", "clip"),
            (2, torch.float32, "auto", "clip"),
            (1, torch.float32, "auto", "tiv"),
        ):
            try:
                Case(clips, 2, kv_heads, dtype, backend, scope).run(rank, world)
            except AssertionError as error:
                raise AssertionError(
                    f"{name}, {kv_heads} heads of keys, {dtype}, {backend}, {scope}: {error}"
                ) from None
    check_refusal(rank)
    dist.barrier()
    check_end()


if __name__ == "__main__":
    main()
