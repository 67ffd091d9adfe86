"""CMAE against the official implementation's stored numbers, MoCo v3's contrast, MAE in the limit, a loop in
float64; whole runs, two processes, bad input."""

import json, math
from functools import partial
from pathlib import Path
import helpers
from helpers import close_states, gradients, named_numbers, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vit_ssl_lab.components.masking import make_mask
from vit_ssl_lab.data import load
from vit_ssl_lab.data.views import ShiftedViews
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.methods.cmae import CMAE
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.methods.mocov3 import MoCoV3
from vit_ssl_lab.training import build, pretrain, recipe

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'cmae_official.json').read_text())
SMALL = dict(decoder_width=32, decoder_depth=1, decoder_heads=4, feature_depth=1, hidden=32, dim=8)


def vit(**kw):
    return ViT(32, 8, 3, embed_dim=24, depth=2, num_heads=2, positions='sincos', **kw)


def make(dtype=torch.float32, encoder=None, **kw):
    torch.manual_seed(0)
    return CMAE(vit() if encoder is None else encoder, **{**SMALL, **kw}).to(dtype)


def two(batch=6, seed=1, dtype=torch.float32, size=32):
    x = torch.randn(batch, 3, size, size, generator=seeded(seed), dtype=torch.float64)
    return [
        x.to(dtype),
        (x + 0.3 * torch.randn(x.shape, generator=seeded(seed + 1), dtype=torch.float64)).to(dtype),
    ]


def sort_keys(batch=6, n=16, seed=3):
    return torch.rand(batch, n, generator=seeded(seed))


# --- the official implementation's numbers


def filled(name, shape):
    u = named_numbers(tuple(shape), name)
    if name.endswith(('token', 'pos_embed')):
        return 0.5 * u
    if len(shape) > 1:
        return (3 / math.prod(shape[1:])) ** 0.5 * u
    return 1 + 0.1 * u if name.endswith('weight') else 0.1 * u


def official_name(ours):
    "The name a parameter has in the official code, where it has one."
    part, rest = ours.split('.', 1)
    if part == 'encoder':
        for a, b in (
            ('patch_embed.proj', 'patch_embed.projection'),
            ('blocks', 'layers'),
            ('norm1', 'ln1'),
            ('norm2', 'ln2'),
            ('mlp.fc1', 'ffn.layers.0.0'),
            ('mlp.fc2', 'ffn.layers.1'),
        ):
            rest = rest.replace(a, b)
        return 'backbone.' + ('ln1' + rest[4:] if rest.startswith('norm.') else rest)
    if part.endswith('decoder'):
        for a, b in (
            ('norm1', 'ln1'),
            ('norm2', 'ln2'),
            ('mlp.fc1', 'ffn.layers.0.0'),
            ('mlp.fc2', 'ffn.layers.1'),
        ):
            rest = rest.replace(a, b)
        rest = {'pos_embed': 'decoder_pos_embed'}.get(rest, rest)
        for a, b in (
            ('blocks.', 'decoder_blocks.'),
            ('embed.', 'decoder_embed.'),
            ('head.', 'decoder_pred.'),
            ('norm.', 'ln1.'),
        ):
            if rest.startswith(a):
                rest = b + rest[len(a) :]
        return {'decoder': 'pixel_decoder', 'feature_decoder': 'feature_decoder'}[part] + '.' + rest
    return {'projector': 'projector.', 'predictor': 'head.predictor.'}[part] + rest.replace(
        '0.', 'fc0.'
    ).replace('1.', 'bn0.').replace('3.', 'fc1.')


def test_official_numbers():
    "Masks, predictions, losses, every gradient, AdamW's step and the momentum encoder over three steps."
    torch.manual_seed(0)
    m = CMAE(
        ViT(64, 8, 3, embed_dim=192, depth=2, num_heads=3, positions='sincos'),
        decoder_width=32,
        decoder_depth=2,
        decoder_heads=4,
        feature_depth=1,
        hidden=48,
        dim=16,
        momentum=0.9,
    ).double()
    online = {n: p for n, p in m.named_parameters() if not n.startswith('momentum')}
    with torch.no_grad():
        for n, p in online.items():
            p.copy_(filled(official_name(n), p.shape))
    m.momentum_encoder.load_state_dict(m.encoder.state_dict())
    m.momentum_projector.load_state_dict(m.projector.state_dict())
    adamw = torch.optim.AdamW(
        [p for p in m.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05
    )

    close = partial(helpers.close, rtol=1e-6, atol=1e-8)
    B = GOLDEN['batch']
    seen = {}
    m.predictor.register_forward_hook(lambda module, given, out: seen.update(q=out))
    m.momentum_projector.register_forward_hook(lambda module, given, out: seen.update(k=out))
    for t, step in enumerate(GOLDEN['steps']):
        i = np.arange(B * 3 * 64 * 64)
        x = torch.tensor(np.sin(i * 0.11 + t) + np.cos(i * 0.013 - t)).reshape(B, 3, 64, 64)
        views = [x, 0.8 * x + 0.2 * torch.tensor(np.sin(i * 0.17 + 1 + t)).reshape(B, 3, 64, 64)]
        noise = (named_numbers((B, 16), f'noise {t}') + 1) / 2
        mask = m.draw_mask(x, noise)
        assert [''.join(str(int(v)) for v in row) for row in mask.mask[:2]] == step['mask']
        assert mask.mask.sum(1).eq(step['hidden']).all()
        close(m.predict(x, mask)[0, 5, :6], step['prediction'])
        out = m(views, noise)
        close(out['contrast'], step['contrast'])
        close(out['pixels'], step['pixels'])
        close(seen['q'][0, :6], step['q'])
        close(seen['k'][0, :6], step['k'])
        adamw.zero_grad()
        out['loss'].backward()
        ours = {official_name(n): p.grad.norm().item() for n, p in online.items() if p.grad is not None}
        assert ours.keys() == step['gradients'].keys()
        for n, value in step['gradients'].items():
            assert ours[n] == pytest.approx(value, rel=1e-6, abs=1e-8), n
        adamw.step()
        m.after_step(t / 3)
        close(m.encoder.blocks[0].attn.qkv.weight.norm(), step['qkv'])
        close(m.momentum_encoder.blocks[0].attn.qkv.weight.norm(), step['slow_qkv'])
        close(m.momentum_projector[0].weight.norm(), step['slow_projector'])


# --- formulas and limits


def test_loss_by_hand_in_float64():
    "Picture by picture, patch by patch."
    m = make(torch.float64, pixel_weight=0.7, contrast_weight=1.3)
    x, whole = two(dtype=torch.float64)
    noise = sort_keys(n=4)
    mask = make_mask('group', 6, (4, 4), 0.65, noise=noise)
    f = m.encoder(x, mask.keep)
    pred = m.decoder(f.patches, mask.keep, f.pooled)
    total = count = 0.0
    for b in range(6):
        for i in range(16):
            if not mask.mask[b, i]:
                continue
            r, c = divmod(i, 4)
            p = x[b, :, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].permute(1, 2, 0).flatten()
            total = total + ((pred[b, i] - (p - p.mean()) / (p.var() + 1e-6).sqrt()) ** 2).mean()
            count = count + 1
    q = m.predictor(m.projector(m.feature_decoder(f.patches, mask.keep, f.pooled).mean(1)))
    momentum_encoder, patches = m.momentum_encoder, []
    momentum_encoder.norm.register_forward_pre_hook(lambda module, given: patches.append(given[0]))
    momentum_encoder(whole)
    k = m.momentum_projector(patches[0][:, 1:].mean(1))
    logits = torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) / 0.07 for b in k]) for a in q])
    contrast = 2 * 0.07 * (logits.logsumexp(1) - logits.diagonal()).mean()
    out = make(torch.float64, pixel_weight=0.7, contrast_weight=1.3)([x, whole], noise)
    torch.testing.assert_close(out['pixels'], (total / count).detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(out['contrast'], contrast.detach(), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(out['loss'], 0.7 * out['pixels'] + 1.3 * out['contrast'])


def test_the_contrast_is_mocov3s():
    m = make()
    v3 = MoCoV3(vit(), hidden=16, dim=8, temperature=0.07)
    seen = {}
    m.predictor.register_forward_hook(lambda module, given, out: seen.update(q=out))
    m.momentum_projector.register_forward_hook(lambda module, given, out: seen.update(k=out))
    out = m(two(), sort_keys())
    loss, accuracy = v3.contrast(seen['q'], seen['k'])
    torch.testing.assert_close(out['contrast'], loss.detach(), rtol=1e-6, atol=1e-7)
    assert out['accuracy'] == accuracy


@pytest.mark.parametrize('masking', ['group', 'random'])
def test_weight_0_is_mae(masking):
    """Loss and gradient, from the same sort keys; and with weight 1 the encoder and the decoder start from
    the same numbers."""
    noise = sort_keys()
    results = []
    for method in (make(masking=masking, contrast_weight=0.0), make(masking=masking)):
        torch.manual_seed(0)
        mae = MAE(vit(), 32, 1, 4, mask_ratio=0.65, masking=masking)
        expected = mae(two()[0], noise)
        expected['loss'].backward()
        out = method(two(), noise)
        out['loss'].backward()
        torch.testing.assert_close(out['pixels'], expected['loss'].detach(), rtol=0, atol=0)
        results.append((gradients(method), gradients(mae)))
    torch.testing.assert_close(*results[0], rtol=0, atol=0)
    assert results[1][0].keys() > results[1][1].keys()
    assert not torch.equal(
        results[1][0]['encoder.blocks.0.attn.qkv.weight'], results[1][1]['encoder.blocks.0.attn.qkv.weight']
    )


def test_the_contrast_alone_learns():
    m = make(pixel_weight=0.0)
    m(two(), sort_keys())['loss'].backward()
    g = gradients(m)
    assert g['encoder.blocks.0.attn.qkv.weight'].abs().sum() > 0
    assert all(v.abs().sum() == 0 for n, v in g.items() if n.startswith('decoder.'))
    assert not any(n.startswith('momentum') for n in g)


def test_without_a_feature_decoder_the_visible_tokens_speak():
    m = make(feature_depth=0)
    x = two()[0]
    noise = sort_keys()
    mask = m.draw_mask(x, noise)
    assert m.feature_decoder is None
    assert torch.equal(m.summary(m.encode(x, mask), mask), m.encoder(x, mask.keep).patches.mean(1))


def test_chance_and_the_slow_copy():
    m = make()
    torch.nn.init.zeros_(m.predictor[3].weight)  # all cosines are 0
    assert m(two(), sort_keys())['contrast'].item() == pytest.approx(2 * 0.07 * math.log(6), rel=1e-3)
    with torch.no_grad():
        m.encoder.cls_token += 1
        m.projector[3].weight += 1
    old = [p.clone() for p in m.momentum_encoder.parameters()]
    m.after_step(0.9)
    for o, target_weight, online_weight in zip(old, m.momentum_encoder.parameters(), m.encoder.parameters()):
        torch.testing.assert_close(target_weight, 0.996 * o + 0.004 * online_weight)
    rising = make(momentum=0.9, momentum_schedule='cosine')
    rising.projector[0].weight.data += 1
    before = rising.momentum_projector[0].weight.clone()
    rising.after_step(1.0)
    assert torch.equal(rising.momentum_projector[0].weight, before)


def test_a_convolutional_stem_a_mean_of_patches_and_its_own_views():
    m = make(encoder=vit(stem='conv', global_pool='avg'))
    assert isinstance(m.views, ShiftedViews)
    assert (m.views.margin, m.views.shift) == (5, 4)
    out = m(m.views(torch.randint(256, (6, 3, 40, 40), dtype=torch.uint8)))
    out['loss'].backward()
    assert all(v.isfinite() for v in out.values())
    assert all(p.grad is not None for p in m.encoder.patch_embed.parameters())
    r = m.reconstruct(torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8))
    assert r.prediction.shape == (2, 3, 32, 32)
    assert r.mask.sum(1).eq(12).all()


# --- whole runs


def tiny(**changes):
    """CMAE in miniature on 1,438 digits of 8 x 8 pixels.
    SGD without momentum: the change of the weights is the gradient."""
    options = dict(
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        feature_depth=1,
        hidden=16,
        dim=8,
        group=1,
        **changes.pop('method_options', {}),
    )
    return recipe(
        'cmae',
        'laptop',
        **{
            **dict(
                data='digits',
                img_size=8,
                patch_size=2,
                encoder_options=dict(stem='patchify', embed_dim=24, depth=1, num_heads=2),
                method_options=options,
                batch_size=287,
                drop_last=False,
                steps=6,
                optimizer='sgd',
                momentum=0.0,
                base_lr=0.1,
                min_lr=0.1,
                warmup=0,
                weight_decay=0.0,
                log_every=1,
                checkpoint_every=100,
            ),
            **changes,
        },
    )


def train(r):
    torch.set_num_threads(1)
    data = load('digits')
    method = build(r, data).double()
    for module in (method.encoder, method.momentum_encoder):
        module.register_forward_pre_hook(lambda module, args: (args[0].double(), *args[1:]))
    # forward_intermediates goes past the encoder's own hook
    method.momentum_encoder.patch_embed.register_forward_pre_hook(
        lambda module, args: (args[0].double(), *args[1:])
    )
    method.hidden_patches = lambda x, mask, of=method.hidden_patches: of(x.double(), mask)
    history = pretrain(method, data, r, quiet=True, device='cpu')
    return [(row['loss'], row['grad_norm']) for row in history.rows], method.state_dict()


def test_two_processes_train_as_one(two_processes):
    "Views, masks, gathered keys, running statistics and the momentum copies; batches of 287 are uneven."
    rows, state = train(tiny())
    answers = two_processes(train, tiny())
    for theirs, other in answers:
        for a, b in zip(rows, theirs, strict=True):
            assert a == pytest.approx(b, rel=1e-6)
        close_states(other, state, rtol=1e-6, atol=1e-8)


def test_scales():
    assert recipe('cmae', 'paper').lr == pytest.approx(2.4e-3)
    assert {recipe('cmae', s).scale for s in ('laptop', 'slow', 'gpu', 'paper')} == {
        'laptop',
        'slow',
        'gpu',
        'paper',
    }
    for s, weight in (('laptop', 0.3), ('gpu', 1.0)):
        assert build(recipe('cmae', s), load('digits')).contrast_weight == weight


@pytest.mark.parametrize(
    'case, match',
    [
        (
            lambda: make(encoder=ViT(28, 4, 3, embed_dim=24, depth=1, num_heads=2)),
            "Groups of 2 x 2 patches don't tile a grid of 7 x 7",
        ),
        (lambda: make(group=3), "don't tile a grid of 4 x 4"),
        (lambda: make(mask_ratio=0.8), 'leaves none of 4 patches'),
        (lambda: make(temperature=0.0), 'must be above 0'),
        (lambda: make(momentum=1.1), '0 to 1; 1.1 is not'),
        (lambda: make(momentum_schedule='linear'), "schedule of momentum 'linear'"),
        (lambda: make(contrast_weight=-0.1), 'contrast_weight must be 0 or more'),
        (lambda: make(pixel_weight=float('nan')), 'pixel_weight must be 0 or more'),
        (lambda: make(masking='groups'), "Did you mean 'group'"),
        (lambda: make()(two()[0]), 'compares two views'),
        (lambda: make()([v[:1] for v in two()]), 'batch of one'),
        (lambda: make()([two()[0], two(3)[1]]), 'same pictures'),
        (lambda: make()(two(), torch.rand(6, 5)), r'is \(6, 4\), not \(6, 5\)'),
    ],
)
def test_bad_input(case, match):
    with pytest.raises(ValueError, match=match):
        case()
