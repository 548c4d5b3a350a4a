"""Patches, rotary positions, quantizer, checkpoints."""

import json
from itertools import combinations

import pytest
import torch

from tivtok import TivTok, TivTokConfig
from tivtok.checkpoints import CheckpointError
from tivtok.identity import new_model_id, unstored_model_id
from tivtok.model.blocks import Block, Blocks, Places, init_local
from tivtok.model.patchify import pad_to_patches, patch_grid, patchify, unpatchify
from tivtok.model.quantizer import SoftVQ
from tivtok.model.rope import nested_places, places, rotary_table, split_pairs
from tivtok_kernels.prepare import prepare_qk

PATCH = (4, 8, 8)


def test_patchify_round_trip_and_order():
    video = torch.arange(2 * 3 * 8 * 16 * 24.0).view(2, 3, 8, 16, 24)
    patches = patchify(video, PATCH)
    assert patches.shape == (2, 2, 6, 768)
    assert torch.equal(patches[1, 1, 4].view(3, 4, 8, 8), video[1, :, 4:8, 8:16, 8:16])  # group 1, row 1, column 1
    assert torch.equal(unpatchify(patches, (2, 2, 3), PATCH), video)


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 8, 8), (5, 9, 17)])
def test_padding_repeats_the_edge(size):
    video = torch.randn(1, 3, *size)
    padded = pad_to_patches(video, PATCH)
    assert all(n % p == 0 for n, p in zip(padded.shape[2:], PATCH, strict=True))
    frames, height, width = size
    assert torch.equal(padded[:, :, :frames, :height, :width], video)
    assert torch.equal(padded[..., -1, -1], padded[..., height - 1, width - 1])
    assert patch_grid(*size, PATCH) == tuple(n // p for n, p in zip(padded.shape[2:], PATCH, strict=True))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_some_heads_are_rotated_and_the_others_are_not(qk_norm):
    config = TivTokConfig.preset("tiny").replace(width=48, heads=3, qk_norm=qk_norm)
    torch.manual_seed(0)
    whole, half = Block(config), Block(config.replace(rope_heads=2))
    half.load_state_dict(whole.state_dict())
    x, rotary = torch.randn(2, 6, 48), rotary_table(16, 0, (1, 2, 3), 100.0)
    rotated, plain, got = whole.qkv(x, rotary), whole.qkv(x), half.qkv(x, rotary)
    for a, b, c in zip(rotated, plain, got, strict=True):
        torch.testing.assert_close(c, torch.cat([a[..., :2, :], b[..., 2:, :]], dim=-2))
    assert not torch.equal(rotated[0][..., 2, :], plain[0][..., 2, :])
    assert all(map(torch.equal, half.qkv(x), plain))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_local_initialization_looks_at_what_is_near_first(qk_norm):
    config = TivTokConfig.preset("tiny").replace(qk_norm=qk_norm)
    side, rows = 5, 25
    rotary = rotary_table(config.head_dim, 0, (1, side, side), config.rope_theta)
    here = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    torch.manual_seed(0)
    x = torch.randn(rows, config.width)

    def mean_distance(local: bool) -> float:
        blocks = Blocks(config, 2).apply(init_local) if local else Blocks(config, 2)
        q, k, _ = blocks[0].qkv(x, rotary)
        weights = (torch.einsum("qhd,khd->hqk", q, k) * config.head_dim**-0.5).softmax(-1)
        return (weights.mean(0) * torch.cdist(here, here)).sum(1).mean().item()

    assert mean_distance(local=True) < 0.85 * mean_distance(local=False)


def test_rotary_pairs_at_head_dim_64_are_12_10_10():
    assert split_pairs(64) == (12, 10, 10)
    assert all(sum(split_pairs(d)) == d // 2 for d in range(2, 257, 2))


def test_rotary_scores_depend_on_the_offset_between_patches_only():
    table = rotary_table(32, 1, (3, 4, 5), 10_000.0, tokens_before=2)
    q, k = torch.randn(2, 32)
    rows = 2 + 3 * (1 + 4 * 5)
    qkv = torch.cat([q, k, k]).expand(rows, -1)
    rotated_q, rotated_k = (x[:, 0] for x in prepare_qk(qkv, 1, table)[:2])
    assert torch.equal(rotated_q[:3], q.expand(3, 32))  # both leading rows and the first latent stay as they are

    def row(t, y, x):
        return 2 + t * 21 + 1 + y * 5 + x

    def score(a, b):
        return rotated_q[row(*a)] @ rotated_k[row(*b)]

    torch.testing.assert_close(score((0, 1, 2), (1, 2, 0)), score((1, 2, 3), (2, 3, 1)))
    assert abs(score((0, 0, 0), (0, 0, 1)) - score((0, 0, 1), (0, 0, 0))) > 1e-3


def test_placed_latents_turn_like_the_patches_at_their_places():
    cos, sin = rotary_table(32, 4, (3, 2, 2), 20.0, tokens_before=4, latent_grid=(2, 2))
    for table in (cos, sin):
        frames = table[4:].view(3, 8, 16)
        torch.testing.assert_close(frames[:, :4], frames[:, 4:])  # four places are the four patches of a 2x2 grid
        torch.testing.assert_close(table[:4], frames[0, 4:])
    assert not torch.equal(cos[4:8], cos[12:16])  # nor are those of another frame at the same time


def test_rotary_tables_without_time_or_without_places_for_the_latents_of_a_group():
    full, timeless, free = (
        rotary_table(32, 4, (3, 2, 2), 20.0, 4, latent_grid=(2, 2), **options)[0]
        for options in ({}, {"timed": False}, {"placed": False})
    )
    groups = timeless[4:].view(3, 8, 16)
    assert torch.equal(groups[0], groups[2]) and torch.equal(timeless[:12], full[:12])
    assert torch.equal(free[:4], full[:4])
    assert (free[4:].view(3, 8, 16)[:, :4] == 1).all()
    assert torch.equal(free[4:].view(3, 8, 16)[:, 4:], full[4:].view(3, 8, 16)[:, 4:])


def test_placed_latents_do_not_move_with_the_size_of_the_video():
    small, large = (rotary_table(32, 3, (1, *size), 20.0, 5, latent_grid=(8, 6))[0] for size in ((8, 6), (16, 30)))
    assert torch.equal(small[:8], large[:8])
    # Three rows of patches for each row of positions: the middle ones are where those were.
    tall = rotary_table(32, 3, (1, 24, 6), 20.0, 5, latent_grid=(8, 6))[0]
    torch.testing.assert_close(tall[8:].view(8, 3, 6, 16)[:, 1], small[8:].view(8, 6, 16))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 24, 96, 97])
def test_places_are_spread_evenly(count):
    points = places(count)
    assert points.shape == (count, 2) and (points > 0).all() and (points < 1).all()
    torch.testing.assert_close(points.sum(0), torch.full((2,), count / 2, dtype=torch.float64), atol=0.6, rtol=0)
    if count > 1:
        nearest = (torch.cdist(points, points) + torch.eye(count) * 9).amin(1)
        assert nearest.min() > 0.7 / count**0.5


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8, 12, 16])
def test_the_first_nested_places_leave_none_far_away(count):
    """The largest distance to them is at most 1.5 times the smallest possible with so many, by trial of all choices."""
    points = nested_places(count)
    assert sorted(points.tolist()) == sorted(places(count).tolist())
    distances = torch.cdist(points, points)
    for first in range(1, min(count, 6)):
        best = min(distances[list(chosen)].amin(0).max() for chosen in combinations(range(count), first))
        assert distances[:first].amin(0).max() <= 1.5 * best + 1e-9


@pytest.mark.parametrize("count", [20, 96, 97, 768])
def test_every_number_of_nested_places_is_spread_over_the_frame(count):
    """To cover the unit square, n discs need a radius of 0.56 / sqrt(n); in reading order places need 1.9 or more."""

    def largest(points):
        nearest = (points[:, None] - points).square().sum(2).sqrt().cummin(0).values.amax(1)
        return float((nearest * torch.arange(1, count + 1).sqrt()).max())

    assert largest(nested_places(count)) < 1.3 < 1.9 < largest(places(count))


def test_the_order_of_nested_places_is_that_of_its_definition():
    points = places(33)
    distances = (points[:, None] - points).square().sum(2)
    nearest = torch.full((33,), torch.inf, dtype=torch.float64)
    for place in nested_places(33):
        left = torch.minimum(nearest, distances).sum(1)
        first = int((left < left.min() + 1e-9).nonzero()[0])
        assert torch.equal(place, points[first])
        nearest = torch.minimum(nearest, distances[first])


@pytest.mark.parametrize("placed", [True, False])
def test_the_table_of_the_first_nested_latents_has_rows_of_that_of_all(placed):
    full, few = (
        rotary_table(32, num_tv, (2, 3, 5), 20.0, num_tiv, (3, 5), placed=placed, timed=False, nested_of=(9, 4))
        for num_tv, num_tiv in ((4, 9), (2, 5))
    )
    for whole, table in zip(full, few, strict=True):
        groups, its_groups = whole[9:].view(2, 19, 16), table[5:].view(2, 17, 16)
        assert torch.equal(table[:5], whole[:5]) and torch.equal(its_groups[:, :2], groups[:, :2])
        assert torch.equal(its_groups[:, 2:], groups[:, 4:])


def test_softvq_is_a_convex_mixture_of_unit_codes():
    quantizer = SoftVQ(codebook_size=8, dim=4, temperature=0.01)
    codes = torch.nn.functional.normalize(quantizer.codebook, dim=-1)
    torch.testing.assert_close(quantizer(3.0 * codes.detach()), codes, atol=0.2, rtol=0)
    assert (quantizer(torch.randn(5, 4)).norm(dim=-1) <= 1 + 1e-6).all()


def test_softvq_entropy_penalty_is_lowest_for_decided_and_even_use():
    quantizer = SoftVQ(codebook_size=4, dim=4, temperature=0.07)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.eye(4))
    even, collapsed = torch.eye(4), torch.eye(4)[:1].expand(4, -1)
    assert quantizer.entropy_penalty(even).item() == pytest.approx(-torch.log(torch.tensor(4.0)).item(), abs=1e-3)
    assert quantizer.entropy_penalty(collapsed).item() == pytest.approx(0, abs=1e-3)


CONFIG = TivTokConfig(
    name="minimal", num_tiv=2, num_tv=1, latent_dim=4, width=16, heads=2, encoder_layers=1, decoder_layers=1
)


def test_checkpoint_round_trip(tmp_path):
    model = TivTok(CONFIG)
    model.save_pretrained(tmp_path / "m")
    for path in (tmp_path / "m", tmp_path / "m" / "model.safetensors"):
        again = TivTok.from_pretrained(path)
        assert again.config == model.config and again.model_id == model.model_id
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


def test_model_id_follows_the_weights(tmp_path):
    model = TivTok(CONFIG)
    before = model.model_id
    assert model.model_id == before
    with torch.no_grad():
        model.encoder.tiv.add_(1)
    assert model.model_id != before


def test_model_id_is_kept_through_dtypes(tmp_path):
    TivTok(CONFIG).save_pretrained(tmp_path / "a")
    model = TivTok.from_pretrained(tmp_path / "a")
    model_id = model.model_id
    model.to(torch.bfloat16).save_pretrained(tmp_path / "b")
    again = TivTok.from_pretrained(tmp_path / "b")
    assert again.model_id == model_id
    with torch.no_grad():
        again.decoder.patch_query.mul_(2)
    assert again.model_id != model_id


def test_model_id_is_new_when_the_config_was_edited(tmp_path):
    model = TivTok(CONFIG)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder": "per_frame"}))
    assert TivTok.from_pretrained(tmp_path).model_id != model.model_id


def test_model_id_knows_only_what_differs_from_the_defaults():
    """So a field that is new in `TivTokConfig` changes no id."""
    weights = TivTok(CONFIG).state_dict()
    stated = CONFIG.replace(decoder="shared", qk_norm=False)
    assert new_model_id(stated, weights) == new_model_id(CONFIG, weights)
    assert new_model_id(CONFIG.replace(qk_norm=True), weights) != new_model_id(CONFIG, weights)
    assert new_model_id(CONFIG, dict(reversed(weights.items()))) == new_model_id(CONFIG, weights)


def test_model_id_of_a_checkpoint_from_before_ids_were_stored():
    """The id in token files that the checkpoint's first users made."""
    config = TivTokConfig(
        name="old", num_tiv=1, num_tv=1, latent_dim=1, width=2, heads=1, encoder_layers=1, decoder_layers=1
    )
    weights = {name: torch.full_like(x, 0.5) for name, x in TivTok(config).state_dict().items()}
    assert unstored_model_id(config, weights) == "2fe2fbe45c15639e"


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere"):
        TivTok.from_pretrained("nowhere")
    TivTok(CONFIG).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 32}))
    with pytest.raises(CheckpointError, match="do not fit its config"):
        TivTok.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    with pytest.raises(CheckpointError, match="unknown config keys: colour"):
        TivTok.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be read"):
        TivTok.from_pretrained(tmp_path)


def test_places_are_interpolated_at_other_sizes() -> None:
    """A table that rises evenly from left to right does so on any grid; the native grid gets the table itself."""
    embedding = Places(TivTokConfig(width=2, heads=1, patch=(1, 4, 4), native_size=(8, 16)))
    assert not embedding.table.any()
    with torch.no_grad():
        embedding.table.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(2)[:, None].expand(-1, 2))
    assert embedding(2, 4) is embedding.table
    torch.testing.assert_close(embedding(1, 8)[:, 0], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
