"""The momentum projector: four places of the momentum copy against plain torch, lightly's loss where it is
SimCLR-like, identities, bad input."""

import math
from helpers import normal, seeded
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vit_ssl_lab.encoders.resnet import resnet_nano
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.methods.momentum_projector import PLACES, MomentumProjector

B, TAU = 6, 0.2


def make(where='projector', dtype=torch.float64, **kw):
    torch.manual_seed(0)
    return MomentumProjector(
        ViT(16, 8, 3, embed_dim=24, depth=2, num_heads=2), where, hidden=16, dim=8, **kw
    ).to(dtype)


def two(seed=1, dtype=torch.float64):
    return list(normal(2, B, 3, 16, 16, seed=seed, dtype=dtype))


def reference(m, x1, x2):
    "The loss in plain torch, the keys computed beforehand."
    with torch.no_grad():
        f = m.momentum_encoder or m.encoder
        g = m.projector if m.momentum_projector is None else m.momentum_projector
        k1, k2 = (F.normalize(g(f(x).pooled), dim=1) for x in (x1, x2))
    q1, q2 = (F.normalize(m.projector(m.encoder(x).pooled), dim=1) for x in (x1, x2))
    return (
        F.cross_entropy(q1 @ k2.T / TAU, torch.arange(B)) + F.cross_entropy(q2 @ k1.T / TAU, torch.arange(B))
    ) / 2


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize(
    'dtype, close',
    [(torch.float64, dict(rtol=1e-9, atol=1e-10)), (torch.float32, dict(rtol=1e-4, atol=1e-5))],
)
def test_loss_gradient_and_steps_equal_plain_torch(where, dtype, close):
    runs = []
    for form in (lambda m, x: m(x)['loss'], lambda m, x: reference(m, *x)):
        m = make(where, dtype, momentum=0.9, momentum_schedule='constant')
        sgd = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1)
        log = []
        for step in range(2):
            loss = form(m, two(step, dtype))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            m.after_step(0.5)
            log += [loss.detach(), {n: p.detach().clone() for n, p in m.named_parameters()}]
        runs.append(log)
    torch.testing.assert_close(runs[0], runs[1], **close)


def test_keys_with_gradient_are_a_symmetric_cross_entropy():
    m = make('none', stop_gradient=False)
    z1, z2 = (F.normalize(m.embed(x), dim=1) for x in two())
    clip = (
        F.cross_entropy(z1 @ z2.T / TAU, torch.arange(B)) + F.cross_entropy(z2 @ z1.T / TAU, torch.arange(B))
    ) / 2
    torch.testing.assert_close(m(two())['loss'], clip, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    'where, passes', [('projector', (2, 0)), ('encoder', (2, 2)), ('both', (2, 2)), ('none', (2, 0))]
)
def test_how_often_the_backbone_runs(where, passes):
    m = make(where)
    count = [0, 0]
    for i, part in enumerate((m.encoder, m.momentum_encoder)):
        if part is not None:
            part.register_forward_hook(lambda *_, i=i: count.__setitem__(i, count[i] + 1))
    m(two())
    assert tuple(count) == passes


def test_identities():
    zero = make('projector', momentum=0.0, momentum_schedule='constant')
    control = make('none')
    # With momentum 0 the momentum projector is the projector of the step before the update: the first losses
    # agree, and the copies follow at once.
    for step in range(2):
        assert zero(two(step))['loss'].item() == pytest.approx(control(two(step))['loss'].item(), abs=1e-12)
        for m in (zero, control):
            with torch.no_grad():
                for p in m.parameters():
                    p.add_(0.01 * p.requires_grad)
            m.after_step(0.5)
    still = make('both', momentum=1.0, momentum_schedule='constant')
    start = {n: p.clone() for n, p in still.named_parameters() if n.startswith('momentum')}
    with torch.no_grad():
        for p in still.parameters():
            p.add_(1.0 * p.requires_grad)
    still.after_step(0.5)
    assert all(torch.equal(p, start[n]) for n, p in still.named_parameters() if n in start)


@pytest.mark.parametrize('where', ('projector', 'both'))
def test_nothing_slow_is_trained(where):
    m = make(where)
    m(two())['loss'].backward()
    assert all((p.grad is None) == n.startswith('momentum') for n, p in m.named_parameters())


def test_chance_and_a_resnet():
    m = make()
    nn.init.zeros_(m.projector[-1].weight)
    nn.init.zeros_(m.projector[-1].bias)
    assert m(two())['loss'].item() == pytest.approx(math.log(B), abs=1e-6)
    r = MomentumProjector(resnet_nano(img_size=32), hidden=16, dim=8)
    r(list(torch.randn(2, B, 3, 32, 32)))['loss'].backward()
    assert all(p.grad is not None for p in r.encoder.parameters() if p.requires_grad)


def norms_of_gradients(part):
    "A list that gets the norm of the gradient at a part's output, once for each forward pass that learns."
    norms = []

    def on_forward(_, given, out):
        if out.requires_grad:
            out.register_hook(lambda grad: norms.append(grad.norm().item()))

    part.register_forward_hook(on_forward)
    return norms


def test_the_gradient_of_each_stage_can_be_watched():
    """What the study of fluctuation reads: one gradient a view at each stage of a ResNet and at the
    projector, none from the momentum parts."""
    for where in PLACES:
        torch.manual_seed(0)
        m = MomentumProjector(
            resnet_nano(img_size=32, stem='imagenet', zero_init_last=False), where, hidden=16, dim=8
        )
        stages = [getattr(m.encoder, f'layer{k}') for k in range(1, 5)]
        norms = [norms_of_gradients(part) for part in (*stages, m.projector)]
        m(list(torch.randn(2, B, 3, 32, 32, generator=seeded(2))))['loss'].backward()
        assert all(len(row) == 2 and min(row) > 0 for row in norms)


@pytest.mark.parametrize(
    'case, match',
    [
        (lambda: make('head'), "no place for momentum 'head'"),
        (lambda: make('both', stop_gradient=False), "use where='none'"),
        (lambda: make(temperature=-1.0), 'must be above 0'),
        (lambda: make(momentum=1.01), '0 to 1; 1.01 is not'),
        (lambda: make()(two()[:1]), 'compares two views'),
        (lambda: make()([v[:1] for v in two()]), 'batch of one'),
    ],
)
def test_bad_input(case, match):
    with pytest.raises(ValueError, match=match):
        case()
