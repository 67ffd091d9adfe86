"The stems against torchvision's and timm's."

import pytest
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer_hybrid import ConvStem as TimmConvStem
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from vit_ssl_lab.components.masking import random_masking, gather_tokens
from vit_ssl_lab.components.stems import (
    CONV_STEMS,
    ConvStem,
    PatchifyStem,
    hide_pixels,
    multiply_adds,
    conv_stem_layout,
    receptive_field,
)
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.encoders.vit import vit_nano

WIDTHS = {'1GF': 192, '4GF': 384, '18GF': 768, '36GF': 1024, 'nano': 96, 'nano/8': 96}


def stem_of(name, img_size=64):
    layout = CONV_STEMS[name]
    patch = torch.tensor(layout.strides).prod().item()
    return ConvStem(img_size, patch, 3, WIDTHS[name], layout.channels, layout.strides)


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('name', CONV_STEMS)
def test_conv_stem_equals_torchvision(name, mode):
    torch.manual_seed(0)
    ours = stem_of(name)
    configs = [ConvStemConfig(c, 3, s) for c, s in zip(*CONV_STEMS[name])]
    theirs = VisionTransformer(
        64, ours.patch_size[0], 1, 2, WIDTHS[name], 32, conv_stem_configs=configs
    ).conv_proj
    for m in ours.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(m.weight)
            torch.nn.init.normal_(m.bias)
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())), strict=True)
    getattr(ours, mode)()
    getattr(theirs, mode)()
    x = torch.randn(2, 3, 64, 64)
    a = ours(x)
    b = theirs(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    w = torch.randn_like(a)
    (a * w).sum().backward()
    (b * w).sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-6)
    for p, q in zip(ours.buffers(), theirs.buffers()):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_conv_stem_has_the_keys_of_timm():
    layout = CONV_STEMS['4GF']
    theirs = TimmConvStem(3, 5, (*layout.channels, 384), (3, 3, 3, 3, 1), (*layout.strides, 1))
    ours = ConvStem(64, 16, 3, 384)
    ours.backbone.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x).flatten(2).transpose(1, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('channels, size, patch', [(3, (32, 48), 8), (1, (28, 28), 7), (3, (16, 24), (4, 8))])
def test_patchify_visible_equals_timm(channels, size, patch):
    torch.manual_seed(0)
    theirs = PatchEmbed(size, patch, channels, 40)
    ours = PatchifyStem(size, patch, channels, 40)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, channels, *size)
    keep = random_masking(3, ours.grid_size, 0.6).keep
    assert torch.equal(ours(x), theirs(x))
    a = ours.visible(x, keep)
    b = gather_tokens(theirs(x), keep)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    w = torch.randn_like(a)
    (a * w).sum().backward()
    (b * w).sum().backward()
    torch.testing.assert_close(ours.proj.weight.grad, theirs.proj.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.proj.bias.grad, theirs.proj.bias.grad, rtol=1e-4, atol=1e-5)


def test_no_hidden_pixel_reaches_a_visible_token():
    torch.manual_seed(0)
    for mode in (True, False):
        vit = vit_nano(img_size=32, patch_size=8, stem='conv').train(mode)
        keep = random_masking(2, (4, 4), 0.5).keep
        x = torch.randn(2, 3, 32, 32)
        seen = hide_pixels(torch.ones_like(x), keep, (4, 4)) > 0
        assert seen.float().mean() == 0.5
        y = torch.where(seen, x, torch.full_like(x, float('nan')))
        assert torch.equal(vit.patch_embed.visible(x, keep), vit.patch_embed.visible(y, keep))
        leak = gather_tokens(vit.patch_embed(x), keep) - gather_tokens(
            vit.patch_embed(torch.where(seen, x, -x)), keep
        )
        # without hiding pixels first there is a leak, so this test can see one
        assert leak.abs().max() > 0.01


def test_conv_stem_with_keep_equals_the_gathered_tokens_of_the_masked_picture():
    torch.manual_seed(0)
    vit = vit_nano(img_size=32, patch_size=4, stem='conv').eval()
    keep = random_masking(2, (8, 8), 0.5).keep
    x = torch.randn(2, 3, 32, 32)
    t = vit._pos_embed(vit.patch_embed(hide_pixels(x, keep, (8, 8))))
    t = vit.norm(vit.blocks(torch.cat([t[:, :1], gather_tokens(t[:, 1:], keep)], 1)))
    torch.testing.assert_close(vit.tokens(x, keep), t, rtol=1e-5, atol=1e-5)


PAPER = {'1gf': (1.1, 1.1), '4gf': (3.9, 4.0), '18gf': (17.5, 17.7), '36gf': (35.9, 35.0)}
STEM_MFLOPS = {'1gf': (29, 113), '4gf': (58, 435), '18gf': (116, 1717), '36gf': (154, 1743)}


@pytest.mark.parametrize('name', PAPER)
def test_multiply_adds_of_the_paper(name):
    for i, stem in enumerate(('patchify', 'conv')):
        with torch.device('meta'):
            vit = encoder(f'vit_{name}', stem=stem)
        assert abs(multiply_adds(vit, (1, 3, 224, 224)) / 1e9 + vit.width / 1e6 - PAPER[name][i]) < 0.1
        assert abs(multiply_adds(vit.patch_embed, (1, 3, 224, 224)) / 1e6 - STEM_MFLOPS[name][i]) < 0.6


def test_multiply_adds_by_hand():
    n = 5
    d = 96
    b = 16 // 4 * (16 // 4) + 1
    block = b * d * 3 * d + b * d * d + 2 * b * d * 4 * d + 2 * b * b * d
    assert multiply_adds(vit_nano(img_size=16, depth=n), (1, 3, 16, 16)) == n * block + (b - 1) * 48 * d


def test_receptive_fields():
    assert [
        receptive_field(CONV_STEMS[n].strides) for n in ('1GF', '4GF', '18GF', '36GF', 'nano', 'nano/8')
    ] == [31, 31, 55, 55, 7, 15]


def test_initialisation_of_pycls():
    torch.manual_seed(0)
    stem = ConvStem(64, 16, 3, 768)
    *convs, last = [m for m in stem.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convs:
        assert abs(conv.weight.std().item() / (2 / conv.out_channels) ** 0.5 - 1) < 0.05
        assert conv.bias is None
    assert abs(last.weight.std().item() * 768**0.5 - 1) < 0.02
    assert not last.bias.any()


def test_another_picture_size():
    vit = vit_nano(img_size=32, stem='conv')
    vit.set_input_size((16, 48))
    assert vit.grid == (4, 12)
    assert vit(torch.zeros(1, 3, 16, 48)).patches.shape == (1, 48, 96)


def test_bad_stems():
    with pytest.raises(ValueError, match='does not divide'):
        PatchifyStem(30, 8, 1, 16)
    with pytest.raises(ValueError, match='choose 4, 8 or 16'):
        conv_stem_layout(14, 384)
    with pytest.raises(ValueError, match='their product'):
        ConvStem(32, 8, 3, 64, (32, 64), (2, 2))
    with pytest.raises(ValueError, match='build another stem'):
        ConvStem(32, 4, 3, 64).set_input_size(32, patch_size=8)
