"Attention maps against the slow path and timm's extractor; the instruments against cases worked out by hand."

import math

from helpers import equal, weights
import pytest
import torch
from timm.utils import AttentionExtract

from vit_ssl_lab.components.attention import (
    attention_distance,
    attention_entropy,
    attention_maps,
    filter_pca,
    grid_distances,
    rollout,
)
from vit_ssl_lab.components.masking import random_masking
from vit_ssl_lab.encoders import timm_encoder
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.explorers.attention import AttentionExplorer


@pytest.fixture(
    params=[{}, dict(qk_norm=True, reg_tokens=2), dict(class_token=False, global_pool='avg')],
    ids=['plain', 'qk norm and registers', 'no class token'],
)
def vit(request):
    torch.manual_seed(0)
    v = vit_nano(img_size=(16, 24), **request.param)
    for p in v.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return v.eval()


def slow_maps(vit, x, keep=None):
    "What timm's unfused attention hands to its dropout."
    got = []
    hooks = [
        b.attn.attn_drop.register_forward_hook(lambda _, inputs, __: got.append(inputs[0]))
        for b in vit.blocks
    ]
    for b in vit.blocks:
        b.attn.fused_attn = False
    with torch.no_grad():
        vit.tokens(x, keep)
    for b in vit.blocks:
        b.attn.fused_attn = True
    for h in hooks:
        h.remove()
    return torch.stack(got)


def test_maps_equal_the_slow_path(vit):
    x = torch.randn(2, 3, 16, 24)
    keep = random_masking(2, vit.grid, 0.5).keep
    for k in (None, keep):
        maps = attention_maps(vit, x, keep=k)
        torch.testing.assert_close(maps, slow_maps(vit, x, k), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]), rtol=0, atol=1e-5)
    assert torch.equal(attention_maps(vit, x, layers=[-1, 0]), attention_maps(vit, x)[[3, 0]])


def test_maps_equal_timms_extractor():
    torch.manual_seed(0)
    vit = vit_nano(img_size=16).eval()
    x = torch.randn(2, 3, 16, 16)
    maps = attention_maps(vit, x)
    for b in vit.blocks:
        b.attn.fused_attn = False
    theirs = AttentionExtract(vit, method='hook')(x)
    torch.testing.assert_close(maps, torch.stack(list(theirs.values())), rtol=1e-5, atol=1e-6)


def test_looking_changes_nothing(vit):
    x = torch.randn(2, 3, 16, 24)
    vit.train()
    before = vit(x).pooled
    state = weights(vit)
    attention_maps(vit, x)
    assert vit.training
    assert all(m.training for m in vit.modules())
    assert all(b.attn.fused_attn for b in vit.blocks)
    assert not any(m._forward_hooks for m in vit.modules())
    assert torch.equal(vit(x).pooled, before)
    assert equal(state, vit.state_dict())
    with pytest.raises(ValueError):
        attention_maps(vit, torch.randn(2, 3, 16, 16))  # a failure in the middle leaves no hooks either
    assert not any(m._forward_hooks for m in vit.modules())
    assert vit.training


def test_batch_norm_of_a_convolutional_stem_is_not_fed_by_looking():
    vit = vit_nano(img_size=16, stem='conv').train()
    before = vit.patch_embed.backbone[0].bn.running_mean.clone()
    attention_maps(vit, torch.randn(2, 3, 16, 16))
    assert torch.equal(vit.patch_embed.backbone[0].bn.running_mean, before)


def test_rollout_by_hand():
    maps = torch.rand(3, 2, 4, 5, 5).softmax(-1)
    r = rollout(maps)
    product = torch.eye(5).expand(2, 5, 5)
    for layer in range(3):
        a = maps[layer].mean(1) + torch.eye(5)
        product = torch.bmm(a / a.sum(-1, keepdim=True), product)
    torch.testing.assert_close(r, product)
    torch.testing.assert_close(r.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(rollout(torch.eye(5).expand(6, 2, 3, 5, 5)), torch.eye(5).expand(2, 5, 5))


def test_distances_by_hand():
    d = grid_distances((2, 3), (10, 4))
    assert d[0].tolist() == pytest.approx([0, 4, 8, 10, math.hypot(10, 4), math.hypot(10, 8)])
    for prefix in (0, 1, 3):
        t = 6 + prefix
        uniform = torch.full((2, 3, 4, t, t), 1 / t)
        torch.testing.assert_close(
            attention_distance(uniform, (2, 3), (10, 4), prefix), d.mean().expand(2, 4)
        )
        torch.testing.assert_close(
            attention_distance(uniform, (2, 3), (10, 4), prefix, renormalise=False),
            (d.mean() * 6 / t).expand(2, 4),
        )
        assert not attention_distance(torch.eye(t).expand(2, 3, 4, t, t), (2, 3), 4, prefix).any()
    to_the_right = torch.zeros(1, 1, 6, 6)
    to_the_right[0, 0, range(6), [1, 2, 2, 4, 5, 5]] = 1
    assert attention_distance(to_the_right, (2, 3), (10, 4), 0).item() == pytest.approx(4 * 4 / 6)


def test_entropy_by_hand():
    maps = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]).expand(2, 1, 4, 3, 3)
    torch.testing.assert_close(attention_entropy(maps), torch.full((2, 4), (math.log(2) + math.log(3)) / 3))


def test_filter_pca_equals_scikit_learn():
    from sklearn.decomposition import PCA

    weight = torch.randn(40, 3, 4, 4)
    ours = filter_pca(weight, 10)
    theirs = PCA(10, svd_solver='full').fit(weight.flatten(1).numpy()).components_
    similarity = (ours.flatten(1) * torch.tensor(theirs)).sum(1).abs()
    torch.testing.assert_close(similarity, torch.ones(10), rtol=0, atol=1e-4)


def test_bad_input():
    vit = vit_nano(img_size=16)
    with pytest.raises(ValueError, match='layers 0 to 3, not 7'):
        attention_maps(vit, torch.zeros(1, 3, 16, 16), layers=[7])
    with pytest.raises(ValueError, match='keep=None'):
        attention_distance(torch.rand(1, 1, 2, 9, 9), (4, 4), 4)
    with pytest.raises(ValueError, match='Attention maps are'):
        rollout(torch.rand(3, 4))
    with pytest.raises(ValueError, match='at most 8 components, not 9'):
        filter_pca(torch.rand(8, 3, 4, 4), 9)


WITH_MAPS = [
    ('vit_small_patch16_dinov3', 5),  # rotary positions
    ('eva02_tiny_patch14_224', 1),
    ('vit_small_patch16_rope_mixed_ape_224', 1),
    ('beit_base_patch16_224', 1),  # biases
    ('deit_tiny_distilled_patch16_224', 2),
    ('vit_relpos_small_patch16_224', 0),
]


@pytest.mark.parametrize('name, num_prefix', WITH_MAPS)
def test_maps_of_any_transformer_are_what_it_attends_with(name, num_prefix):
    "The first block's output, made from its map and its own values, is the block's own."
    torch.manual_seed(0)
    size = 56 if 'eva02' in name else 64
    e = timm_encoder(name, img_size=size, embed_dim=48, depth=2, num_heads=3).eval()
    x = torch.randn(2, 3, size, size)
    before = e(x).patches
    maps = attention_maps(e, x)
    assert maps.shape == (2, 2, 3, num_prefix + 16, num_prefix + 16)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    attn = e.blocks[1].attn
    seen = {}
    hooks = [
        attn.register_forward_pre_hook(lambda m, inputs, kw: seen.update(x=inputs[0]), with_kwargs=True),
        attn.register_forward_hook(lambda m, inputs, output: seen.update(y=output)),
    ]
    e(x)
    for hook in hooks:
        hook.remove()
    y = seen['x']
    qkv = attn.qkv(y) if hasattr(attn, 'qkv') and attn.qkv is not None else None
    bias = getattr(attn, 'v_bias', None)
    if qkv is None:
        v = attn.v_proj(y)
    else:
        v = qkv.chunk(3, -1)[2]
        if bias is not None:
            v = v + bias
    v = v.unflatten(-1, (3, -1)).transpose(1, 2)
    attended = (maps[1] @ v).transpose(1, 2).flatten(2)
    norm = getattr(attn, 'norm', None)
    attended = attended if norm is None else norm(attended)
    torch.testing.assert_close(attn.proj(attended), seen['y'], rtol=1e-4, atol=1e-5)
    assert e(x).patches.equal(before)  # fused kernels are on again


@pytest.mark.parametrize(
    'name, options, why',
    [
        (
            'test_efficientnet',
            dict(img_size=64),
            'EfficientNet has blocks with no attention|no row of blocks',
        ),
        ('xcit_nano_12_p16_224', dict(img_size=64, depth=2), 'Xcit has blocks with XCA'),
        ('pvt_v2_b0', dict(img_size=64), 'PyramidVisionTransformerV2 has no row of blocks'),
        (
            'hiera_tiny_224',
            dict(img_size=64, embed_dim=16, stages=(1, 1, 1, 1)),
            'Hiera has blocks with MaskUnitAttention',
        ),
        ('test_resnet', dict(img_size=64), 'ResNet has no row of blocks'),
    ],
)
def test_networks_without_attention_maps_say_why(name, options, why):
    e = timm_encoder(name, **options)
    with pytest.raises(ValueError, match=why):
        attention_maps(e, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=why):
        AttentionExplorer(e, torch.zeros(1, 3, 64, 64))


def test_the_explorer_shows_rotary_attention():
    e = timm_encoder('vit_small_patch16_dinov3', img_size=64, embed_dim=48, depth=2, num_heads=3)
    explorer = AttentionExplorer(e, torch.rand(2, 3, 64, 64))
    assert (explorer.grid, explorer.prefix, explorer.layers) == ([4, 4], 5, 2)
