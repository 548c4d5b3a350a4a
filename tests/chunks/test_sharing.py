"""Which chunks share TIV tokens."""

from __future__ import annotations

import pytest
import torch

from tivtok.chunks.sharing import Sharing, TivSets, mean_tiv, merge_tiv, share_tiv_sets, tiv_distance
from tivtok.model.config import TivTokConfig
from tivtok.streaming import encode_stream
from tivtok.tokenizer import TivTok
from tivtok.video import frames_to_video


def scenes(*lengths: int, drift: float = 0.0) -> torch.Tensor:
    """(1, K, 6, 8): as many chunks of each scene, unrelated from scene to scene."""
    generator = torch.Generator().manual_seed(0)
    chunks = []
    for length in lengths:
        scene = torch.randn(6, 8, generator=generator)
        for _ in range(length):
            scene = scene + drift * torch.randn(6, 8, generator=generator)
            chunks.append(scene)
    return torch.stack(chunks)[None]


def assign(tiv: torch.Tensor, tiv_sets: TivSets, *lengths: float, distances: tuple[float, float] | None = None):
    """int64 (K,): the TIV set of each chunk of tiv (B, K, N, D)."""
    sharing = Sharing(tiv_sets) if distances is None else Sharing(tiv_sets, distances)
    for k, chunk in enumerate(tiv.unbind(1)):
        sharing.add(chunk, *lengths[k : k + 1])
    return sharing.set_of_chunk()


def test_distance() -> None:
    a, b = scenes(1, 1)[0]
    assert tiv_distance(a, a) == 0 and tiv_distance(a, -a) == pytest.approx(2) and tiv_distance(a, 0 * a) == 1
    assert 0.7 < tiv_distance(a, b) < 1.3 and tiv_distance(a, b) == pytest.approx(tiv_distance(5 * a, 5 * b))
    assert tiv_distance(0 * a, 0 * a) == 0


@pytest.mark.parametrize("lengths", [(1,), (5,), (3, 1, 4), (1, 1, 1)])
def test_auto_starts_a_set_at_each_scene(lengths: tuple[int, ...]) -> None:
    want = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    assert torch.equal(assign(scenes(*lengths), "auto"), want)
    assert torch.equal(assign(scenes(*lengths, drift=0.01), "auto"), want)


def test_auto_follows_a_slow_drift() -> None:
    """No two neighbours differ much, yet the first and the last do: the distance is to the mean of the run."""
    tiv = scenes(30, drift=0.08)
    neighbours = [tiv_distance(tiv[:, k], tiv[:, k + 1]) for k in range(29)]
    assert max(neighbours) < 0.01
    sets = assign(tiv, "auto", distances=(0.02, 0.02))
    assert 1 <= sets[-1] < 25 and (sets.diff() >= 0).all() and (sets.diff() <= 1).all()


def test_auto_shares_more_until_it_has_saved_what_cuts_have_cost() -> None:
    tiv, distances = scenes(6, drift=0.06), (0.001, 0.1)

    def sets(*lengths: float) -> list[int]:
        return assign(tiv, "auto", *lengths, distances=distances).tolist()

    assert sets(1, 1, 1, 1, 1, 1) == [0, 1, 2, 3, 4, 5]
    assert sets(1, 0.5, 1, 1, 1, 1) == [0, 1, 1, 2, 3, 4]
    assert sets(1, 0.25, 0.25, 1, 1, 1) == [0, 1, 1, 1, 2, 3]


def test_a_set_is_the_mean_of_its_chunks() -> None:
    tiv = scenes(2, 3, drift=0.01)
    merged = merge_tiv(tiv, assign(tiv, "auto"))
    torch.testing.assert_close(merged, torch.stack([tiv[:, :2].mean(1), tiv[:, 2:].mean(1)], dim=1))
    torch.testing.assert_close(mean_tiv(iter(tiv[0])), tiv[0].mean(0))


def test_fixed_numbers_are_even_runs() -> None:
    assert assign(scenes(5), 2).tolist() == share_tiv_sets(5, 2).tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="between 1 and the number of chunks, 5, got 6"):
        assign(scenes(5), 6)


def test_a_batch_shares_its_boundaries() -> None:
    batch = torch.cat([scenes(2, 2), scenes(4)])
    assert assign(batch, "auto").tolist() == [0, 0, 1, 1]
    assert merge_tiv(batch, assign(batch, "auto")).shape == (2, 2, 6, 8)


def test_streaming_decides_like_the_whole() -> None:
    torch.manual_seed(0)
    model = TivTok(TivTokConfig.preset("tiny").replace(width=48, heads=2, encoder_layers=1, decoder_layers=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
        for name, parameter in model.encoder.named_parameters():
            if name == "tiv" or name.endswith("bias"):
                parameter.zero_()  # what is left of the TIV tokens comes from the video
    colours = torch.tensor([[250, 0, 0], [0, 0, 250]], dtype=torch.uint8)  # the cut is inside the second chunk
    frames = colours.repeat_interleave(torch.tensor([25, 32]), 0)[:, None, None].expand(-1, 16, 24, -1)
    with torch.no_grad():
        whole = model.encode(frames_to_video(frames)[None], tiv_sets="auto")
    tokens = encode_stream(model, frames.split(16), "auto")
    assert tokens.tiv_index.diff()[5] == 1 and tokens.tiv_index[5] < tokens.tiv.shape[1] - 1
    assert torch.equal(tokens.tiv_index, whole.tiv_index)
    assert tokens.chunk_frames == whole.chunk_frames == (16, 8, 16, 16, 1)
    rounding = {"rtol": 1e-4, "atol": 1e-4}  # chunks of other batches round otherwise, differently on every processor
    torch.testing.assert_close(tokens.tiv, whole.tiv, **rounding)
    torch.testing.assert_close(tokens.tv, whole.tv, **rounding)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(tokens), model.decode(whole), **rounding)
