"""SupMAE against numbers that the official code gave, against MAE where the labels weigh nothing, and against
its formula in float64."""

import json, math, re, zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from helpers import close, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vit_ssl_lab.components.masking import random_masking
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.methods.supmae import SupMAE
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training.loop import load_run

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'supmae_official.json').read_text())
LABELS = torch.tensor([0, 3, 1, 4, 2, 3])


def make(num_classes=5, Method=SupMAE, encoder=None, **kw):
    torch.manual_seed(0)
    encoder = ViT(24, 4, 3, positions='sincos', embed_dim=32, depth=2, num_heads=4, **(encoder or {}))
    decoder = dict(decoder_width=16, decoder_depth=1, decoder_heads=2)
    return (
        SupMAE(encoder, num_classes, **{**decoder, 'hidden': 24, **kw})
        if Method is SupMAE
        else Method(encoder, **decoder, **kw)
    )


def pictures(n=6, seed=1):
    return torch.randn(n, 3, 24, 24, generator=seeded(seed))


def noise_of(n=6, seed=2):
    return torch.rand(n, 36, generator=seeded(seed))


def official_name(ours):
    ours = re.sub(r'^encoder\.', '', ours)
    ours = re.sub(r'^decoder\.(embed|blocks|norm|pos_embed)', r'decoder_\1', ours)
    return (
        ours.replace('decoder.head', 'decoder_pred')
        .replace('decoder.mask_token', 'mask_token')
        .replace('classifier.', 'cls_head.')
    )


@pytest.mark.parametrize('pool, theirs', [('patches', 'patches'), ('encoder', 'token')])
@pytest.mark.parametrize('target', ['pixels', 'norm_pix'])
def test_official_numbers(target, pool, theirs):
    want = GOLDEN[f'{target}, {theirs}']
    model = make(norm_pix=target == 'norm_pix', pool=pool)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            name = official_name(name)
            wave = 0.1 * np.sin(np.arange(p.numel()) * 0.37 + zlib.crc32(name.encode()) % 1000)
            p.copy_(
                torch.tensor(wave).reshape(p.shape).float()
                + (
                    1.0
                    if ('norm' in name or name == 'cls_head.1.weight') and name.endswith('weight')
                    else 0.0
                )
            )
    i = np.arange(6 * 3 * 24 * 24)
    x = torch.tensor(np.sin(i * 0.11) + np.cos(i * 0.013)).reshape(6, 3, 24, 24).float()
    noise = torch.tensor((np.arange(6 * 36) * 0.6180339887) % 1).reshape(6, 36).float()

    mask = random_masking(6, model.grid, 0.75, noise=noise)
    assert mask.mask[0].int().tolist() == want['mask']
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05
    )
    out = model(x, LABELS, noise)
    close(out['loss'], want['loss'])
    close(out['pixels'], want['pixels'])
    close(out['labels'], want['labels'])
    head = model.classifier[1]
    close(head.running_mean[:6], want['running_mean'], 1e-6)
    close(head.running_var[:6], want['running_var'], 1e-6)
    out['loss'].backward()
    norms = {official_name(n): p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    for name, norm in want['gradient_norms'].items():
        close(norms[name], norm)
    with torch.no_grad():
        head.momentum = 0.0  # run it without moving the statistics
        close(model.classify(model.encode(x, mask)), want['logits'])
        close(model.predict(x, mask)[1, 7, :6], want['pred'])
        head.momentum = 0.1
        close(model.eval().classify(model.encode(x, mask)), want['logits_eval'])
        model.train()
    optimizer.step()
    close(model(x, LABELS, noise)['loss'], want['loss_after_one_step'])


@pytest.mark.parametrize('norm_pix', [False, True])
def test_without_labels_it_is_mae(norm_pix):
    "Weight 0: the same loss and the same gradients, no label asked for, nothing learned by the classifier."
    ours = make(label_weight=0, norm_pix=norm_pix)
    mae = make(Method=MAE, norm_pix=norm_pix)
    mae.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith('classifier')})
    a = ours(pictures(), noise=noise_of())['loss']
    b = mae(pictures(), noise=noise_of())['loss']
    a.backward()
    b.backward()
    assert torch.equal(a, b)
    theirs = dict(mae.named_parameters())
    for name, p in ours.named_parameters():
        if name.startswith('classifier'):
            assert p.grad is None
            assert not p.requires_grad
        elif p.requires_grad:
            assert torch.equal(p.grad, theirs[name].grad), name


def test_the_formula_in_float64():
    """pixels + 0.01 * CE(logits / 10), with BatchNorm, mean and softmax written out; the gradient of the
    logits is lambda / T / B times (softmax - one-hot)."""
    m = make().double()
    x = pictures().double()
    noise = noise_of()
    with torch.no_grad():
        m.classifier[1].weight.uniform_(0.5, 2)
        m.classifier[1].bias.uniform_(-1, 1)
        m.classifier[3].bias.uniform_(-1, 1)
    mask = random_masking(6, m.grid, 0.75, noise=noise)
    tokens = m.encoder.tokens(x, mask.keep)[:, 1:]  # the class token is left out
    h = tokens.sum(1) / 9 @ m.classifier[0].weight.T + m.classifier[0].bias
    h = (h - h.mean(0)) / (((h - h.mean(0)) ** 2).mean(0) + 1e-5).sqrt() * m.classifier[
        1
    ].weight + m.classifier[1].bias
    logits = h.clamp(min=0) @ m.classifier[3].weight.T + m.classifier[3].bias
    p = (logits / 10).exp()
    p = p / p.sum(1, keepdim=True)
    ce = -p[torch.arange(6), LABELS].log().mean()
    patches = x.reshape(6, 3, 6, 4, 6, 4).permute(0, 2, 4, 3, 5, 1).reshape(6, 36, 48)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    pixels = (((m.predict(x, mask) - target) ** 2).mean(-1) * mask.mask).sum() / mask.mask.sum()
    out = m(x, LABELS, noise)

    # the cross-entropy itself is in float32
    near = partial(close, rtol=1e-6, atol=1e-7)
    near(out['loss'], pixels + 0.01 * ce)
    near(out['labels'].double(), ce.detach())
    bias = torch.autograd.grad(out['loss'], m.classifier[3].bias)[0]
    near(bias, (0.01 / 10 * (p - F.one_hot(LABELS, 5)).mean(0)).detach())


def test_chance_and_the_first_loss():
    m = make(num_classes=7)
    torch.nn.init.zeros_(m.classifier[-1].weight)
    assert m(pictures(), LABELS)['labels'].item() == pytest.approx(math.log(7), abs=1e-6)


def test_labels_only_runs_no_decoder():
    m = make(pixel_weight=0, label_weight=1.0, temperature=1.0)
    m.decoder.forward = None
    out = m(pictures(), LABELS, noise_of())
    out['loss'].backward()
    assert 'pixels' not in out
    assert out['loss'].item() == pytest.approx(out['labels'].item())
    assert all(p.grad is not None for n, p in m.named_parameters() if p.requires_grad), (
        "on many devices every trained weight must get a gradient"
    )


def test_only_the_visible_patches_are_classified():
    m = make().eval()
    x = pictures()
    noise = noise_of()
    mask = random_masking(6, m.grid, 0.75, noise=noise)
    hidden = mask.mask.reshape(6, 1, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(m.classify(m.encode(x, mask)), m.classify(m.encode(x + 5 * hidden, mask)))
    assert m.classify(m.encoder(x)).shape == (6, 5), "and later all of them"
    assert [type(layer).__name__ for layer in make(hidden=0).classifier] == ['Linear']
    pooled = make(pool='encoder', encoder=dict(global_pool='avg', fc_norm=False)).eval()
    same = make(encoder=dict(global_pool='avg', fc_norm=False)).eval()
    pooled.load_state_dict(same.state_dict())
    torch.testing.assert_close(pooled.classify(pooled.encode(x, mask)), same.classify(same.encode(x, mask)))


def test_the_number_of_classes_comes_from_the_data_and_survives(tmp_path):
    data = load('digits')
    small_recipe = recipe(
        'supmae',
        'laptop',
        data='digits',
        img_size=8,
        patch_size=2,
        encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
        steps=4,
        batch_size=16,
        checkpoint_every=2,
        method_options=dict(hidden=16, decoder_width=16, decoder_depth=1, decoder_heads=2),
    )
    m = build(small_recipe, data)
    assert m.num_classes == len(data.classes) == 10
    history = pretrain(m, data, small_recipe, out=tmp_path / 'run', quiet=True, device='cpu')
    assert {'pixels', 'labels', 'accuracy'} <= set(history.rows[-1])
    again = load_run(tmp_path / 'run')
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in m.state_dict().items())


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: make()(pictures()), 'got none'),
        (lambda: make()(pictures(), LABELS[:5]), r'int64 \(6,\)'),
        (lambda: make()(pictures(), LABELS.float()), 'not torch.float32'),
        (lambda: make()(pictures(), LABELS + 1), '0 to 4, and these go from 1 to 5'),
        (lambda: make()(pictures(), LABELS - 1), 'without a label'),
        (lambda: make()(pictures(1), LABELS[:1]), 'batch of one'),
        (lambda: make(num_classes=1), 'two classes'),
        (lambda: make(temperature=0.0), 'above 0'),
        (lambda: make(label_weight=-1.0), '0 or more'),
        (lambda: make(label_weight=0, pixel_weight=0), 'not both 0'),
        (lambda: make(pool='patch'), "Did you mean 'patches'"),
        (lambda: make(mask_ratio=1.0), '0 <= ratio < 1'),
        (lambda: SupMAE(torch.nn.Identity(), 5), 'SupMAE needs an encoder'),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)


def test_the_papers_size():
    """ViT-B/16, a decoder of one block, the classifier of 3072 hidden units: 95.03 M trained parameters, 5.44
    M of them in the classifier."""
    m = build(
        recipe('supmae', 'paper'),
        SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3, classes=list(range(1000))),
    )
    assert sum(p.numel() for p in m.parameters() if p.requires_grad) == 95_030_504
    assert sum(p.numel() for p in m.classifier.parameters()) == 5_441_512
