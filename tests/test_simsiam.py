"""SimSiam against two independent implementations: lightly's heads and loss, and numbers that the official
code gave."""

import copy, json, zlib
from functools import partial
from pathlib import Path
import helpers
from helpers import check_moves, differing, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.utils.debug import std_of_l2_normalized
from torch import nn
from small_pairs import SMALL, two
from vit_ssl_lab.components.losses import feature_std
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.methods.simsiam import SimSiam, cross_entropy_similarity

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'simsiam_official.json').read_text())


def small(seed: int = 0, **kw) -> SimSiam:
    torch.manual_seed(seed)
    return SimSiam(vit_nano(**SMALL), **{'dim': 64, 'pred_dim': 16, **kw})


class Peer(nn.Module):
    "SimSiam of lightly's parts, as its own example puts them together."

    def __init__(self, encoder, dim, pred_dim):
        super().__init__()
        self.encoder = encoder
        self.projection_head = SimSiamProjectionHead(encoder.width, dim, dim)
        self.prediction_head = SimSiamPredictionHead(dim, pred_dim, dim)

    def forward(self, x):
        z = self.projection_head(self.encoder(x).pooled)
        return z.detach(), self.prediction_head(z)


def with_peer() -> tuple[SimSiam, Peer, dict]:
    "Ours, lightly's with the same weights, and our parameter -> theirs."
    ours = small()
    peer = Peer(copy.deepcopy(ours.encoder), 64, 16)
    pairs = {}
    for mine, his in (
        (ours.encoder, peer.encoder),
        (ours.projector, peer.projection_head.layers),
        (ours.predictor, peer.prediction_head.layers),
    ):
        a, b = dict(mine.named_parameters()), dict(his.named_parameters())
        assert a.keys() == b.keys(), "the same layers, biases and affine flags"
        with torch.no_grad():
            for name in a:
                b[name].copy_(a[name])
                pairs[a[name]] = b[name]
    return ours, peer, pairs


def test_lightly():
    ours, peer, pairs = with_peer()
    ours.double()
    peer.double()
    x1, x2 = (x.double() for x in two())
    (z1, p1), (z2, p2) = peer(x1), peer(x2)
    torch.testing.assert_close(ours.embed(x1), z1, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.predictor(ours.embed(x2)), p2, atol=1e-5, rtol=0)
    criterion = NegativeCosineSimilarity()
    theirs = 0.5 * (criterion(p1, z2) + criterion(p2, z1))
    res = ours([x1, x2])
    torch.testing.assert_close(res['loss'], theirs, atol=1e-5, rtol=0)
    res['loss'].backward()
    theirs.backward()
    for a, b in pairs.items():
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-7)
    before = {str(i): p.detach().clone() for i, p in enumerate(pairs)}
    for params in (pairs.keys(), pairs.values()):
        torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4).step()
    after, expected = ({str(i): p for i, p in enumerate(side)} for side in (pairs, pairs.values()))
    check_moves(before, after, expected, rtol=1e-7)
    n = len(x1)
    # theirs divides by n - 1
    torch.testing.assert_close(
        res['std'], std_of_l2_normalized(z1) * 64**0.5 * ((n - 1) / n) ** 0.5, atol=1e-5, rtol=0
    )


def official_name(ours: str) -> str:
    "The official implementation's name of a parameter of ours."
    return ours.replace('projector.', 'encoder.fc.')


def golden_model() -> SimSiam:
    """The model of tests/golden/simsiam_official.json, float64: parameters by formula from their official
    names."""
    from vit_ssl_lab.encoders import encoder

    model = SimSiam(encoder('resnet18', img_size=48, stem='imagenet'), dim=512, pred_dim=128).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            i = np.arange(p.numel())
            u = (i * i * 7919 + zlib.crc32(official_name(name).encode())) % 10007 / 10007 * 2 - 1
            p.copy_(
                torch.tensor(u * ((6 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1)).reshape(p.shape)
                + (1.0 if p.ndim == 1 and name.endswith('weight') else 0.0)
            )
    return model


def test_official_numbers():
    model = golden_model()
    i = np.arange(8 * 3 * 48 * 48)
    x1 = torch.tensor(np.sin(i * 0.11) + np.cos(i * 0.013)).reshape(8, 3, 48, 48)
    x2 = 0.8 * x1 + 0.2 * torch.tensor(np.sin(i * 0.17 + 1)).reshape(8, 3, 48, 48)

    close = partial(helpers.close, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        z1, z2 = model.embed(x1), model.embed(x2)
    close(z1[1, ::64], GOLDEN['z1'])
    close(z2[6, ::64], GOLDEN['z2'])
    close(model.predictor(z1)[1, ::64], GOLDEN['p1'])
    close(model.predictor(z2)[6, ::64], GOLDEN['p2'])
    heads = {
        official_name(n): list(p.shape) for n, p in model.named_parameters() if not n.startswith('encoder.')
    }
    assert heads == {n: s for n, s in GOLDEN['heads'].items() if n not in GOLDEN['frozen']}, (
        "the same heads, but for the bias that the official code freezes"
    )
    res = model([x1, x2])
    close(res['loss'], GOLDEN['loss'])
    close(res['std'], GOLDEN['std'] * (512 * 7 / 8) ** 0.5)
    res['loss'].backward()
    norms = {official_name(n): p.grad.norm() for n, p in model.named_parameters()}
    for name, norm in GOLDEN['gradient_norms'].items():
        close(norms[name], norm)
    torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4).step()
    with torch.no_grad():
        close(model([x1, x2])['loss'], GOLDEN['loss_after_one_step'])


def test_no_gradient_but_through_p():
    "With p as a constant, the loss has no gradient for z; without stop-gradient it has."
    for stop in (True, False):
        m = small(stop_gradient=stop)
        z = torch.randn(8, 64, requires_grad=True)
        p = torch.randn(8, 64)
        loss = m.distance(p, m.target(z))
        assert loss.requires_grad is not stop
        if not stop:
            loss.backward()
            assert z.grad.abs().sum() > 0
    # the whole gradient is the one through p: replace the targets by stored numbers, and nothing changes
    m = small()
    x = two()
    with torch.no_grad():
        t1, t2 = m.embed(x[0]), m.embed(x[1])
    through_p = (m.distance(m.predictor(m.embed(x[0])), t2) + m.distance(m.predictor(m.embed(x[1])), t1)) / 2
    a = torch.autograd.grad(m(x)['loss'], list(m.parameters()))
    b = torch.autograd.grad(through_p, list(m.parameters()))
    for u, v in zip(a, b):
        torch.testing.assert_close(u, v, atol=1e-6, rtol=1e-4)


def test_loss_at_initialisation():
    """p knows nothing of z: the mean cosine of a new model is near zero; without predictor two equal views
    cost exactly -1."""
    m = SimSiam(vit_nano(**SMALL), dim=512, pred_dim=128)
    x = two(64)
    assert abs(m(x)['loss'].item()) < 0.25
    none = small(predictor=None)
    torch.testing.assert_close(none([x[0], x[0]])['loss'], torch.tensor(-1.0), atol=1e-5, rtol=0)


def test_spread_of_a_standard_normal():
    "The paper's reference: unit vectors all over the sphere have std 1/sqrt(d) in every dimension."
    for d in (64, 2048):
        z = torch.randn(512, d, generator=seeded(0))
        assert 0.98 < feature_std(z).item() < 1.02
        assert 0.98 < std_of_l2_normalized(z).item() * d**0.5 < 1.02


def test_symmetric_is_the_mean_of_both_directions():
    x1, x2 = two()
    one, both = small(symmetric=False), small()
    torch.testing.assert_close(both([x1, x2])['loss'], (one([x1, x2])['loss'] + one([x2, x1])['loss']) / 2)


def test_cross_entropy():
    "Against torch's cross-entropy with soft targets; its least value is the target's entropy, at p = z."
    p, z = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    torch.testing.assert_close(cross_entropy_similarity(p, z), F.cross_entropy(p, z.softmax(1)))
    assert cross_entropy_similarity(z, z) <= cross_entropy_similarity(p, z)
    res = small(similarity='cross-entropy')(two())
    assert res['loss'].isfinite()
    assert res['loss'] > 0


@pytest.mark.parametrize(
    'head_norm, norms', [('all', ['batch', 'batch', 'plain']), ('hidden', ['batch', 'batch']), (None, [])]
)
def test_head_norms(head_norm, norms):
    m = small(head_norm=head_norm)
    found = ['batch' if b.affine else 'plain' for b in m.projector if isinstance(b, nn.BatchNorm1d)]
    assert found == norms
    assert any(isinstance(b, nn.BatchNorm1d) for b in m.predictor) is bool(norms)
    assert m(two())['loss'].isfinite()


def test_predictors():
    fixed = small(predictor='fixed')
    fixed(two())['loss'].backward()
    assert all(p.grad is None for p in fixed.predictor.parameters())
    assert all(p.grad is not None for p in fixed.projector.parameters())
    assert isinstance(small(predictor=None).predictor, nn.Identity)
    assert len(small(layers=2).projector) == 5


def test_views_and_resnet_by_the_same_class():
    from vit_ssl_lab.encoders import encoder

    m = SimSiam(encoder('resnet_nano', img_size=24), dim=32, pred_dim=8)
    assert m.views.size == (24, 24)
    assert [p.blur for p in m.views.policies] == [0.5, 0.5]
    assert m.views.policies[0].scale == (0.2, 1.0)
    x = m.views(torch.randint(0, 256, (4, 3, 30, 30), dtype=torch.uint8))
    m(x)['loss'].backward()
    assert all(p.grad is not None for p in m.parameters())
    grey = SimSiam(vit_nano(**SMALL, in_chans=1), dim=32, pred_dim=8)
    assert grey(grey.views(torch.randint(0, 256, (4, 1, 24, 24), dtype=torch.uint8)))['loss'].isfinite()


def test_recipe():
    "The paper's run, and the learning rate of the predictor, which stays where that of the rest falls."
    from vit_ssl_lab.training.build import recipe

    r = recipe('simsiam', 'paper')
    assert not differing(
        r, batch_size=512, epochs=100, lr=0.1, momentum=0.9, weight_decay=1e-4, optimizer='sgd', warmup=0
    )
    assert r.decay_all
    assert r.constant_lr == ('predictor',)
    assert r.encoder == 'resnet50'


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: small(predictor='learn'), "Did you mean 'learned'"),
        (lambda: small(similarity='cosin'), "Did you mean 'cosine'"),
        (lambda: small(head_norm='hiden'), "Did you mean 'hidden'"),
        (lambda: small()(two(1)), 'batch of one picture'),
        (lambda: small()(two()[0]), r'\[x1, x2\]'),
        (lambda: small()([two(8)[0], two(4)[1]]), 'same pictures'),
        (lambda: small()([*two(), two()[0]]), 'got 3'),
        (lambda: SimSiam(nn.Identity()), 'needs an encoder with width'),
        (lambda: small(layers=0), 'output width'),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)
