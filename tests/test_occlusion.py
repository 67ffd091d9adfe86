"""Occlusion invariance:
MAE for one similarity and in the limit, formulas in float64, CKA and retrieval against direct forms, two
processes, bad input."""

import math
from helpers import close_states, gradients, normal, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders.resnet import resnet_nano
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.evaluation.invariance import (
    block_means,
    linear_cka,
    occlusion_invariance,
    retrieval_accuracy,
)
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.methods.occlusion import SIMILARITIES, OcclusionInvariance
from vit_ssl_lab.training import build, pretrain, recipe


def vit(**kw):
    return ViT(32, 8, 3, embed_dim=24, depth=2, num_heads=2, positions='sincos', **kw)


def make(similarity='decoder', dtype=torch.float32, encoder=None, **kw):
    torch.manual_seed(0)
    return OcclusionInvariance(
        vit() if encoder is None else encoder,
        similarity,
        **{**dict(decoder_width=32, decoder_depth=1, decoder_heads=4, hidden=32, dim=8), **kw},
    ).to(dtype)


def pictures(batch=6, seed=1, dtype=torch.float32):
    return normal(batch, 3, 32, 32, seed=seed, dtype=dtype)


def sort_keys(batch=6, n=16, seed=3):
    return torch.rand(batch, n, generator=seeded(seed))


def mae(dtype=torch.float32, **kw):
    torch.manual_seed(0)
    return MAE(vit(), 32, 1, 4, **kw).to(dtype)


# --- MAE


@pytest.mark.parametrize('options', [{}, dict(norm_pix=False), dict(mask_ratio=0.5, masking='group')])
def test_pixels_are_mae(options):
    "Loss and every gradient, bit for bit."
    ours = make('pixels', **options)
    theirs = mae(**options)
    a = ours(pictures(), sort_keys())['loss']
    b = theirs(pictures(), sort_keys())['loss']
    a.backward()
    b.backward()
    assert torch.equal(a, b)
    assert gradients(ours).keys() == gradients(theirs).keys()
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=0, atol=0)


def test_with_a_perfect_second_decoder_the_relaxed_loss_is_maes():
    m = make(dtype=torch.float64)
    theirs = mae(torch.float64)
    x = pictures(dtype=torch.float64)
    noise = sort_keys()
    target = m.target(m.hidden_patches(x, m.draw_mask(x, noise)))
    m.second_decoder.forward = lambda *args: target
    out = m(x, noise)
    expected = theirs(x, noise)
    out['loss'].backward()
    expected['loss'].backward()
    torch.testing.assert_close(out['loss'], expected['loss'], rtol=1e-12, atol=0)
    assert out['own'] == 0
    torch.testing.assert_close(
        {n: g for n, g in gradients(m).items() if not n.startswith('second')},
        gradients(theirs),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize('strength', [0.0, 0.1, 1.0, 1e6])
def test_with_a_free_second_decoder_it_is_maes_times_a_share(strength):
    """The best answer is (a + lambda y) / (1 + lambda): what is left, and its gradient, are lambda / (1 +
    lambda) of MAE's."""
    m = make(dtype=torch.float64, strength=strength)
    theirs = mae(torch.float64)
    x = pictures(dtype=torch.float64)
    noise = sort_keys()
    mask = m.draw_mask(x, noise)
    target = m.target(m.hidden_patches(x, mask))
    a = m.predict(x, mask, mask.hidden)
    answer = ((a + strength * target) / (1 + strength)).detach()
    m.second_decoder.forward = lambda *args: answer
    out = m(x, noise)
    expected = theirs(x, noise)
    out['loss'].backward()
    expected['loss'].backward()
    share = strength / (1 + strength)
    torch.testing.assert_close(out['loss'], share * expected['loss'], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        {n: g for n, g in gradients(m).items() if not n.startswith('second')},
        {n: share * g for n, g in gradients(theirs).items()},
        rtol=1e-8,
        atol=1e-12,
    )


# --- formulas


def test_the_relaxed_loss_by_hand():
    m = make(dtype=torch.float64, strength=0.3)
    x = pictures(dtype=torch.float64)
    noise = sort_keys()
    keep = noise.argsort(1)[:, :4]
    hidden = noise.argsort(1)[:, 4:].sort(1).values
    f1, f2 = m.encoder(x, keep), m.encoder(x, hidden)
    a = m.decoder(f1.patches, keep, f1.pooled)
    b = m.second_decoder(f2.patches, hidden, f2.pooled)
    distance, own = [], []
    for i in range(6):
        for j in hidden[i].tolist():
            r, c = divmod(j, 4)
            p = x[i, :, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].permute(1, 2, 0).flatten()
            y = (p - p.mean()) / (p.var() + 1e-6).sqrt()
            distance.append(((a[i, j] - b[i, j]) ** 2).mean())
            own.append(((b[i, j] - y) ** 2).mean())
    out = m(x, noise)
    torch.testing.assert_close(
        out['loss'], torch.stack(distance).mean() + 0.3 * torch.stack(own).mean(), rtol=1e-9, atol=1e-10
    )
    out['loss'].backward()
    assert gradients(m)['second_decoder.mask_token'].abs().sum() > 0


def test_swapping_equal_parts_leaves_the_distance():
    "One decoder for both, half hidden: T1 and T2 change places."
    m = make(dtype=torch.float64, mask_ratio=0.5, strength=0.0)
    x = pictures(dtype=torch.float64)
    m.second_decoder.load_state_dict(m.decoder.state_dict())
    one = m.draw_mask(x, sort_keys())
    two = m.other(one)
    a, b = m.both_predictions(x, one)
    c, d = m.both_predictions(x, two)
    torch.testing.assert_close((a - b).square().mean(), (c - d).square().mean())


@pytest.mark.parametrize('similarity', ['contrastive', 'cosine'])
@pytest.mark.parametrize('second', ['whole', 'hidden'])
def test_feature_similarities_by_hand(similarity, second):
    m = make(similarity, torch.float64, second=second)
    x = pictures(dtype=torch.float64)
    noise = sort_keys()
    keep = noise.argsort(1)[:, :4]
    other = noise.argsort(1)[:, 4:].sort(1).values if second == 'hidden' else torch.arange(16).expand(6, -1)

    def feature(k):
        f = m.encoder(x, k)
        return m.projector(m.feature_decoder(f.patches, k, f.pooled).mean(1))

    p = m.predictor(feature(keep))
    z = feature(other).detach()
    expected = (
        F.cross_entropy(F.normalize(p, dim=1) @ F.normalize(z, dim=1).T / 0.2, torch.arange(6))
        if similarity == 'contrastive'
        else (2 - 2 * F.cosine_similarity(p, z)).mean()
    )
    out = make(similarity, torch.float64, second=second)(x, noise)
    torch.testing.assert_close(out['loss'], expected, rtol=1e-9, atol=1e-10)
    expected.backward()
    wanted = gradients(m)
    n = make(similarity, torch.float64, second=second)
    n(x, noise)['loss'].backward()
    torch.testing.assert_close(gradients(n), wanted, rtol=1e-7, atol=1e-10)


def test_chance():
    for similarity, chance in (('contrastive', math.log(6)), ('cosine', 2.0)):
        m = make(similarity)
        torch.nn.init.zeros_(m.predictor[-1].weight)
        torch.nn.init.zeros_(m.predictor[-1].bias)
        assert m(pictures(), sort_keys())['loss'].item() == pytest.approx(chance, abs=1e-3)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_without_occlusion_every_patch_is_compared(similarity):
    m = make(similarity, mask_ratio=0.0)
    out = m(pictures(), sort_keys())
    out['loss'].backward()
    assert out['loss'].isfinite()
    assert out['loss'] > 0
    assert all(p.grad is not None for p in m.encoder.blocks.parameters())
    if similarity == 'decoder':
        assert torch.equal(m.other(m.draw_mask(pictures())).keep, torch.arange(16).expand(6, -1))


# --- the measure


def test_cka_against_pairs_and_its_invariances():
    g = seeded(0)
    a = torch.randn(60, 7, generator=g).double()
    b = torch.randn(60, 11, generator=g).double()
    x = a.numpy() - a.numpy().mean(0)
    y = b.numpy() - b.numpy().mean(0)
    direct = (np.linalg.norm(x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    H = np.eye(60) - 1 / 60
    K, L = (H @ m @ m.T @ H for m in (a.numpy(), b.numpy()))
    assert (
        linear_cka(a, b)
        == pytest.approx(direct, abs=1e-10)
        == pytest.approx((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()), abs=1e-10)
    )
    turn = torch.linalg.qr(torch.randn(7, 7, generator=g).double())[0]
    assert linear_cka(2 * a @ turn - 3, b) == pytest.approx(linear_cka(a, b), abs=1e-10)
    assert linear_cka(a, a) == pytest.approx(1)
    assert linear_cka(a, b) == pytest.approx(linear_cka(b, a))


def test_retrieval_by_hand():
    g = seeded(0)
    a, b = torch.randn(2, 40, 5, generator=g)
    b = a + b
    hits = sum(
        max(range(40), key=lambda j: F.cosine_similarity(a[i], b[j], dim=0).item()) == i for i in range(40)
    )
    assert retrieval_accuracy(a, b) == pytest.approx(100 * hits / 40)


def test_block_means_leave_no_hooks_and_occlusion_is_reproducible():
    e = vit(global_pool='avg')
    data = load('scenes', 'test', size=32).subset(40)
    e.train()
    first = occlusion_invariance(e, data, 0.5, seed=3)
    assert e.training
    assert first == occlusion_invariance(e, data, 0.5, seed=3, batch_size=7)
    assert first != occlusion_invariance(e, data, 0.5, seed=4)
    assert len(first['cka']) == 2
    assert occlusion_invariance(e, data, 0.0)['retrieval'] == [100.0, 100.0]
    with pytest.raises(ValueError):
        block_means(e, torch.zeros(1, 3, 5, 5))
    assert not any(b._forward_hooks for b in e.blocks)


# --- whole runs


def tiny(similarity, **changes):
    options = dict(
        similarity=similarity, decoder_width=16, decoder_depth=1, decoder_heads=2, hidden=16, dim=8
    )
    return recipe(
        'occlusion',
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
                steps=4,
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


def forward_doubled(method, views, noise=None, mask=None):
    return type(method).__mro__[1].forward(method, views.double(), noise, mask)


def train(similarity):
    torch.set_num_threads(1)
    data = load('digits')
    r = tiny(similarity)
    method = build(r, data).double()
    method.__class__ = type('Doubled', (type(method),), {'forward': forward_doubled})
    history = pretrain(method, data, r, quiet=True, device='cpu')
    return [(row['loss'], row['grad_norm']) for row in history.rows], method.state_dict()


def test_two_processes_train_as_one(two_processes):
    expected = {s: train(s) for s in ('decoder', 'contrastive')}
    answers = {s: two_processes(train, s) for s in expected}
    for s, (rows, state) in expected.items():
        for theirs, other in answers[s]:
            for a, b in zip(rows, theirs, strict=True):
                assert a == pytest.approx(b, rel=1e-6)
            close_states(other, state, rtol=1e-6, atol=1e-8)


def test_scales_and_pictures():
    for s in ('laptop', 'slow', 'gpu', 'paper'):
        assert recipe('occlusion', s).scale == s
    m = make(encoder=vit(stem='conv', global_pool='avg'))
    r = m.reconstruct(torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8))
    assert r.prediction.shape == (2, 3, 32, 32)
    assert m(m.views(torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)))['loss'].isfinite()


@pytest.mark.parametrize(
    'case, match',
    [
        (lambda: make('decode'), "Did you mean 'decoder'"),
        (lambda: make(second='half'), "part for the second pass 'half'"),
        (lambda: make(strength=-1.0), 'it is lambda'),
        (lambda: make(temperature=0.0), 'must be above 0'),
        (lambda: make(mask_ratio=1.0), '0 <= ratio < 1'),
        (
            lambda: make('cosine').reconstruct(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)),
            'has no decoder of pixels',
        ),
        (lambda: make('contrastive')(pictures(1)), 'batch of one'),
        (lambda: make()(pictures(), torch.rand(6, 5)), r'is \(6, 16\), not \(6, 5\)'),
        (lambda: linear_cka(torch.rand(4, 2), torch.rand(5, 2)), '4 and 5 rows'),
        (lambda: linear_cka(torch.rand(1, 2), torch.rand(1, 2)), 'two or more'),
        (lambda: retrieval_accuracy(torch.rand(4, 2), torch.rand(4, 3)), 'of the same width'),
        (lambda: block_means(resnet_nano(img_size=32), torch.zeros(1, 3, 32, 32)), 'has none'),
        (lambda: linear_cka(torch.full((3, 2), float('nan')), torch.rand(3, 2)), 'not finite'),
    ],
)
def test_bad_input(case, match):
    with pytest.raises(ValueError, match=match):
        case()
