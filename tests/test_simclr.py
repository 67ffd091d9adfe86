"""SimCLR against lightly's loss, the official loss written in numpy, and a network of plain torch with the
same weights."""

import copy, math
from helpers import differing, lars_update, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import nn
from small_pairs import SMALL, two
from vit_ssl_lab.components.losses import nt_xent
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.training import recipe
from vit_ssl_lab.training.optim import make_optimizer, param_groups


def small(seed: int = 0, **kw) -> SimCLR:
    torch.manual_seed(seed)
    return SimCLR(vit_nano(**SMALL), **{'dim': 16, **kw})


class Peer(nn.Module):
    "SimCLR without our components: the head of the official code in plain torch, lightly's loss."

    def __init__(self, encoder, hidden, dim, temperature):
        super().__init__()
        self.encoder = encoder
        self.loss = NTXentLoss(temperature)
        self.first = nn.Linear(encoder.width, hidden, bias=False)
        self.bn = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, dim, bias=False)
        self.gamma = nn.Parameter(torch.ones(dim))  # of the last BatchNorm, which has no beta

    def forward(self, x1, x2):
        h = self.encoder(torch.cat([x1, x2])).pooled
        y = self.last(F.relu(self.bn(self.first(h))))
        z = self.gamma * (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()
        return self.loss(*z.chunk(2))


def with_peer(temperature: float = 0.1) -> tuple[SimCLR, Peer, dict]:
    "Ours, the peer with the same weights, and our parameter -> its own."
    ours = small(temperature=temperature)
    peer = Peer(copy.deepcopy(ours.encoder), 48, 16, temperature)
    head = dict(
        zip(
            ours.projector.parameters(),
            [peer.first.weight, peer.bn.weight, peer.bn.bias, peer.last.weight, peer.gamma],
            strict=True,
        )
    )
    pairs = dict(zip(ours.encoder.parameters(), peer.encoder.parameters())) | head
    with torch.no_grad():
        for a, b in head.items():
            a.add_(0.1 * torch.randn_like(a))
            b.copy_(a)
    assert len(pairs) == len(list(ours.parameters())) == len(list(peer.parameters())), (
        "no parameter without a partner"
    )
    return ours, peer, pairs


@pytest.mark.parametrize('temperature', [0.1, 0.5])
def test_equal_to_lightly_and_plain_torch(temperature):
    ours, peer, pairs = with_peer(temperature)
    x = two()
    res = ours(x)
    theirs = peer(*x)
    torch.testing.assert_close(res['loss'], theirs, atol=1e-5, rtol=0)
    res['loss'].backward()
    theirs.backward()
    for a, b in pairs.items():
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name, decay', [('sgd', 0.01), ('lars', 0.01), ('lars', 1e-6)])
def test_one_step(name, decay):
    """SGD as in torch's documentation; LARS with the trust ratio 0.001 |w| / |g + decay w|, 1-D parameters
    neither decayed nor adapted (lars_optimizer.py). In float64, so that updates of 1e-5 can be compared."""
    ours, peer, pairs = with_peer()
    ours.double()
    peer.double()
    x = [view.double() for view in two()]
    ours(x)['loss'].backward()
    peer(*x).backward()
    before = {p: p.detach().clone() for p in pairs}
    if name == 'sgd':
        expected = {p: -0.3 * (partner.grad + decay * partner).detach() for p, partner in pairs.items()}
        make_optimizer('sgd', param_groups(ours, decay, decay_all=True), lr=0.3).step()
    else:
        expected = {p: lars_update(partner, 0.3, decay) for p, partner in pairs.items()}
        how = recipe('simclr', 'paper').optimizer_options
        make_optimizer('lars', param_groups(ours, decay), lr=0.3, options=how).step()
    for p, update in expected.items():
        torch.testing.assert_close((p - before[p]).detach(), update, rtol=1e-7, atol=1e-13)


def official(z1, z2, temperature):
    """The official loss in float64: masked self-similarities, a mean for each direction, and their sum
    (objective.py)."""
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    n = len(a)
    total = 0.0
    for q, own, other in ((a, a, b), (b, b, a)):
        logits = np.concatenate([q @ other.T, q @ own.T - np.eye(n) * 1e9], 1) / temperature
        top = logits.max(1, keepdims=True)
        total += np.mean(top[:, 0] + np.log(np.exp(logits - top).sum(1)) - logits[np.arange(n), np.arange(n)])
    return total


@pytest.mark.parametrize('temperature', [0.05, 0.1, 0.5, 1.0])
def test_the_official_loss_is_twice_ours(temperature):
    z1, z2 = torch.randn(2, 12, 7, dtype=torch.float64, generator=seeded(0))
    ours = nt_xent(z1, z2, temperature).loss.item()
    assert official(z1.numpy(), z2.numpy(), temperature) == pytest.approx(2 * ours, abs=1e-6)
    assert NTXentLoss(temperature)(z1, z2).item() == pytest.approx(ours, abs=1e-6)


def test_loss_at_initialisation():
    """A constant output can't tell 2N - 1 views apart; so does any output at an infinite temperature;
    orthogonal pictures have a loss by hand."""
    n = 8
    m = small()
    x = two()
    assert nt_xent(torch.ones(n, 5), torch.ones(n, 5)).loss.item() == pytest.approx(
        math.log(2 * n - 1), abs=1e-6
    )
    m.projector = nn.Sequential(nn.Linear(48, 16))
    nn.init.zeros_(m.projector[0].weight)
    assert m(x)['loss'].item() == pytest.approx(math.log(2 * n - 1), abs=1e-5), (
        "the whole method with a constant head"
    )
    assert small(temperature=1e7)(x)['loss'].item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    eye = torch.eye(n)
    out = nt_xent(eye, eye, 0.5)
    assert out.loss.item() == pytest.approx(math.log(1 + (2 * n - 2) * math.exp(-2)), abs=1e-6)
    assert out.accuracy == 1


def test_the_order_of_views_and_pictures_does_not_matter():
    m = small()
    x1, x2 = two()
    loss = m([x1, x2])['loss']
    p = torch.randperm(8)
    torch.testing.assert_close(m([x2, x1])['loss'], loss)
    torch.testing.assert_close(m([x1[p], x2[p]])['loss'], loss)


def test_both_views_share_one_pass():
    "BatchNorm sees 2B rows: running means move once a step, and two passes would give another loss."
    m = small()
    x1, x2 = two()
    with torch.no_grad():
        together = m.embed(torch.cat([x1, x2]))
        apart = torch.cat([m.embed(x1), m.embed(x2)])
    assert (together - apart).abs().max() > 1e-3
    m = small()
    m([x1, x2])
    assert all(b.num_batches_tracked == 1 for b in m.modules() if isinstance(b, nn.BatchNorm1d))


def test_head():
    "No bias anywhere, no beta at the end; version 2 has three layers."
    names = [n for n, _ in small().projector.named_parameters()]
    assert names == ['0.weight', '1.weight', '1.bias', '3.weight', '4.weight']
    assert len([m for m in small(layers=3).projector if isinstance(m, nn.Linear)]) == 3
    assert small(hidden=20).projector[0].out_features == 20


def test_views_and_resnet_by_the_same_class():
    m = SimCLR(encoder('resnet_nano', img_size=24), dim=16)
    assert m.views.size == (24, 24)
    assert m.projector[0].out_features == m.encoder.width == 128
    assert all(
        p.jitter == (0.8, 0.8, 0.8, 0.2) and p.blur == 0.5 and p.scale == (0.08, 1.0)
        for p in m.views.policies
    )
    res = m(m.views(torch.randint(0, 256, (6, 3, 30, 30), dtype=torch.uint8)))
    res['loss'].backward()
    assert all(p.grad is not None for p in m.parameters())
    assert 0 <= res['accuracy'] <= 1
    assert 0 < res['std'] < 1.2
    grey = SimCLR(vit_nano(**SMALL, in_chans=1), dim=16)
    assert grey(grey.views(torch.randint(0, 256, (4, 1, 24, 24), dtype=torch.uint8)))['loss'].isfinite()


def test_it_learns_to_find_the_partner():
    m = small(temperature=0.5)
    x = two(16)
    opt = torch.optim.AdamW(m.parameters(), 3e-3)
    first = m(x)
    for _ in range(15):
        opt.zero_grad()
        m(x)['loss'].backward()
        opt.step()
        m.after_step(1.0)
    last = m(x)
    assert last['loss'] < first['loss'] - 0.2
    assert last['accuracy'] > 0.9


def test_recipe():
    from vit_ssl_lab.training.build import recipe

    r = recipe('simclr', 'paper')
    assert not differing(
        r, encoder='resnet50', batch_size=4096, epochs=100, optimizer='lars', weight_decay=1e-6, warmup=10
    )
    assert r.lr == pytest.approx(4.8)
    assert r.method_options['temperature'] == 0.1
    assert r.views is None
    assert r.sync_bn is True


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: small(temperature=0), 'above 0, not 0'),
        (lambda: small(temperature=-1.0), 'above 0, not -1'),
        (lambda: small()(two(1)), 'batch of one picture'),
        (lambda: small()(two()[0]), r'\[x1, x2\]'),
        (lambda: small()([*two(), two()[0]]), 'got 3'),
        (lambda: small()([two(8)[0], two(4)[1]]), 'same pictures'),
        (lambda: small()([two()[0], torch.randn(8, 3, 16, 16)]), 'need one size'),
        (lambda: SimCLR(nn.Identity()), 'needs an encoder with width'),
        (lambda: small(layers=0), 'one linear layer or more'),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)
