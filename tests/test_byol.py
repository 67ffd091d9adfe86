"""BYOL against lightly's loss, momentum update and schedule, plain torch's heads, and official formulas."""

import copy, math
from helpers import check_moves, differing, equal, lars_update, seeded, weights
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from small_pairs import SMALL, two
from vit_ssl_lab.components.losses import regression_loss
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.methods.byol import BYOL
from vit_ssl_lab.training.optim import make_optimizer, param_groups


def small(seed: int = 0, enc: dict | None = None, **kw) -> BYOL:
    torch.manual_seed(seed)
    return BYOL(vit_nano(**SMALL, **(enc or {})), **{'hidden': 64, 'dim': 16, **kw})


def mlp(a, h, b):
    # networks.py: MLP
    return nn.Sequential(nn.Linear(a, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, b, bias=False))


class Peer(nn.Module):
    "BYOL of plain heads and lightly's loss and momentum, put together as in lightly's own example."

    def __init__(self, encoder, hidden, dim):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.width, hidden, dim)
        self.predictor = mlp(dim, hidden, dim)
        self.criterion = NegativeCosineSimilarity()

    def start_target(self):
        self.target = [copy.deepcopy(self.encoder), copy.deepcopy(self.projector)]
        for m in self.target:
            deactivate_requires_grad(m)

    def forward(self, x1, x2):
        p1, p2 = (self.predictor(self.projector(self.encoder(x).pooled)) for x in (x1, x2))
        y1, y2 = (self.target[1](self.target[0](x).pooled).detach() for x in (x1, x2))
        return 4 + 2 * (self.criterion(p1, y2) + self.criterion(p2, y1))

    def follow(self, m):
        for online_part, target in zip((self.encoder, self.projector), self.target):
            update_momentum(online_part, target, m)


def with_peer(**kw) -> tuple[BYOL, Peer, dict]:
    "Ours, the peer with the same weights, and our parameter -> its own."
    ours = small(**kw)
    peer = Peer(copy.deepcopy(ours.encoder), 64, 16)
    pairs = {}
    for mine, his in (
        (ours.encoder, peer.encoder),
        (ours.projector, peer.projector),
        (ours.predictor, peer.predictor),
    ):
        a, b = dict(mine.named_parameters()), dict(his.named_parameters())
        assert a.keys() == b.keys(), "the same layers and biases"
        with torch.no_grad():
            for name in a:
                b[name].copy_(a[name])
                pairs[a[name]] = b[name]
    peer.start_target()
    return ours, peer, pairs


def test_equal_to_lightly_over_three_steps():
    "Loss, gradients and one step; then two more with the target on its way."
    ours, peer, pairs = with_peer()
    ours.double()
    for network in (peer, *peer.target):
        network.double()
    options = dict(lr=0.1, momentum=0.9, weight_decay=1e-4)
    mine = torch.optim.SGD(list(pairs.keys()), **options)
    his = torch.optim.SGD(list(pairs.values()), **options)
    for step in range(3):
        x = [view.double() for view in two(seed=step)]
        online = {str(i): p.detach().clone() for i, p in enumerate(pairs)}
        copies = weights(ours.momentum_encoder)
        res = ours(x)
        theirs = peer(*x)
        torch.testing.assert_close(res['loss'], theirs, atol=1e-9, rtol=0)
        mine.zero_grad()
        his.zero_grad()
        res['loss'].backward()
        theirs.backward()
        if step == 0:
            for a, b in pairs.items():
                torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-7)
        mine.step()
        his.step()
        ours.after_step((step + 1) / 10)
        peer.follow(cosine_schedule(step + 1, 11, 0.99, 1.0))  # lightly's last step of 11 is our progress 1
        mine_now, his_now = ({str(i): p for i, p in enumerate(side)} for side in (pairs, pairs.values()))
        check_moves(online, mine_now, his_now, rtol=1e-7, noise=1e-10)
        learned = {n: copies[n] for n, _ in ours.momentum_encoder.named_parameters()}
        mine_now, his_now = (dict(m.named_parameters()) for m in (ours.momentum_encoder, peer.target[0]))
        check_moves(learned, mine_now, his_now, rtol=1e-7, noise=1e-10)
        for a, b in zip(ours.momentum_projector.parameters(), peer.target[1].parameters()):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize('decay', [0.01, 1.5e-6])
def test_one_lars_step(decay):
    """Trust ratio 0.001 |w| / |g + decay w|; biases and norms neither decayed nor adapted (optimizers.py).
    In float64, for the paper's decay and one that is felt."""
    ours, peer, pairs = with_peer()
    for network in (ours, peer, *peer.target):
        network.double()
    x = [view.double() for view in two()]
    ours(x)['loss'].backward()
    peer(*x).backward()
    before = {p: p.detach().clone() for p in pairs}
    make_optimizer('lars', param_groups(ours, decay), lr=0.2).step()
    for p, partner in pairs.items():
        expected = lars_update(partner, 0.2, decay)
        torch.testing.assert_close((p - before[p]).detach(), expected, rtol=1e-7, atol=1e-15)


def test_loss_by_hand():
    """Squared distance of unit vectors, both directions, not halved (helpers.py: regression_loss); 0 for
    equal, 4 for orthogonal, 8 for opposite."""
    p1, p2, y1, y2 = torch.randn(4, 6, 16, dtype=torch.float64, generator=seeded(0))

    def unit(v):
        return v / v.norm(dim=1, keepdim=True)

    by_hand = ((unit(p1) - unit(y2)).square().sum(1) + (unit(p2) - unit(y1)).square().sum(1)).mean()
    criterion = NegativeCosineSimilarity()
    for other in (by_hand, 4 + 2 * (criterion(p1, y2) + criterion(p2, y1))):
        torch.testing.assert_close(
            regression_loss(p1, y2) + regression_loss(p2, y1), other, atol=1e-12, rtol=0
        )
    e = torch.eye(4)
    for p, value in ((e, 0.0), (e.roll(1, 0), 2.0), (-e, 4.0)):
        assert regression_loss(p, e).item() == pytest.approx(value, abs=1e-6)


def test_loss_at_initialisation():
    """Directions that know nothing of each other cost 4; without predictor two equal views cost 0, and so
    does a constant."""
    assert regression_loss(*torch.randn(2, 512, 512)).item() == pytest.approx(2, abs=0.02)
    none = small(predictor=False)
    x = two()
    assert none([x[0], x[0]])['loss'].item() == pytest.approx(0, abs=1e-5)
    assert regression_loss(torch.ones(4, 3), torch.ones(4, 3)).item() == pytest.approx(0, abs=1e-6)


def test_schedule_of_the_target():
    """tau(k) = 1 - (1 - tau)(cos(pi k / K) + 1) / 2 with k counted from 1, so that the last update has tau =
    1; lightly counts the same from 0 to K."""
    m = small(momentum=0.996)
    K = 50
    for k in range(K + 1):
        official = 1 - (1 - 0.996) * 0.5 * (1 + math.cos(math.pi * min(k, K) / K))
        assert m.momentum_at(k / K) == pytest.approx(official, abs=1e-12)
        assert m.momentum_at(k / K) == pytest.approx(cosine_schedule(k, K + 1, 0.996, 1.0), abs=1e-9)
    assert small(momentum=0.9, momentum_schedule='constant').momentum_at(0.7) == 0.9


def test_the_target_follows_after_the_step():
    """The order of the official update: gradient, optimizer, then the target towards the new weights.
    Buffers stay its own."""
    m = small(momentum=0.9, momentum_schedule='constant')
    x = two()
    old = {n: p.clone() for n, p in m.momentum_projector.named_parameters()}
    m(x)['loss'].backward()
    torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1).step()
    assert all(torch.equal(old[n], p) for n, p in m.momentum_projector.named_parameters()), (
        "the step does not move the target"
    )
    buffers = [b.clone() for b in m.momentum_projector.buffers()]
    m.after_step(0.5)
    new = dict(m.projector.named_parameters())
    for n, p in m.momentum_projector.named_parameters():
        torch.testing.assert_close(p, 0.9 * old[n] + 0.1 * new[n])
    assert equal(buffers, m.momentum_projector.buffers())
    assert m.momentum_projector[1].num_batches_tracked == 2, "its own statistics, from its own two passes"


@pytest.mark.parametrize('momentum, moved', [(0.0, True), (1.0, False)])
def test_limits_of_the_momentum(momentum, moved):
    m = small(momentum=momentum, momentum_schedule='constant')
    x = two()
    start = [p.clone() for p in m.momentum_encoder.parameters()]
    m(x)['loss'].backward()
    torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1).step()
    m.after_step(0.3)
    for target, online_part, old in zip(m.momentum_encoder.parameters(), m.encoder.parameters(), start):
        assert torch.equal(target, online_part if moved else old)


def test_no_gradient_into_the_target():
    m = small()
    x = two()
    m(x)['loss'].backward()
    target = [*m.momentum_encoder.parameters(), *m.momentum_projector.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in target)
    assert not m.momentum_embed(x[0]).requires_grad
    learned = {p for g in param_groups(m) for p in g['params']}
    assert not learned & set(target)
    assert {*m.predictor.parameters()} <= learned
    with torch.no_grad():
        # the whole gradient is the one with the targets as numbers
        y1 = m.momentum_embed(x[0])
        y2 = m.momentum_embed(x[1])
    by_numbers = regression_loss(m.predictor(m.embed(x[0])), y2) + regression_loss(
        m.predictor(m.embed(x[1])), y1
    )
    online = [p for p in m.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(m(x)['loss'], online), torch.autograd.grad(by_numbers, online)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_without_stop_gradient_both_sides_learn():
    m = small(stop_gradient=False)
    x = two()
    z1, z2 = m.embed(x[0]), m.embed(x[1])
    loss = regression_loss(m.predictor(z1), z2) + regression_loss(m.predictor(z2), z1)
    online = [p for p in m.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(m(x)['loss'], online), torch.autograd.grad(loss, online)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_start_of_the_target():
    "A copy, or drawn anew from the same distribution; what is fixed by design stays."
    m = small()
    assert equal(m.encoder.parameters(), m.momentum_encoder.parameters())
    r = small(target='random', enc=dict(positions='sincos'))
    for online_part, target in ((r.encoder, r.momentum_encoder), (r.projector, r.momentum_projector)):
        for (name, a), b in zip(online_part.named_parameters(), target.parameters()):
            assert not b.requires_grad
            if not a.requires_grad:
                assert torch.equal(a, b), f"{name} is a fixed table"
            elif a.ndim > 1:
                assert not torch.equal(a, b), name
                assert b.std().item() == pytest.approx(a.std().item(), rel=0.5), name
    again = small(target='random', enc=dict(positions='sincos'))
    assert all(
        torch.equal(a, b)
        for a, b in zip(r.momentum_encoder.parameters(), again.momentum_encoder.parameters())
    ), "from the seed"
    assert r(two())['loss'].isfinite()


def test_heads():
    """A bias in front of the normalisation, none at the end; no BatchNorm where norm is None; no predictor
    where it is switched off."""

    def names(head):
        return [n for n, _ in head.named_parameters()]

    m = small()
    assert (
        names(m.projector) == names(m.predictor) == ['0.weight', '0.bias', '1.weight', '1.bias', '3.weight']
    )
    assert names(small(norm=None).projector) == ['0.weight', '0.bias', '2.weight']
    assert isinstance(small(predictor=False).predictor, nn.Identity)


def test_views_and_resnet_by_the_same_class():
    m = BYOL(encoder('resnet_nano', img_size=24), hidden=32, dim=16)
    assert [p.blur for p in m.views.policies] == [1.0, 0.1]
    assert [p.solarize for p in m.views.policies] == [0.0, 0.2]
    assert m.views.size == (24, 24)
    m(m.views(torch.randint(0, 256, (6, 3, 30, 30), dtype=torch.uint8)))['loss'].backward()
    m.after_step(0.5)
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad)
    grey = BYOL(vit_nano(**SMALL, in_chans=1), hidden=32, dim=16)
    assert grey(grey.views(torch.randint(0, 256, (4, 1, 24, 24), dtype=torch.uint8)))['loss'].isfinite()


def test_recipe():
    from vit_ssl_lab.training.build import recipe

    r = recipe('byol', 'paper')
    assert not differing(
        r, encoder='resnet50', batch_size=4096, epochs=1000, optimizer='lars', weight_decay=1.5e-6, warmup=10
    )
    assert r.lr == pytest.approx(3.2)
    assert r.method_options['momentum'] == 0.996
    assert r.sync_bn is True


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: small(momentum=1.1), '1.1 is not'),
        (lambda: small(momentum=-0.1), '-0.1 is not'),
        (lambda: small(momentum_schedule='cosin'), "Did you mean 'cosine'"),
        (lambda: small(target='radnom'), "Did you mean 'random'"),
        (lambda: small()(two(1)), 'batch of one picture'),
        (lambda: small()(two()[0]), r'\[x1, x2\]'),
        (lambda: small()([*two(), two()[0]]), 'got 3'),
        (lambda: small()([two(8)[0], two(4)[1]]), 'same pictures'),
        (lambda: BYOL(nn.Identity()), 'needs an encoder with width'),
        (lambda: small(norm='bacth'), "Did you mean 'batch'"),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)
