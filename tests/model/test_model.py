"""What the paper promises of the tokenizer, as properties of a random model."""

from dataclasses import replace

import pytest
import torch

from tivtok import TivTok, editing
from tivtok.attention import SifLayout
from tivtok.chunks.sharing import merge_tiv, share_tiv_sets
from tivtok.model.blocks import Block
from tivtok.tokens import TokensError
from tivtok_kernels.reference import masked_attention


def video(frames=39, height=18, width=21, batch=1):
    return torch.rand(batch, 3, frames, height, width, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 16, 24), (16, 16, 16), (17, 9, 31), (39, 18, 21)])
def test_any_size_comes_back_exactly(model, shape):
    x = video(*shape, batch=2)
    tokens = model.encode(x)
    groups = -(-shape[0] // 4)
    assert tokens.tiv.shape == (2, 1, 5, 6) and tokens.tv.shape == (2, groups, 2, 6)
    assert tokens.num_tokens == 5 + 2 * groups == model.config.num_tokens(shape[0])
    assert model.decode(tokens).shape == x.shape


@torch.no_grad()
def test_forward_is_decode_of_encode(model):
    x = video()
    torch.testing.assert_close(model(x), model.decode(model.encode(x)))


@torch.no_grad()
def test_padding_does_not_depend_on_what_is_cropped_away(model):
    """Frames 33..35 of the last group are copies of frame 32: making them real must give the same tokens."""
    x = video(frames=33)
    filled = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1, -1)], dim=2)
    torch.testing.assert_close(model.encode(x).tv, model.encode(filled).tv)


@pytest.mark.parametrize("tiv_sets", [1, 2, 3])
@torch.no_grad()
def test_a_frame_depends_on_its_tiv_set_and_its_own_tv_only(model, tiv_sets):
    tokens = model.encode(video(), tiv_sets=tiv_sets)
    before = model.decode(tokens)
    group = 5
    tokens.tv[:, group] += 1
    changed = (model.decode(tokens) - before).abs().amax(dim=(0, 1, 3, 4)) > 1e-12
    frames = torch.arange(39)
    assert torch.equal(changed, frames // 4 == group)

    last = tokens.tiv.shape[1] - 1
    before = model.decode(tokens)
    tokens.tiv[:, last] += 1
    changed = (model.decode(tokens) - before).abs().amax(dim=(0, 1, 3, 4)) > 1e-12
    assert torch.equal(changed, tokens.tiv_index[frames // 4] == last)


@pytest.mark.parametrize(
    "frames", [slice(None), slice(8, 16), slice(13, 14), slice(5, 38, 7), slice(-3, None), slice(30, 40), slice(9, 9)]
)
@torch.no_grad()
def test_decoding_a_slice_equals_slicing_the_whole(model, frames):
    tokens = model.encode(video(), tiv_sets=2)
    torch.testing.assert_close(model.decode(tokens, frames=frames), model.decode(tokens)[:, :, frames])


@torch.no_grad()
def test_decoding_a_slice_computes_only_its_groups(model, monkeypatch):
    tokens = model.encode(video())
    seen = []
    groups = type(model.decoder).groups
    monkeypatch.setattr(
        type(model.decoder),
        "groups",
        lambda self, prepared, tv, *rest: seen.append(tv.shape[1]) or groups(self, prepared, tv, *rest),
    )
    model.decode(tokens, frames=slice(6, 13))
    assert seen == [3]  # groups 1, 2 and 3 of 10


@torch.no_grad()
def test_tiv_sets_in_any_order(model):
    """Groups may use the sets in any order, not only in runs."""
    tokens = model.encode(video(frames=48), tiv_sets=3)
    expected = model.decode(tokens)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    tokens.tv.copy_(tokens.tv[:, shuffled])
    tokens.tiv_index.copy_(tokens.tiv_index[shuffled])
    got = model.decode(tokens).unflatten(2, (12, 4))
    torch.testing.assert_close(got, expected.unflatten(2, (12, 4))[:, :, shuffled])


@torch.no_grad()
def test_shared_decoder_equals_a_dense_masked_decoder(model):
    """The broadcast path against the same blocks run over [TIV | all frames] under the dense decoder mask."""
    if model.config.decoder != "shared":
        pytest.skip("the property is that of the shared decoder")
    tokens = model.encode(video(frames=12, height=16, width=16))
    decoder, config = model.decoder, model.config
    num_patches, groups = 4, 3
    frames = decoder._frame_rows(tokens.tv, 2, 2)
    x = torch.cat([decoder.from_latent(tokens.tiv[:, 0]) + decoder.tiv_embedding, frames.flatten(1, 2)], dim=1)[0]
    layout = SifLayout.uniform(1, config.num_tiv, groups, config.num_tv + num_patches)
    visible = layout.visibility("tiv")

    of_one_frame = decoder._rotary((1, 2, 2), x, config.num_tv, config.num_tiv)
    tiled = [torch.cat([t[: config.num_tiv], t[config.num_tiv :].repeat(groups, 1)]) for t in of_one_frame]
    for block in decoder.blocks:
        out, _ = masked_attention(*block.qkv(x, tuple(tiled)), visible, config.head_dim**-0.5)
        x = block.finish(x, out)
    patches = decoder._pixels(x[config.num_tiv :].unflatten(0, (groups, -1))[:, config.num_tv :])
    expected = decoder.groups(decoder.prepare(tokens.tiv[:, 0]), tokens.tv, [groups], 2, 2)[0]
    torch.testing.assert_close(patches, expected)


@torch.no_grad()
def test_tv_tokens_do_not_see_other_frames_but_through_tiv(model):
    """Without TIV tokens there is no path between frame groups: the factorization of Eq. 3-4."""
    torch.manual_seed(0)
    alone = TivTok(model.config.replace(num_tiv=0)).double().eval()
    x = video(frames=16)
    before = alone.encode(x).tv
    x[:, :, 4:8] = 0
    changed = (alone.encode(x).tv - before).abs().amax(dim=(0, 2, 3)) > 1e-12
    assert changed.tolist() == [False, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("latent_positions", ["none", "grid", "tiv-grid"])
def test_an_encoder_without_time_does_not_know_the_order_of_the_frame_groups(model, latent_positions):
    torch.manual_seed(0)
    x, order = video(frames=16), torch.tensor([2, 0, 3, 1])
    shuffled = x.unflatten(2, (4, 4))[:, :, order].flatten(2, 3)
    for encoder_time in ("none", "rotary"):
        config = model.config.replace(encoder_time=encoder_time, latent_positions=latent_positions)
        other = TivTok(config).double().eval()
        other.load_state_dict(model.state_dict())
        before, after = other.encode(x), other.encode(shuffled)
        same = [torch.allclose(a, b) for a, b in ((before.tiv, after.tiv), (before.tv[:, order], after.tv))]
        assert same == [encoder_time == "none"] * 2


@torch.no_grad()
def test_siblings_decode_a_chunk_through_the_tiv_set_of_the_one_before(model):
    x = video(frames=39)
    tiv, tv = model.encode_chunks(x)
    assert tiv.shape[1] == 3
    got = model(x, siblings=True)
    for chunk, before in enumerate((2, 0, 1)):
        groups = tv[:, 4 * chunk : 4 * chunk + 4]
        want = model.decode_groups(model.prepare(tiv[:, [before]]), groups, [groups.shape[1]], *x.shape[3:])
        frames = slice(16 * chunk, min(16 * chunk + 16, 39))
        torch.testing.assert_close(got[:, :, frames], want[:, :, : frames.stop - frames.start])


@torch.no_grad()
def test_clips_without_tv_tokens_are_decoded_with_those_of_grey(model):
    x = torch.cat([video(frames=32), -video(frames=32)])
    tokens, grey = model.encode(x), editing.grey_tokens(model, *x.shape[3:])
    got = model(x, without_tv=torch.tensor([False, True] * (len(x) // 2)))
    torch.testing.assert_close(got[::2], model(x)[::2])
    torch.testing.assert_close(got[1::2], model.decode(editing.tiv_only(tokens, grey))[1::2])
    assert (got - model(x))[1::2].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("siblings", [False, True])
def test_noise_is_added_to_the_tokens_that_are_decoded(model, siblings):
    x, config = video(frames=32), model.config
    tokens = model.encode(x, tiv_sets=2 if siblings else 1)
    noise = torch.randn(len(x), 2, config.num_tiv, config.latent_dim), torch.randn_like(tokens.tv)
    tiv = (tokens.tiv.roll(1, dims=1) if siblings else tokens.tiv) + noise[0][:, : tokens.tiv.shape[1]]
    noisy = replace(tokens, tiv=tiv, tv=tokens.tv + noise[1])
    got = model(x, siblings=siblings, noise=noise)
    torch.testing.assert_close(got, model.decode(noisy))
    assert (got - model(x, siblings=siblings)).abs().max() > 1e-3


@torch.no_grad()
def test_tokens_of_another_model_are_refused(model):
    tokens = model.encode(video(frames=4))
    next(model.parameters()).add_(1)
    with pytest.raises(TokensError, match="were made by model"):
        model.decode(tokens)


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (1, 1, 4, 8, 8), (1, 3, 0, 8, 8)])
def test_wrong_video_is_named(model, shape):
    with pytest.raises(ValueError, match=r"video must be \(B, 3, F, H, W\)"):
        model.encode(torch.zeros(shape))


def test_too_many_tiv_sets_are_refused(model):
    with pytest.raises(ValueError, match="tiv_sets must be between 1 and the number of chunks, 3, got 4"):
        model.encode(video(), tiv_sets=4)


def test_tiv_sets_are_means_over_runs_of_chunks():
    assert share_tiv_sets(5, 2).tolist() == [0, 0, 0, 1, 1]
    tiv = torch.arange(5.0).view(1, 5, 1, 1)
    assert merge_tiv(tiv, share_tiv_sets(5, 2)).flatten().tolist() == [1.0, 3.5]
    assert merge_tiv(tiv, share_tiv_sets(5, 5)).flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("quantizer", ["none", "softvq"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_every_parameter_learns(model, quantizer, qk_norm):
    model = TivTok(model.config.replace(quantizer=quantizer, codebook_size=16, qk_norm=qk_norm)).double()
    model(video(frames=20, height=16, width=16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_block_is_a_residual(model):
    block: Block = model.encoder.blocks[0]
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    with torch.no_grad():
        block.to_out.weight.zero_()
        block.to_out.bias.zero_()
        block.mlp[2].weight.zero_()
        block.mlp[2].bias.zero_()
    assert torch.equal(block.finish(x, block.qkv(x)[2]), x)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("model", ["shared", "per_frame, grid", "shared, tiv-grid"], indirect=True)
def test_the_model_compiles_in_one_graph(model):
    """Each decoder and each kind of positions once."""
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = video(frames=8, height=16, width=16)
    out, expected = compiled(x), model(x)
    torch.testing.assert_close(out, expected)
    tiv = model.encoder.tiv
    got, want = (torch.autograd.grad(y.square().mean(), tiv)[0] for y in (out, expected))
    torch.testing.assert_close(got, want)


def test_what_inference_caches_can_be_trained_with(model):
    """Layouts and rotary tables made under inference_mode must not come back as inference tensors."""
    x = video(frames=8, height=40, width=8)  # a size that no other test has cached
    with torch.inference_mode():
        model(x)
    model(x).square().mean().backward()
    assert model.encoder.tiv.grad is not None
