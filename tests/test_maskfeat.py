"""MaskFeat: equal to SimMIM in transformers with raw pixels, to a slow form by hand with HOG; its loss at the
start, its masks, its other targets, bad input."""

import math
from helpers import check_moves, equal, normal, seeded
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTConfig, ViTForMaskedImageModeling
from vit_ssl_lab.components.masking import block_masking, mask_from, noise_shape, random_masking
from vit_ssl_lab.components.patches import mask_to_pixels
from vit_ssl_lab.components.targets import CodeTarget, FeatureTarget, HOGTarget, LabelTarget, PixelTarget
from vit_ssl_lab.components.hog import hog, patch_cells
from vit_ssl_lab.components.tokenizer import Tokenizer
from vit_ssl_lab.core import Mask
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.methods.maskfeat import MaskFeat
from vit_ssl_lab.training import build, pretrain, recipe


def tiny(target='hog', dtype=torch.float32, encoder=None, **kw):
    torch.manual_seed(0)
    options = (
        dict(cell=4) if target == 'hog' and 'target_options' not in kw else kw.pop('target_options', None)
    )
    return MaskFeat(
        ViT(img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2, **(encoder or {})),
        target,
        options,
        **kw,
    ).to(dtype)


def pictures(n=3, seed=1, dtype=torch.float32):
    return normal(n, 3, 32, 48, seed=seed, dtype=dtype)


def a_mask(n=3, seed=0):
    return random_masking(n, (4, 6), 0.4, generator=seeded(seed))


# --- SimMIM is one of its cases


def from_peer(p):
    """Our model with the peer's weights; and for gradients our name -> (the peer's names, how their rows are
    ordered)."""
    c = p.config
    m = MaskFeat(
        ViT(img_size=32, patch_size=8, embed_dim=c.hidden_size, depth=2, num_heads=2, mlp_ratio=2),
        'pixels',
        dict(normalise=False, error='l1'),
    )
    theirs = p.state_dict()
    newer = any('q_proj' in n for n in theirs)  # transformers 5 renamed the layers
    layer = 'vit.layers' if newer else 'vit.encoder.layer'
    qkv = 'attention.{}_proj' if newer else 'attention.attention.{}'
    out, fc1, fc2 = (
        ('attention.o_proj', 'mlp.fc1', 'mlp.fc2')
        if newer
        else ('attention.output.dense', 'intermediate.dense', 'output.dense')
    )
    table = {
        'encoder.cls_token': ['vit.embeddings.cls_token'],
        'encoder.pos_embed': ['vit.embeddings.position_embeddings'],
        'mask_token': ['vit.embeddings.mask_token'],
        'head.0.weight': ['decoder.0.weight'],
        'head.0.bias': ['decoder.0.bias'],
    }
    for kind in ('weight', 'bias'):
        table |= {
            f'encoder.patch_embed.proj.{kind}': [f'vit.embeddings.patch_embeddings.projection.{kind}'],
            f'encoder.norm.{kind}': [f'vit.layernorm.{kind}'],
        }
        for i in range(2):
            o = f'encoder.blocks.{i}'
            t = f'{layer}.{i}'
            table[f'{o}.attn.qkv.{kind}'] = [
                f'{t}.{qkv.format(k)}.{kind}' for k in ('qkv' if newer else ('query', 'key', 'value'))
            ]
            parts = {
                'attn.proj': out,
                'norm1': 'layernorm_before',
                'norm2': 'layernorm_after',
                'mlp.fc1': fc1,
                'mlp.fc2': fc2,
            }
            table |= {f'{o}.{a}.{kind}': [f'{t}.{b}.{kind}'] for a, b in parts.items()}
    # the peer's pixel shuffle counts channel, row, column; our patches row, column, channel
    order = torch.arange(192).view(3, 8, 8).permute(1, 2, 0).flatten()

    def read(name, get):
        value = torch.cat([get(t) for t in table[name]])
        if name == 'head.0.weight':
            return value.flatten(1)[order]
        return value[order] if name == 'head.0.bias' else value

    m.load_state_dict({n: read(n, theirs.__getitem__) for n in m.state_dict()}, strict=True)
    return m, lambda name, get: read(name, get)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_equals_simmim_in_transformers(dtype, tolerance):
    "Raw pixels, absolute error, one linear layer: same loss, gradients and one step."
    torch.manual_seed(0)
    p = ViTForMaskedImageModeling(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            encoder_stride=8,
            layer_norm_eps=1e-6,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    m, read = from_peer(p)
    p.to(dtype)
    m.to(dtype)
    x = torch.randn(4, 3, 32, 32, generator=seeded(1)).to(dtype)
    mask = block_masking(4, (4, 4), 0.4, generator=seeded(2))
    ours = m(x, mask=mask)['loss']
    theirs = p(x, bool_masked_pos=mask.mask.bool()).loss
    ours.backward()
    theirs.backward()
    # the peer adds 1e-5 to the count of hidden pixels
    share = mask.mask.sum() * 64 / (mask.mask.sum() * 64 + 1e-5)
    torch.testing.assert_close(ours * share.to(dtype), theirs, atol=tolerance, rtol=tolerance)
    grads = {n: q.grad for n, q in p.named_parameters()}
    for n, q in m.named_parameters():
        torch.testing.assert_close(
            q.grad, read(n, grads.__getitem__), atol=max(tolerance, 1e-7), rtol=max(tolerance, 1e-6)
        )
    before = {n: q.detach().clone() for n, q in m.named_parameters()}
    for module in (m, p):
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    after = dict(p.named_parameters())
    expected = {n: read(n, after.__getitem__) for n in before}
    tight = dtype == torch.float64  # the peer adds 1e-5 to the count of hidden pixels
    check_moves(
        before, dict(m.named_parameters()), expected, 1e-6 if tight else 1e-3, 1e-9 if tight else 1e-6
    )


# --- by hand


@pytest.mark.parametrize('pool', ['token', 'avg'])
def test_equals_a_slow_form(pool):
    """The official order of things: embed, replace, class token and positions, blocks, LayerNorm, hidden
    places, linear, mean square."""
    m = tiny(dtype=torch.float64, encoder=dict(global_pool=pool, class_token=pool == 'token'))
    x = pictures(dtype=torch.float64)
    mask = a_mask()
    e = m.encoder
    cls = int(pool == 'token')
    tokens = e.patch_embed.proj(x).flatten(2).mT.clone()
    for b in range(3):
        for i in range(24):
            if mask.mask[b, i]:
                tokens[b, i] = m.mask_token[0, 0]
    if cls:
        tokens = torch.cat([e.cls_token.expand(3, -1, -1), tokens], 1)
    tokens = tokens + e.pos_embed
    for block in e.blocks:
        tokens = block(tokens)
    norm = e.norm if cls else m.head[0]
    pred = F.linear(
        F.layer_norm(tokens[:, cls:], (32,), norm.weight, norm.bias, 1e-6), m.head[-1].weight, m.head[-1].bias
    )
    truth = patch_cells(hog(x, 4), (4, 6))
    hidden = mask.mask.bool()
    torch.testing.assert_close(
        m(x, mask=mask)['loss'], (pred[hidden] - truth[hidden]).square().mean(), atol=1e-10, rtol=1e-10
    )
    assert len(m.head) == 2 - cls, "one LayerNorm before the linear layer, wherever it lives"
    assert isinstance(norm, nn.LayerNorm), "one LayerNorm before the linear layer, wherever it lives"


def test_loss_at_the_start():
    m = tiny()
    x = pictures(8)
    nn.init.zeros_(m.head[-1].weight)
    assert m(x)['loss'].item() == pytest.approx(1 / 9, rel=1e-5)
    x[:, :, :, :16] = 0.5
    # the first column of patches: flat
    left = mask_from(torch.arange(48).view(1, 48)[:, :24].remainder(6).eq(0).expand(8, 24))
    assert m(x, mask=left)['loss'] == 0
    for target, theory in (('pixels', 191 / 192),):
        z = tiny(target, target_options={})
        nn.init.zeros_(z.head[-1].weight)
        assert z(pictures(8))['loss'].item() == pytest.approx(theory, rel=1e-4)
    codes = tiny(CodeTarget(8, tokenizer=Tokenizer(8, size=16)))
    nn.init.zeros_(codes.head[-1].weight)
    assert codes(pictures())['loss'].item() == pytest.approx(math.log(16), rel=1e-5)


def test_only_hidden_patches_count_and_are_not_seen():
    m = tiny().eval()
    x = pictures()
    mask = a_mask()
    hole = mask_to_pixels(mask.mask, 8, (4, 6))
    torch.testing.assert_close(m.predict(x, mask), m.predict(x + 5 * hole, mask))
    conv = tiny(encoder=dict(stem='conv')).eval()
    torch.testing.assert_close(conv.predict(x, mask), conv.predict(x + 5 * hole, mask))
    pred = m.predict(x, mask, mask.hidden)
    assert torch.equal(pred, m.predict(x, mask).gather(1, mask.hidden[..., None].expand(-1, -1, 108)))
    loss = m(x, mask=mask)['loss']
    costs = m.target.cost(m.predict(x, mask), m.target(x))  # (B, N)
    over_hidden = costs[mask.mask == 1].mean()
    torch.testing.assert_close(loss, over_hidden)
    assert abs(costs.mean() - over_hidden) > 1e-4, "the mean over all patches is another number"
    loss.backward()
    assert m.mask_token.grad.abs().sum() > 0
    assert m.encoder.cls_token.grad is not None


def test_of_constant_is_the_share_of_the_best_constant():
    m = tiny()
    x = pictures()
    mask = a_mask()
    truth = m.target(x)[mask.mask.bool()]
    out = m(x, mask=mask)
    assert out['of_constant'].item() == pytest.approx(
        (out['loss'] / truth.var(0, unbiased=False).mean()).item(), rel=1e-4
    )


@pytest.mark.parametrize('masking', ['block', 'random', 'group', 'grid'])
def test_masks_come_from_the_noise(masking):
    m = tiny(masking=masking)
    x = pictures(4)
    noise = torch.rand(4, *m.noise_shape, generator=seeded(5))
    assert m.noise_shape == noise_shape(masking, (4, 6))
    if masking == 'grid':
        assert torch.equal(m.draw_mask(x).mask, m.draw_mask(x).mask)
        return
    whole = m.draw_mask(x, noise)
    assert torch.equal(whole.mask, torch.cat([m.draw_mask(x[:2], part).mask for part in noise.chunk(2)]))
    assert whole.mask.sum(1).eq(24 - whole.keep.shape[1]).all()


def test_halves_of_a_batch_are_the_whole():
    m = tiny()
    x = pictures(4)
    noise = torch.rand(4, *m.noise_shape)
    m(x, noise)['loss'].backward()
    whole = m.head[-1].weight.grad.clone()
    m.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        (m(x[part], noise[part])['loss'] / 2).backward()
    torch.testing.assert_close(m.head[-1].weight.grad, whole, atol=1e-6, rtol=1e-4)


def teacher():
    torch.manual_seed(3)
    return ViT(img_size=(32, 48), patch_size=8, embed_dim=24, depth=1, num_heads=2)


TARGETS = {
    'raw pixels': lambda: PixelTarget(8, normalise=False),
    'pixels': lambda: PixelTarget(8),
    'hog': lambda: HOGTarget(8, cell=4),
    'features': lambda: FeatureTarget(8, teacher=teacher()),
    'labels': lambda: LabelTarget(8, teacher=teacher(), head=nn.Linear(24, 5)),
    'codes': lambda: CodeTarget(8, tokenizer=Tokenizer(8, size=16)),
}


@pytest.mark.parametrize('name', TARGETS)
def test_every_target_learns_and_leaves_its_teacher_alone(name):
    m = tiny(TARGETS[name]())
    x = pictures()
    mask = a_mask()
    before = {n: p.clone() for n, p in m.target.named_parameters()}
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(15):
        m.train()
        out = m(x, mask=mask)
        opt.zero_grad()
        out['loss'].backward()
        opt.step()
        losses.append(out['loss'].item())
    assert losses[-1] < losses[0]
    assert not any(s.training for s in m.target.modules())
    assert all(torch.equal(p, before[n]) for n, p in m.target.named_parameters())
    images = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    if name not in ('raw pixels', 'pixels', 'codes'):
        with pytest.raises(ValueError, match='says nothing about pixels'):
            m.reconstruct(images)
        return
    a, b = (m.reconstruct(images, generator=seeded(3)) for _ in range(2))
    assert equal(a, b)
    assert m.training
    assert a.input.shape == (2, 3, 32, 48)
    assert all(0 <= v.min() and v.max() <= 1 for v in a)
    visible = mask_to_pixels(a.mask, 8, (4, 6)).expand_as(a.input) == 0
    assert torch.equal(a.composite[visible], a.input[visible])


def test_recipes_build_and_run():
    data = load('scenes', 'train', n=64)
    for scale in ('laptop', 'slow', 'gpu'):
        assert build(recipe('maskfeat', scale), data).target.name == 'hog'
    small_recipe = recipe('maskfeat', 'laptop', steps=2, batch_size=8)
    runs = [
        pretrain(build(small_recipe, data), data, small_recipe, quiet=True, device='cpu').rows[-1]['loss']
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    paper = recipe('maskfeat', 'paper')
    assert (paper.lr, paper.clip_grad) == (pytest.approx(1.6e-3), 0.02)


def test_grey_pictures():
    torch.manual_seed(0)
    m = MaskFeat(
        vit_nano(img_size=28, patch_size=7, in_chans=1, depth=1),
        target_options=dict(cell=7),
        masking='random',
    )
    assert m.target.width == 9
    assert m(torch.randn(2, 1, 28, 28))['loss'].isfinite()


@pytest.mark.parametrize(
    'case, error, match',
    [
        (
            lambda: MaskFeat(vit_nano(patch_size=4)),
            ValueError,
            'Cells of 8 pixels do not divide a patch of 4 x 4',
        ),
        (lambda: tiny('hogs'), ValueError, "Did you mean 'hog'"),
        (
            lambda: MaskFeat(nn.Linear(2, 2)),
            TypeError,
            'width, grid, patch_size, in_chans, img_size, masked, and Linear has none',
        ),
        (lambda: tiny(mask_ratio=1.0), ValueError, '0 <= ratio < 1'),
        (lambda: tiny(mask_ratio=0.99), ValueError, 'leaves none'),
        (lambda: tiny(masking='blocks'), ValueError, "Did you mean 'block'"),
        (lambda: tiny('features', target_options={}), ValueError, 'give teacher='),
        (lambda: tiny(PixelTarget(4)), ValueError, 'both must be alike'),
        (
            lambda: tiny()(pictures(), mask=Mask(torch.zeros(3, 0, dtype=torch.int64), torch.ones(3, 24))),
            ValueError,
            'keeps nothing',
        ),
        (lambda: tiny()(pictures(), noise=torch.rand(3, 24)), ValueError, "noise_shape"),
        (
            lambda: tiny('pixels', target_options={}).reconstruct(torch.rand(1, 3, 32, 48), pixels='truth'),
            ValueError,
            'statistics of a hidden patch',
        ),
        (lambda: tiny()(torch.randn(2, 1, 32, 48)), ValueError, 'takes float pictures'),
    ],
    ids=range(12),
)
def test_bad_input(case, error, match):
    with pytest.raises(error, match=match):
        case()


def test_nothing_hidden_costs_nothing():
    out = tiny(mask_ratio=0.0, masking='random')(pictures())
    assert set(out) == {'loss'}
    assert out['loss'] == 0
