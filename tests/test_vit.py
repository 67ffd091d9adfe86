"The encoder against timm's and torchvision's Vision Transformers: same weights, same pictures."

import copy

from helpers import seeded
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit_ssl_lab.components.masking import random_masking, gather_tokens
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.encoders.vit import ENCODERS, ViT, vit_nano

SIZE = dict(img_size=(32, 48), patch_size=8, embed_dim=48, depth=3, num_heads=3)
VARIANTS = {
    'class token': {},
    'mean of patches': dict(global_pool='avg'),
    'mean, norm before the pool': dict(global_pool='avg', fc_norm=False),
    'registers, positions of patches only': dict(reg_tokens=3, no_embed_class=True),
    'registers': dict(reg_tokens=2),
    'no class token': dict(class_token=False, global_pool='avg'),
    'layer scale, pre-norm': dict(init_values=0.1, pre_norm=True),
    'no positions': dict(pos_embed='none'),
}


def pictures(n=3, channels=3, size=(32, 48), seed=0):
    return torch.randn(n, channels, *size, generator=seeded(seed))


def pair_of(variant, **kw):
    torch.manual_seed(1)
    theirs = VisionTransformer(**SIZE, num_classes=0, **variant, **kw)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)  # class token and biases would else be almost zero
    own = {('positions' if k == 'pos_embed' else k): v for k, v in variant.items()}
    ours = ViT(**SIZE, **own, **kw)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_timm_bit_for_bit(variant):
    theirs, ours = pair_of(variant)
    x = pictures()
    everything = torch.arange(24).expand(3, -1)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert torch.equal(ours(x).pooled, theirs(x))
    assert torch.equal(ours.tokens(x), theirs.forward_features(x))
    assert torch.equal(ours.tokens(x, everything), theirs.forward_features(x))


@pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS.keys())
def test_visible_patches_equal_gathered_tokens_and_gradients(variant):
    theirs, ours = pair_of(variant)
    x = pictures()
    keep = random_masking(3, (4, 6), 0.75, generator=seeded(0)).keep
    p = ours.num_prefix_tokens
    t = theirs._pos_embed(theirs.patch_embed(x))
    t = theirs.norm(theirs.blocks(theirs.norm_pre(torch.cat([t[:, :p], gather_tokens(t[:, p:], keep)], 1))))
    f = ours(x, keep)
    torch.testing.assert_close(f.patches, t[:, p:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(f.pooled, theirs.forward_head(t), rtol=1e-5, atol=1e-5)
    assert f.grid == (4, 6)
    w = torch.randn_like(f.pooled)
    (theirs.forward_head(t) * w).sum().backward()
    (f.pooled * w).sum().backward()
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters()):
        if a.grad is not None:
            torch.testing.assert_close(
                b.grad, a.grad, rtol=1e-4, atol=1e-5 * a.grad.abs().max().item(), msg=name
            )


def test_hidden_pixels_are_never_read():
    ours = vit_nano(img_size=16)
    keep = torch.tensor([[0, 5, 10]])
    x = torch.randn(1, 3, 16, 16)
    y = x.clone()
    y[..., 12:] = float('nan')
    assert torch.equal(ours(x, keep).patches, ours(y, keep).patches)


def test_order_of_keep_is_the_order_of_patches():
    ours = vit_nano(img_size=16)
    keep = torch.tensor([[1, 7, 12, 3]])
    x = torch.randn(1, 3, 16, 16)
    order = torch.tensor([2, 0, 3, 1])
    a, b = ours(x, keep), ours(x, keep[:, order])
    torch.testing.assert_close(a.patches[:, order], b.patches, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.pooled, b.pooled, rtol=1e-5, atol=1e-5)


def torchvision_keys(state, depth):
    "timm's state dict under torchvision's names."
    out = {
        'class_token': state['cls_token'],
        'encoder.pos_embedding': state['pos_embed'],
        'conv_proj.weight': state['patch_embed.proj.weight'],
        'conv_proj.bias': state['patch_embed.proj.bias'],
    }
    names = {
        'norm1': 'ln_1',
        'norm2': 'ln_2',
        'attn.proj': 'self_attention.out_proj',
        'mlp.fc1': 'mlp.0',
        'mlp.fc2': 'mlp.3',
    }
    for i in range(depth):
        for end in ('weight', 'bias'):
            for a, b in names.items():
                out[f'encoder.layers.encoder_layer_{i}.{b}.{end}'] = state[f'blocks.{i}.{a}.{end}']
            out[f'encoder.layers.encoder_layer_{i}.self_attention.in_proj_{end}'] = state[
                f'blocks.{i}.attn.qkv.{end}'
            ]
    return out | {f'encoder.ln.{end}': state[f'norm.{end}'] for end in ('weight', 'bias')}


def test_equals_torchvision():
    torch.manual_seed(0)
    ours = ViT(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3).eval()
    theirs = TorchvisionViT(32, 8, 3, 3, 48, 192).eval()
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.2)
    theirs.heads = torch.nn.Identity()
    theirs.load_state_dict(torchvision_keys(ours.state_dict(), 3), strict=True)
    x = pictures(size=(32, 32))
    a = ours(x).pooled
    b = theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    w = torch.randn_like(a)
    (a * w).sum().backward()
    (b * w).sum().backward()
    torch.testing.assert_close(
        ours.blocks[0].attn.qkv.weight.grad,
        theirs.encoder.layers[0].self_attention.in_proj_weight.grad,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    'name',
    [
        'vit_tiny_patch16_224',
        'vit_small_patch16_dinov3',
        'deit3_small_patch16_224',
        'vit_small_patch14_reg4_dinov2',
        'vit_base_patch16_clip_224',
    ],
)
def test_from_timm_keeps_every_variant(name):
    import timm

    try:
        theirs = timm.create_model(name, num_classes=0, img_size=56 if '14' in name else 64, depth=2).eval()
    except (TypeError, RuntimeError):
        pytest.fail(f'timm has no {name}')
    if not isinstance(theirs, VisionTransformer):  # DINOv3 is another class in timm: refused with a sentence
        with pytest.raises(ValueError, match="Only timm's VisionTransformer"):
            ViT.from_timm(theirs)
        return
    ours = ViT.from_timm(theirs)
    x = torch.randn(2, 3, *ours.img_size)
    assert torch.equal(ours(x).pooled, theirs(x))
    assert type(theirs) is VisionTransformer
    assert torch.equal(
        ours.tokens(x, torch.arange(ours.patch_embed.num_patches).expand(2, -1)), ours.tokens(x)
    )


def test_checkpointed_blocks_and_compiled_graph_give_the_same():
    ours = vit_nano(img_size=16, depth=2)
    keep = torch.tensor([[0, 5, 10]])
    x = torch.randn(1, 3, 16, 16)
    before = ours(x, keep).pooled
    ours.set_grad_checkpointing(True)
    assert torch.equal(ours(x, keep).pooled, before)
    ours.set_grad_checkpointing(False)
    explained = torch._dynamo.explain(ours)(x, keep)
    assert explained.graph_break_count == 0


def test_bf16_autocast_and_copies():
    ours = vit_nano(img_size=16, depth=2)
    keep = torch.tensor([[0, 5, 10]])
    x = torch.randn(1, 3, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        half = ours(x, keep).pooled
    torch.testing.assert_close(half.float(), ours(x, keep).pooled, rtol=0.1, atol=0.1)
    assert torch.equal(copy.deepcopy(ours)(x, keep).pooled, ours(x, keep).pooled)


PAPER = {
    'vit_1gf': (4.83, 4.57),
    'vit_4gf': (18.51, 17.75),
    'vit_18gf': (86.57, 81.57),
    'vit_36gf': (178.36, 167.80),
}


@pytest.mark.parametrize('name', PAPER)
def test_early_convolutions_parameters(name):
    for stem, millions in zip(('patchify', 'conv'), PAPER[name]):
        with torch.device('meta'):
            model = encoder(name, stem=stem, num_classes=1000)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
        assert model.grid == (14, 14)
        assert len(model.blocks) == (14 if '36' in name else 12) - (stem == 'conv')
        assert model.blocks[0].norm1.eps == 1e-5


def test_sizes_equal_timm_by_name():
    import timm

    for name, theirs in {
        'vit_tiny': 'vit_tiny_patch16_224',
        'vit_small': 'vit_small_patch16_224',
        'vit_base': 'vit_base_patch16_224',
        'vit_large': 'vit_large_patch16_224',
        'vit_huge': 'vit_huge_patch14_224',
    }.items():
        with torch.device('meta'):
            a = ENCODERS[name]()
            b = timm.create_model(theirs, num_classes=0)
        assert {k: v.shape for k, v in a.state_dict().items()} == {
            k: v.shape for k, v in b.state_dict().items()
        }
        assert a.blocks[0].attn.num_heads == b.blocks[0].attn.num_heads


@pytest.mark.parametrize(
    'keep, message',
    [
        (torch.full((2, 3), 16), 'from 0 to 15'),
        (torch.full((2, 3), -1), 'from 0 to 15'),
        (torch.zeros(1, 3, dtype=torch.int64), 'one row a picture'),
        (torch.zeros(2, 17, dtype=torch.int64), 'K from 1 to 16'),
        (torch.zeros(2, 0, dtype=torch.int64), 'K from 1 to 16'),
        (torch.zeros(2, 3), 'must be int64'),
    ],
)
def test_bad_keep(keep, message):
    with pytest.raises(ValueError, match=message):
        vit_nano(img_size=16)(torch.zeros(2, 3, 16, 16), keep)


@pytest.mark.parametrize('shape', [(2, 1, 16, 16), (2, 3, 16, 20), (3, 16, 16)])
def test_bad_pictures(shape):
    with pytest.raises(ValueError, match='takes float pictures'):
        vit_nano(img_size=16)(torch.zeros(shape))
    with pytest.raises(ValueError, match='takes float pictures'):
        vit_nano(img_size=16)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_bad_names_and_sizes():
    with pytest.raises(ValueError, match="Did you mean 'vit_nano'"):
        encoder('vit_nan')
    with pytest.raises(ValueError, match='does not divide'):
        vit_nano(img_size=30)
    with pytest.raises(ValueError, match="stem 'con'"):
        vit_nano(stem='con')
    with pytest.raises(
        ValueError, match='counts the patches of a picture of 48 x 48 pixels, and these have 32 x 48'
    ):
        vit_nano(dynamic_img_size=True)(torch.zeros(1, 3, 32, 48), torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize('stem', ['patchify', 'conv'])
def test_a_dynamic_size_changes_nothing_at_the_size_it_was_made_for(stem):
    options = dict(img_size=32, patch_size=8, stem=stem)
    fixed = vit_nano(**options).eval()
    dynamic = vit_nano(**options, dynamic_img_size=True).eval()
    dynamic.load_state_dict(fixed.state_dict())
    x = torch.randn(2, 3, 32, 32)
    mask = random_masking(2, (4, 4), 0.5)
    token = torch.randn(96)
    assert dynamic(x, mask.keep).patches.equal(fixed(x, mask.keep).patches)
    torch.testing.assert_close(dynamic.masked(x, mask, token).patches, fixed.masked(x, mask, token).patches)
