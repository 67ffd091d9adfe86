"""Patches, positions, masks, heads, the decoder, targets and momentum: properties, and equality with
independent implementations."""

import itertools, math
from functools import partial
import helpers
from helpers import seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy.ndimage import zoom
from timm.layers import resample_abs_pos_embed
from timm.utils import ModelEmaV3
from torch import nn
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEDecoder,
    ViTMAEEmbeddings,
    ViTMAEForPreTraining,
    build_2d_sinusoidal_position_embedding,
)

from vit_ssl_lab.components.decoders import MAEDecoder
from vit_ssl_lab.components.heads import LinearHead, mlp_head
from vit_ssl_lab.components.masking import (
    KINDS,
    block_masking,
    grid_masking,
    group_masking,
    group_members,
    num_visible,
    mask_from,
    make_mask,
    random_masking,
    gather_tokens,
)
from vit_ssl_lab.components.momentum import cosine_momentum, momentum_copy, momentum_update
from vit_ssl_lab.components.patches import grid_of, mask_to_pixels, patchify, unpatchify
from vit_ssl_lab.components.positions import (
    LearnedPositions,
    position_similarity,
    resample_positions,
    sincos_1d,
    sincos_2d,
    sincos_nd,
)
from vit_ssl_lab.components.patches import (
    flat_fraction,
    normalise_patches,
    unnormalise_estimated,
    unnormalise_true,
)
from vit_ssl_lab.components.losses import masked_mse

few = settings(max_examples=40, deadline=None, derandomize=True)


small = st.integers(1, 5)
grids = st.tuples(st.integers(1, 16), st.integers(1, 16)).filter(lambda g: g[0] * g[1] > 1)


# --- patches


@few
@given(batch=st.integers(1, 3), channels=st.sampled_from([1, 3]), rows=small, cols=small, ph=small, pw=small)
def test_patchify_and_back(batch, channels, rows, cols, ph, pw):
    images = torch.rand(batch, channels, rows * ph, cols * pw, generator=seeded(0))
    patches = patchify(images, (ph, pw))
    assert patches.shape == (batch, rows * cols, ph * pw * channels)
    assert torch.equal(unpatchify(patches, (ph, pw), (rows, cols), channels), images)
    assert torch.equal(patchify(unpatchify(patches, (ph, pw), (rows, cols), channels), (ph, pw)), patches)
    last = images[:, :, -ph:, -pw:].permute(0, 2, 3, 1).flatten(1)  # cut by hand: the last patch
    assert torch.equal(patches[:, -1], last)


@few
@given(rows=small, cols=small, ph=small, pw=small)
def test_a_mask_of_pixels_is_constant_in_a_patch(rows, cols, ph, pw):
    mask = torch.rand(2, rows * cols, generator=seeded(1))
    pixels = mask_to_pixels(mask, (ph, pw), (rows, cols))
    assert torch.equal(patchify(pixels, (ph, pw)), mask[..., None].expand(-1, -1, ph * pw))


@few
@given(h=st.integers(1, 40), w=st.integers(1, 40), ph=small, pw=small)
def test_grid_of_agrees_with_division_or_refuses(h, w, ph, pw):
    if h % ph or w % pw:
        with pytest.raises(ValueError, match='does not divide into patches'):
            grid_of((h, w), (ph, pw))
    else:
        assert grid_of((h, w), (ph, pw)) == (h // ph, w // pw)


# --- positions


@pytest.mark.parametrize('grid, width', [((14, 14), 768), ((3, 7), 16), ((1, 5), 8)])
def test_sincos_2d_is_transformers_table(grid, width):
    theirs = build_2d_sinusoidal_position_embedding(*grid, width, cls_token=True)
    # its own rotation to MAE's layout, see ViTMAEEmbeddings
    theirs = torch.cat([theirs[:, width // 2 :], theirs[:, : width // 2]], dim=1)
    torch.testing.assert_close(sincos_2d(grid, width, prefix=1)[0], theirs, atol=1e-6, rtol=0)


def test_sincos_2d_is_the_table_of_a_transformers_model():
    model = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=32, image_size=20, patch_size=4))
    model.initialize_weights()
    torch.testing.assert_close(
        sincos_2d((5, 5), 32, prefix=1), model.position_embeddings.detach(), atol=1e-6, rtol=0
    )


def test_sincos_2d_is_the_formula():
    rows, cols, width = 4, 6, 24
    table = sincos_2d((rows, cols), width)[0].double()
    for r in range(rows):
        for c in range(cols):
            by_hand = [
                f(p / 10000 ** (i / (width // 4)))
                for p in (c, r)
                for f in (math.sin, math.cos)
                for i in range(width // 4)
            ]
            np.testing.assert_allclose(table[r * cols + c], by_hand, atol=1e-6)
    # row 1, column 2 of width 8: frequencies 1 and 1/100
    np.testing.assert_allclose(
        sincos_2d((2, 3), 8)[0, 5],
        [0.909297, 0.019999, -0.416147, 0.9998, 0.841471, 0.01, 0.540302, 0.99995],
        atol=1e-6,
    )


@few
@given(
    grid=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    pairs=st.integers(6, 20),
    prefix=st.integers(0, 2),
)
def test_sincos_nd_gives_each_place_its_own_vector(grid, pairs, prefix):
    table = sincos_nd(tuple(grid), 2 * pairs, prefix)
    n = math.prod(grid)
    assert table.shape == (1, prefix + n, 2 * pairs)
    assert table.dtype == torch.float32
    assert table[0, :prefix].eq(0).all()
    assert len(table[0, prefix:].unique(dim=0)) == n
    # sin^2 + cos^2 = 1 a pair
    torch.testing.assert_close(table[0, prefix:].norm(dim=1), torch.full((n,), math.sqrt(pairs)))


@pytest.mark.parametrize('old, new', [((14, 14), (24, 24)), ((4, 6), (8, 5)), ((14, 14), (7, 7))])
def test_bicubic_resampling_is_timms(old, new):
    table = torch.randn(1, 1 + math.prod(old), 16, generator=seeded(0))
    torch.testing.assert_close(
        resample_positions(table, old, new, prefix=1),
        resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=1),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize('old, new', [((14, 14), (24, 24)), ((4, 6), (8, 5)), ((9, 3), (4, 7))])
def test_aligned_resampling_is_scipys(old, new):
    table = torch.randn(1, 2 + math.prod(old), 8, generator=seeded(0))
    theirs = zoom(table[0, 2:].reshape(*old, 8).numpy(), (new[0] / old[0], new[1] / old[1], 1), order=1)
    ours = resample_positions(table, old, new, prefix=2, mode='bilinear-aligned')
    np.testing.assert_allclose(ours[0, 2:].reshape(*new, 8), theirs, atol=1e-5)
    assert torch.equal(ours[:, :2], table[:, :2])


def test_resampling_a_sequence_keeps_dtype_and_ends():
    table = torch.randn(1, 10, 4, generator=seeded(0)).half()
    out = resample_positions(table, (10,), (19,), prefix=0, mode='bilinear-aligned')
    assert out.shape == (1, 19, 4)
    assert out.dtype == torch.float16
    assert torch.equal(out[:, ::2], table)


def test_similarity_is_the_cosine():
    table = torch.randn(1, 7, 5, generator=seeded(0))
    theirs = F.cosine_similarity(table[0, 1:, None], table[0, None, 1:], dim=-1)
    torch.testing.assert_close(position_similarity(table, (2, 3), prefix=1), theirs)


# --- masks


@pytest.mark.parametrize(
    'n, ratio, k',
    [
        (196, 0.75, 49),
        (49, 0.75, 12),
        (100, 0.9, 9),
        (100, 0.8, 19),
        (64, 0.75, 16),
        (10, 0.0, 10),
        (256, 0.75, 64),
    ],
)
def test_kept_rounds_as_mae_does(n, ratio, k):
    assert num_visible(n, ratio) == int(n * (1 - ratio)) == k


@few
@given(
    kind=st.sampled_from([k for k in KINDS if k != 'group']),
    batch=st.integers(1, 4),
    grid=grids,
    ratio=st.floats(0, 0.95),
    seed=st.integers(0, 99),
)
def test_every_kind_keeps_the_contract(kind, batch, grid, ratio, seed):
    n = math.prod(grid)
    k = int(n * (1 - ratio))
    if k == 0:
        with pytest.raises(ValueError, match='leaves none'):
            make_mask(kind, batch, grid, ratio)
        return
    m, again = (make_mask(kind, batch, grid, ratio, generator=seeded(seed)) for _ in range(2))
    assert m.keep.shape == (batch, k)
    assert m.mask.shape == (batch, n)
    assert m.keep.dtype == torch.int64
    assert all(len(set(row)) == k for row in m.keep.tolist())
    # the kept are the zeros, all others ones
    assert m.mask.gather(1, m.keep).eq(0).all()
    assert m.mask.sum(1).eq(n - k).all()
    assert set(m.mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(m.keep, again.keep)
    assert torch.equal(m.mask, again.mask)
    tokens = torch.arange(batch * n).reshape(batch, n, 1)
    assert torch.equal(gather_tokens(tokens, m.keep)[..., 0], m.keep + n * torch.arange(batch)[:, None])


@few
@given(
    batch=st.integers(1, 3),
    axes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    ratio=st.floats(0, 0.8),
    seed=st.integers(0, 99),
)
def test_groups_keep_the_contract_on_any_number_of_axes(batch, axes, ratio, seed):
    "Checked group by group with slices, patch by patch."
    grid = tuple(g * s for g, s in axes)
    group = tuple(s for _, s in axes)
    groups = math.prod(g for g, _ in axes)
    k = int(groups * (1 - ratio))
    if k == 0:
        with pytest.raises(ValueError, match='leaves none'):
            group_masking(batch, grid, ratio, group=group)
        return
    noise = torch.rand(batch, groups, generator=seeded(seed))
    m = group_masking(batch, grid, ratio, group=group, noise=noise)
    picture = m.mask.reshape(batch, *grid)
    kept_groups = noise.argsort(1)[:, :k]
    for i, at in enumerate(itertools.product(*(range(g) for g, _ in axes))):
        block = picture[(slice(None), *(slice(a * s, a * s + s) for a, s in zip(at, group)))].flatten(1)
        assert torch.equal(block, (~(kept_groups == i).any(1)).float()[:, None].expand_as(block))
    assert m.keep.shape == (batch, k * math.prod(group))
    assert m.mask.gather(1, m.keep).eq(0).all()
    assert all(len(set(row)) == len(row) for row in m.keep.tolist())
    assert sorted(group_members(grid, group).flatten().tolist()) == list(range(math.prod(grid)))


def test_noise_of_patches_serves_groups():
    """Whoever hands out one number a patch need not know the groups; and any part of a batch is masked as in
    the whole."""
    noise = torch.rand(6, 64, generator=seeded(0))
    whole = make_mask('group', 6, (8, 8), 0.65, noise=noise)
    assert whole.keep.shape == (6, 20)
    assert torch.equal(whole.keep[2:5], make_mask('group', 3, (8, 8), 0.65, noise=noise[2:5]).keep)
    assert torch.equal(
        whole.mask, group_masking(6, (8, 8), 0.65, noise=noise[:, group_members((8, 8), 2)[:, 0]]).mask
    )


def test_random_masking_is_transformers():
    noise = torch.rand(5, 49, generator=seeded(0))
    tokens = torch.randn(5, 49, 8, generator=seeded(1))
    theirs = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=8, image_size=28, patch_size=4, mask_ratio=0.75))
    visible, mask, _ = theirs.random_masking(tokens, noise)
    m = random_masking(5, (7, 7), 0.75, noise=noise)
    assert torch.equal(m.mask, mask)
    assert torch.equal(gather_tokens(tokens, m.keep), visible)


def test_random_masking_is_uniform():
    mask = random_masking(4000, (4, 4), 0.75, generator=seeded(0)).mask
    assert (mask.mean(0) - 0.75).abs().max() < 4 * (0.75 * 0.25 / 4000) ** 0.5  # four standard errors


def neighbours(mask, grid):  # share of neighbouring pairs of patches that are both hidden or both visible
    m = mask.reshape(-1, *grid)
    return (
        torch.cat([(m[:, 1:] == m[:, :-1]).flatten(), (m[:, :, 1:] == m[:, :, :-1]).flatten()])
        .float()
        .mean()
        .item()
    )


def test_blocks_hang_together_and_cover_the_picture():
    block = block_masking(200, (14, 14), 0.5, generator=seeded(0)).mask
    scattered = random_masking(200, (14, 14), 0.5, generator=seeded(0)).mask
    assert neighbours(block, (14, 14)) > 0.85 > 0.55 > neighbours(scattered, (14, 14))
    # no patch is always hidden or always visible; corners are rarest, since blocks lie inside
    assert 0.02 < block.mean(0).min()
    assert block.mean(0).max() < 0.9
    assert len(block.unique(dim=0)) > 190


def test_blocks_of_a_thin_grid_and_tiny_counts():
    for grid in ((1, 9), (9, 1), (2, 2)):
        for ratio in (0.3, 0.5):
            assert (
                block_masking(3, grid, ratio, generator=seeded(0))
                .mask.sum(1)
                .eq(math.prod(grid) - num_visible(math.prod(grid), ratio))
                .all()
            )


def test_grid_masking_keeps_one_of_four():
    mask = grid_masking(1, (14, 14), 0.75).mask.reshape(14, 14)
    assert F.avg_pool2d(mask[None, None], 2).eq(0.75).all()  # in each 2 x 2
    assert mask[::2, ::2].eq(0).all()
    chess = grid_masking(1, (8, 8), 0.5).mask.reshape(8, 8)
    assert torch.equal(chess, (torch.arange(8)[:, None] + torch.arange(8)) % 2.0)
    # one of sixteen
    assert F.avg_pool2d(grid_masking(1, (8, 8), 0.9375).mask.reshape(1, 1, 8, 8), 4).eq(15 / 16).all()


@few
@given(grid=grids, seed=st.integers(0, 99))
def test_a_painted_mask_is_what_was_painted(grid, seed):
    hidden = torch.rand(grid, generator=seeded(seed)) < 0.5
    hidden[0, 0] = False
    m = mask_from(hidden, grid)
    flat = mask_from(hidden.flatten())
    batch = mask_from(hidden[None].float())
    assert torch.equal(m.mask[0].bool(), hidden.flatten())
    assert torch.equal(m.keep[0], (~hidden.flatten()).nonzero()[:, 0])
    assert torch.equal(m.keep, flat.keep)
    assert torch.equal(m.keep, batch.keep)


# --- the decoder


def decoders(n=16, width=24, dd=32, depth=2):
    config = ViTMAEConfig(
        hidden_size=width,
        image_size=16,
        patch_size=4,
        decoder_hidden_size=dd,
        decoder_num_hidden_layers=depth,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=4 * dd,
        layer_norm_eps=1e-6,
        attn_implementation='eager',
    )
    theirs = ViTMAEDecoder(config, num_patches=n)
    ours = MAEDecoder(width, (4, 4), 48, decoder_width=dd, depth=depth, heads=4)
    for p in theirs.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    pairs = [
        (ours.embed, theirs.decoder_embed),
        (ours.norm, theirs.decoder_norm),
        (ours.head, theirs.decoder_pred),
    ]
    for a, b in zip(ours.blocks, theirs.decoder_layers):
        pairs += [
            (a.norm1, b.layernorm_before),
            (a.norm2, b.layernorm_after),
            (a.attn.proj, b.attention.o_proj),
            (a.mlp.fc1, b.mlp.fc1),
            (a.mlp.fc2, b.mlp.fc2),
        ]
    with torch.no_grad():
        ours.mask_token.copy_(theirs.mask_token)
        for a, b in pairs:
            a.load_state_dict(b.state_dict())
        for a, b in zip(ours.blocks, theirs.decoder_layers):
            for name in ('weight', 'bias'):
                getattr(a.attn.qkv, name).copy_(
                    torch.cat(
                        [getattr(getattr(b.attention, p), name) for p in ('q_proj', 'k_proj', 'v_proj')]
                    )
                )
    return ours, theirs, pairs


def test_decoder_is_transformers():
    torch.manual_seed(0)
    ours, theirs, pairs = decoders()
    torch.testing.assert_close(ours.pos_embed, theirs.decoder_pos_embed, atol=1e-6, rtol=0)
    latent = torch.randn(3, 7, 24)
    noise = torch.rand(3, 16)
    restore = noise.argsort(1).argsort(1)
    m = random_masking(3, (4, 4), 0.6, noise=noise)  # 6 visible
    a = latent.clone().requires_grad_()
    b = latent.clone().requires_grad_()
    pred = ours(a[:, 1:], m.keep, a[:, 0])
    reference = theirs(b, restore).logits
    torch.testing.assert_close(pred, reference, atol=1e-5, rtol=1e-5)
    target = torch.randn_like(pred)
    (pred - target).square().mean().backward()
    (reference - target).square().mean().backward()

    close = partial(helpers.close, rtol=1e-4, atol=1e-6)
    close(a.grad, b.grad)
    close(ours.mask_token.grad, theirs.mask_token.grad)
    for x, y in pairs:
        for p, q in zip(x.parameters(), y.parameters()):
            close(p.grad, q.grad)
    for x, y in zip(ours.blocks, theirs.decoder_layers):
        close(
            x.attn.qkv.weight.grad,
            torch.cat([getattr(y.attention, p).weight.grad for p in ('q_proj', 'k_proj', 'v_proj')]),
        )


def test_decoder_starts_as_the_paper_says():
    decoder = MAEDecoder(24, (4, 4), 48, decoder_width=64, depth=1, heads=4)
    for m in decoder.modules():
        if isinstance(m, nn.Linear):
            bound = (6 / (m.in_features + m.out_features)) ** 0.5  # xavier-uniform; qkv counts as one matrix
            assert m.weight.abs().max() <= bound
            assert m.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
            assert m.bias.eq(0).all()
    assert 0.01 < decoder.mask_token.std() < 0.03
    assert not decoder.pos_embed.requires_grad
    assert all(m.eps == 1e-6 for m in decoder.modules() if isinstance(m, nn.LayerNorm))


def test_without_positions_all_hidden_patches_get_one_answer():
    decoder = MAEDecoder(24, (4, 4), 48, decoder_width=32, depth=2, heads=4, positions=None)
    m = random_masking(2, (4, 4), 0.75, generator=seeded(0))
    pred = decoder(torch.randn(2, 4, 24), m.keep, torch.randn(2, 24))
    assert pred[0][m.mask[0] == 1].std(0).max() < 1e-5
    assert 'pos_embed' not in decoder.state_dict()


# --- targets


@pytest.mark.parametrize('norm_pix', [True, False])
def test_pixel_target_and_loss_are_transformers(norm_pix):
    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=1,
            decoder_intermediate_size=8,
            image_size=16,
            patch_size=4,
            norm_pix_loss=norm_pix,
        )
    )
    nn.init.normal_(theirs.decoder.decoder_pred.weight)  # predictions as large as the target
    images = torch.randn(3, 3, 16, 16)
    noise = torch.rand(3, 16)
    out = theirs(images, noise=noise)
    patches = patchify(images, 4)
    m = random_masking(3, (4, 4), 0.75, noise=noise)
    assert torch.equal(patches, theirs.patchify(images))
    assert torch.equal(unpatchify(patches, 4, (4, 4)), theirs.unpatchify(patches))
    target = normalise_patches(patches)[0] if norm_pix else patches
    torch.testing.assert_close(masked_mse(out.logits, target, m.mask), out.loss, atol=1e-5, rtol=1e-5)


def test_predicting_zero_costs_what_theory_says():
    patches = torch.randn(4, 20, 48, generator=seeded(0), dtype=torch.float64)
    patches[:, :5] = 3.0  # a quarter of the patches is flat
    mask = torch.ones(4, 20, dtype=torch.float64)
    assert masked_mse(torch.zeros_like(patches), normalise_patches(patches)[0], mask).item() == pytest.approx(
        0.75 * 47 / 48, rel=1e-5
    )
    assert flat_fraction(patches).item() == 0.25


def test_the_loss_is_one_ratio_over_the_batch():
    pred = torch.zeros(2, 2, 1)
    target = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    mask = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert masked_mse(pred, target, mask).item() == pytest.approx((1 + 4 + 16) / 3)
    assert masked_mse(pred, target, 0 * mask).item() == 0


def test_estimated_brightness_by_hand_and_the_inverse_of_true_statistics():
    # 2 x 2; means 1, 9, 5, 70; hide the second and the last
    patches = torch.tensor([[[0.0, 2.0], [9.0, 9.0], [3.0, 7.0], [50.0, 90.0]]])
    mask = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    out = unnormalise_estimated(torch.zeros(1, 4, 2), patches, mask, (2, 2))
    # patch 1 at (0, 1): distance 1 to patch 0, sqrt 2 to patch 2, weights 1 and 1/2; patch 3 at (1, 1) the
    # other way round
    assert out[0, :, 0].tolist() == pytest.approx([1, (1 + 5 / 2) / 1.5, 5, (1 / 2 + 5) / 1.5])
    # the standard deviations: sqrt 2 and 2 sqrt 2
    ones = unnormalise_estimated(torch.ones(1, 4, 2), patches, mask, (2, 2)) - out
    assert ones[0, 1, 0].item() == pytest.approx(2**0.5 * (1 + 2 / 2) / 1.5, rel=1e-5)
    torch.testing.assert_close(
        unnormalise_true(normalise_patches(patches)[0], patches), patches, atol=1e-4, rtol=1e-5
    )


# --- heads and momentum


def test_linear_head_is_batch_norm_and_linear():
    torch.manual_seed(0)
    head = LinearHead(16, 5, norm='batch-without-affine')
    x = torch.randn(64, 16) * 3 + 1
    z = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(head(x), z @ head[-1].weight.T + head[-1].bias, atol=1e-5, rtol=1e-5)
    assert LinearHead(2000, 50, std=0.02)[-1].weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_mlp_head_layers_and_bias():
    head = mlp_head((8, 16, 16, 4), last_norm='batch-without-affine')
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert not head[-1].affine
    assert all(m.bias is None for m in head if isinstance(m, nn.Linear))
    byol = mlp_head((8, 16, 4))
    assert byol[0].bias is None
    assert byol[-1].bias is not None
    assert mlp_head((8, 16, 4), bias=True)[0].bias is not None


def test_momentum_is_timms_and_the_formula():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    teacher = momentum_copy(student)
    theirs = ModelEmaV3(student, decay=0.9)
    start = student[0].weight.detach().clone()
    path = []
    for _ in range(4):
        with torch.no_grad():
            student[0].weight.add_(torch.randn(5, 6))
            student[0].bias.mul_(1.1)
        student(torch.randn(8, 6))
        path.append(student[0].weight.detach().clone())
        momentum_update(teacher, student, 0.9)
        theirs.update(student)
    for (k, a), b in zip(teacher.state_dict().items(), theirs.module.state_dict().values()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=k)
    by_hand = 0.9**4 * start + sum(0.1 * 0.9 ** (3 - i) * w for i, w in enumerate(path))
    torch.testing.assert_close(teacher[0].weight, by_hand, atol=1e-6, rtol=1e-5)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_cosine_momentum():
    assert [cosine_momentum(0.996, p) for p in (0, 0.5, 1)] == pytest.approx([0.996, 0.998, 1.0])


# --- bad input: one sentence that says what was given, what is accepted, what to do


def refusals():
    patches = torch.rand(1, 4, 12)
    mask = torch.tensor([[0.0, 0, 1, 1]])
    decoder = MAEDecoder(8, (2, 2), 12, decoder_width=16, depth=1, heads=4)
    return {
        'image not divisible': (
            lambda: patchify(torch.rand(1, 3, 30, 28), 4),
            '30 x 28 pixels does not divide into patches of 4 x 4',
        ),
        'no batch': (lambda: patchify(torch.rand(3, 8, 8), 4), 'images[None]'),
        'patches of another size': (lambda: unpatchify(patches, 4, (2, 2)), 'are (B, 4, 48), not (1, 4, 12)'),
        'mask of another grid': (lambda: mask_to_pixels(mask, 4, (3, 3)), 'needs a mask (B, 9)'),
        'odd width': (lambda: sincos_1d(torch.arange(3), 7), 'choose 8'),
        'width not by four': (lambda: sincos_2d((2, 2), 6), 'choose 8'),
        'too narrow': (lambda: sincos_nd((2, 2, 2), 4), 'at least 6'),
        'table of another grid': (
            lambda: resample_positions(torch.rand(1, 5, 4), (3, 3), (4, 4)),
            'check old_grid and prefix',
        ),
        'unknown resampling': (
            lambda: resample_positions(torch.rand(1, 5, 4), (2, 2), (4, 4), mode='bilinear'),
            "Did you mean 'bilinear-aligned'?",
        ),
        'masked tokens without keep': (
            lambda: LearnedPositions(4, 8)(torch.rand(1, 2, 8)),
            'give the missing ones as `keep`',
        ),
        'ratio 1': (lambda: random_masking(1, 4, 1.0), '0 <= ratio < 1; 1.0 is not'),
        'ratio -0.1': (lambda: block_masking(1, (4, 4), -0.1), '0 <= ratio < 1; -0.1 is not'),
        'ratio 75': (lambda: grid_masking(1, (4, 4), 75), '0 <= ratio < 1; 75 is not'),
        'nothing visible': (lambda: random_masking(1, 4, 0.9), 'leaves none of 4 patches visible'),
        'noise of another batch': (
            lambda: random_masking(2, 4, 0.5, noise=torch.rand(1, 4)),
            'is (2, 4), not (1, 4)',
        ),
        'unequal rows': (lambda: mask_from(torch.tensor([[1, 0, 0], [1, 1, 0]])), 'they hide from 1 to 2'),
        'all painted': (lambda: mask_from(torch.ones(1, 4)), 'leave at least one visible'),
        'blocks of a clip': (
            lambda: block_masking(1, (2, 4, 4), 0.5),
            'needs rows and columns, not (2, 4, 4)',
        ),
        'unknown kind': (lambda: make_mask('rndom', 1, (4, 4), 0.5), "Did you mean 'random'?"),
        'noise for blocks': (
            lambda: make_mask('block', 1, (4, 4), 0.5, noise=torch.rand(1, 16)),
            'block masking takes a generator',
        ),
        'groups that do not fit': (lambda: group_masking(1, (7, 7), 0.5), 'Groups of 2 x 2 patches'),
        'groups of other axes': (
            lambda: make_mask('group', 1, (4, 4), 0.5, group=(2, 2, 2)),
            "don't tile a grid of 4 x 4",
        ),
        'no group left': (lambda: group_masking(1, (4, 4), 0.8), 'leaves none of 4 patches'),
        'keep of another count': (lambda: decoder(torch.rand(1, 2, 8), torch.tensor([[0]])), 'keep names 1'),
        'keep forgotten': (lambda: decoder(torch.rand(1, 2, 8)), 'has 4 and keep is None'),
        'heads do not divide': (
            lambda: MAEDecoder(8, (2, 2), 12, decoder_width=18, heads=4),
            'multiple of the heads',
        ),
        'one number a patch': (lambda: normalise_patches(torch.rand(1, 4, 1)), 'no variance'),
        'shapes of the loss': (
            lambda: masked_mse(patches, patches, mask[:, :3]),
            'must be (B, N, d), (B, N, d) and (B, N)',
        ),
        'nothing to estimate from': (
            lambda: unnormalise_estimated(patches, patches, torch.ones(1, 4), (2, 2)),
            'leave at least one visible',
        ),
        'head of one size': (lambda: mlp_head((4,)), 'at least two sizes'),
        'unknown norm': (lambda: LinearHead(4, 2, norm='batchnorm'), "Did you mean 'batch'?"),
        'momentum 1.5': (
            lambda: momentum_update(nn.Linear(1, 1), nn.Linear(1, 1), 1.5),
            '0 to 1; 1.5 is not',
        ),
        'another network': (
            lambda: momentum_update(nn.Linear(2, 1), nn.Linear(1, 1), 0.5),
            'momentum_copy(source)',
        ),
    }


@pytest.mark.parametrize('case', refusals())
def test_bad_input_gets_one_sentence(case):
    call, words = refusals()[case]
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
    assert '\n' not in str(error.value)
