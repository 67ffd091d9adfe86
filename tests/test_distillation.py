"""Self-distillation: head, losses and centre against lightly and against what the official classes gave; DINO
and EsViT; parts of a batch equal the whole; bad input."""

import copy, json, math
from pathlib import Path
from helpers import gradients, seeded, sine, weights
import pytest, torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from torch import nn
from test_processes import check_run
from vit_ssl_lab.components.distillation import (
    Center,
    DINOHead,
    entropy,
    mean_prediction_entropy,
    match_regions,
    other_views,
    region_pairs,
    view_pairs,
)
from vit_ssl_lab.core import transfer_encoder
from vit_ssl_lab.data.views import views
from vit_ssl_lab.encoders.swin import swin_nano
from vit_ssl_lab.encoders.resnet import resnet_nano
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.methods.dino import DINO
from vit_ssl_lab.methods.esvit import EsViT
from vit_ssl_lab.training import recipe

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'esvit_official.json').read_text())
S = GOLDEN['shapes']
B = S['B']
K = S['K']
D = S['D']
CROPS = S['crops']
N = S['regions']
n = S['local_regions']
OPTIONS = dict(dim=32, hidden=16, bottleneck=8)


def numbers(values, *shape):
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


exact = dict(rtol=1e-10, atol=1e-12)

# -- against the official classes


def test_dino_loss_is_the_official_one():
    center = Center(K).double()
    for row in GOLDEN['dino']:
        e = row['epoch']
        s = sine(CROPS, B, K, f=1.1 + e).requires_grad_()
        t = sine(2, B, K, f=1.7 + e)
        loss = other_views(view_pairs(s, center(t, row['temperature'])))
        loss.backward()
        center.stage(t)
        center.update()
        torch.testing.assert_close(
            (loss.detach(), s.grad.flatten(), center.center),
            (torch.tensor(row['loss']).double(), numbers(row['grad'], -1), numbers(row['center'], K)),
            rtol=1e-6,
            atol=1e-7,
        )
        assert loss.item() == pytest.approx(row['loss'], rel=1e-10)


def region_rows(width, f):
    "Regions of two large and two small crops, (2, B, N or n, width), as the official code orders them."
    large, small = sine(B * (2 * N + 2 * n), width, f=f).split([2 * B * N, 2 * B * n])
    return [large.reshape(2, B, N, width), small.reshape(2, B, n, width)]


def test_esvit_loss_is_the_official_one():
    centers = Center(K).double(), Center(K).double()
    for row in GOLDEN['esvit']:
        e = row['epoch']
        teacher_temperature = row['temperature']

        s = sine(CROPS, B, K, f=1.1 + e).requires_grad_()
        t = sine(2, B, K, f=1.7 + e)
        sr = [x.requires_grad_() for x in region_rows(K, 2.3 + e)]
        tr = sine(2, B, N, K, f=0.9 + e)
        sf = region_rows(D, 3.1 + e)
        tf = sine(2, B, N, D, f=2.9 + e)
        p = centers[1](tr, teacher_temperature)
        region = other_views(torch.cat([region_pairs(x, p, match_regions(f, tf)) for x, f in zip(sr, sf)], 1))
        loss = 0.5 * other_views(view_pairs(s, centers[0](t, teacher_temperature))) + 0.5 * region
        loss.backward()
        for c, logits in zip(centers, (t, tr)):
            c.stage(logits)
            c.update()
        assert loss.item() == pytest.approx(row['loss'], rel=1e-10)
        torch.testing.assert_close(s.grad.flatten(), numbers(row['grad'], -1), **exact)
        torch.testing.assert_close(
            torch.cat([x.grad.flatten() for x in sr]), numbers(row['grad_region'], -1), **exact
        )
        torch.testing.assert_close(
            [c.center for c in centers],
            [numbers(row[k], K) for k in ('center', 'center_region')],
            rtol=1e-6,
            atol=1e-8,
        )


def test_head_is_the_official_one_and_loads_its_checkpoints():
    head = DINOHead(D, 6, 4, K, norm_last=False).double()
    g = GOLDEN['head']
    old = {k: sine(*g['shapes'][k], f=1.3 + 0.37 * i) for i, k in enumerate(g['keys'])}
    head.load_state_dict(old)
    x = sine(4, D, f=2.1).requires_grad_()
    y = head(x)
    (y * sine(4, K, f=0.7)).sum().backward()
    torch.testing.assert_close(
        (y.flatten(), x.grad.flatten()), (numbers(g['output'], -1), numbers(g['grad'], -1)), **exact
    )
    rows = sine(2, 3, D, f=1.0)
    torch.testing.assert_close(head(rows).flatten(0, 1), head(rows.flatten(0, 1)), **exact)


def test_head_at_the_start():
    torch.manual_seed(0)
    head = DINOHead(64, 128, 32, 256)
    assert head.last_layer.weight.norm(dim=1).allclose(torch.ones(256), atol=1e-5)
    assert head(torch.randn(50, 64)).abs().max() <= 1
    assert 0.015 < head.mlp[0].weight.std() < 0.021
    assert all(m.bias.abs().sum() == 0 for m in head.mlp if isinstance(m, nn.Linear))
    assert [p.requires_grad for p in head.last_layer.parameters()].count(False) == 1
    assert all(p.requires_grad for p in DINOHead(8, 8, 4, 16, norm_last=False).parameters())
    second = copy.deepcopy(head)
    torch.testing.assert_close(second(torch.ones(1, 64)), head(torch.ones(1, 64)))
    assert any(isinstance(m, nn.BatchNorm1d) for m in DINOHead(8, 8, 4, 16, norm='batch').mlp)


# -- against lightly


@pytest.mark.parametrize('teacher_temperature', [0.04, 0.07, 0.2])
def test_view_loss_equals_lightlys(teacher_temperature):
    g = seeded(0)
    theirs = DINOLoss(16, teacher_temp=teacher_temperature)
    center = Center(16)
    for _ in range(3):
        s = torch.randn(5, 6, 16, generator=g).requires_grad_()
        t = torch.randn(2, 6, 16, generator=g)
        a = s.detach().clone().requires_grad_()
        ref = theirs(list(t), list(a))
        ref.backward()
        loss = other_views(view_pairs(s, center(t, teacher_temperature)))
        loss.backward()
        center.stage(t)
        center.update()
        torch.testing.assert_close(
            (loss.detach(), s.grad, center.center),
            (ref.detach(), a.grad, theirs.center.flatten()),
            rtol=1e-5,
            atol=1e-6,
        )


# -- what is true of the parts


def test_chance_is_ln_k():
    p = (torch.randn(2, 4, 9, 50) / 0.04).softmax(-1)
    assert other_views(view_pairs(torch.zeros(4, 4, 50), p[:, :, 0])).item() == pytest.approx(
        math.log(50), abs=1e-5
    )
    assert other_views(
        region_pairs(torch.zeros(3, 4, 5, 50), p, torch.zeros(2, 3, 4, 5, dtype=torch.int64))
    ).item() == pytest.approx(math.log(50), abs=1e-5)
    torch.manual_seed(0)  # a real network at its start: near ln K, not exactly (cosines are not all zero)
    for m in (
        DINO(swin_nano(), dim=1024, hidden=64, bottleneck=32),
        EsViT(swin_nano(), dim=1024, hidden=64, bottleneck=32),
    ):
        out = m([torch.randn(16, 3, s, s) for s in (32, 32, 12)])
        assert out['loss'].item() == pytest.approx(math.log(1024), abs=1.0)


def test_entropies():
    one = torch.eye(8)[:4] * 0 + torch.eye(8)[3]
    flat = torch.full((4, 8), 1 / 8)
    assert entropy(one).sum() == 0
    assert mean_prediction_entropy(one) == 0
    assert mean_prediction_entropy(torch.eye(8)).item() == pytest.approx(math.log(8))
    assert entropy(flat).mean().item() == pytest.approx(math.log(8))


def test_match_is_the_argmax_of_cosines_within_a_picture():
    a, b = torch.randn(3, 2, 4, 8), torch.randn(2, 2, 9, 8)
    match = match_regions(a, 5 * b)
    for g in range(2):
        for v in range(3):
            for i in range(2):
                assert (
                    match[g, v, i].tolist()
                    == F.cosine_similarity(a[v, i][:, None], b[g, i][None], dim=-1).argmax(1).tolist()
                )
    assert not match_regions(a.requires_grad_(), b).requires_grad


def test_half_precision_is_felt_by_no_loss():
    s = torch.randn(3, 4, 9, 32)
    p = (torch.randn(2, 4, 9, 32) / 0.04).softmax(-1)
    f = torch.randn(3, 4, 9, 16)

    def whole():
        return (
            view_pairs(s[:, :, 0], p[:, :, 0]),
            region_pairs(s, p, match_regions(f, f[:2])),
            Center(32)(s, 0.04),
        )

    with torch.autocast('cpu', torch.bfloat16):
        half = whole()
    torch.testing.assert_close(half, whole(), rtol=0, atol=1e-6)
    assert Center(8)(torch.randn(2, 8).bfloat16(), 0.1).dtype == torch.float32


# -- the methods


def vit(**kw):
    return ViT(16, 4, 3, embed_dim=24, depth=2, num_heads=2, dynamic_img_size=True, **kw)


def swin():
    return swin_nano(16, embed_dim=8, num_heads=(1, 1, 2))


def crops(b=6, sizes=(16, 16, 8, 8, 8), seed=0):
    g = seeded(seed)
    return [torch.randn(b, 3, s, s, generator=g) for s in sizes]


def make(cls, encoder=vit, **kw):
    torch.manual_seed(0)
    e = encoder()
    return cls(e, views=views('dino', 16, (0.5,) * 3, (0.5,) * 3, local=3, local_size=8), **{**OPTIONS, **kw})


def by_hand(m, x):
    "Both terms, pair by pair and region by region, in float64."
    teacher_temperature = float(m.heat)
    total = 0.0
    pairs = 0
    with torch.no_grad():
        T = [m.momentum_encoder(v) for v in x[:2]]
        t = [m.momentum_projector(f.pooled) for f in T]
    student = [m.encoder(v) for v in x]
    for g in range(2):
        for v, f in enumerate(student):
            if v == g:
                continue
            p = ((t[g] - m.center.center) / teacher_temperature).softmax(-1)
            view = -(p * (m.projector(f.pooled) / m.temperature).log_softmax(-1)).sum(-1).mean()
            region = torch.zeros((), dtype=torch.float64)
            if getattr(m, 'region', 0):
                with torch.no_grad():
                    centred = m.momentum_dense(T[g].patches) - m.region_center.center
                    pr = (centred / teacher_temperature).softmax(-1)
                log = (m.dense(f.patches) / m.temperature).log_softmax(-1)
                for b in range(len(log)):
                    for i in range(log.shape[1]):
                        j = F.cosine_similarity(
                            f.patches[b, i][None].detach(), T[g].patches[b], dim=-1
                        ).argmax()
                        region = region - (pr[b, j] * log[b, i]).sum() / (log.shape[0] * log.shape[1])
            w = getattr(m, 'region', 0)
            total = total + (1 - w) * view + w * region
            pairs = pairs + 1
    return total / pairs


@pytest.mark.parametrize(
    'cls, kw', [(DINO, {}), (EsViT, {}), (EsViT, dict(region=0.25))], ids=['dino', 'esvit', 'quarter']
)
@pytest.mark.parametrize('encoder', [vit, swin])
def test_loss_gradient_and_a_step_equal_the_loop(cls, kw, encoder):
    results = []
    for form in (lambda m, x: m(x)['loss'], by_hand):
        m = make(cls, encoder, **kw).double()
        m.center.center.normal_(generator=seeded(3))
        m.heat.fill_(0.05)
        if cls is EsViT:
            m.region_center.center.normal_(generator=seeded(4))
        sgd = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1)
        loss = form(m, [v.double() for v in crops()])
        loss.backward()
        grads = gradients(m)
        sgd.step()
        results.append((loss.detach(), grads, {k: p.detach() for k, p in m.named_parameters()}))
    # timm resamples positions in float32
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_esvit_without_regions_is_dino():
    a = make(DINO, norm_last=False)
    b = make(EsViT, lambda: vit(resample='dino'), region=0.0)  # EsViT's own way of resampling is another
    torch.testing.assert_close(a(crops())['loss'], b(crops())['loss'])
    assert b.dense is None
    b.after_step(0.5)


@pytest.mark.parametrize('cls', [DINO, EsViT])
def test_every_encoder_and_two_large_crops_alone(cls):
    """Swin, ViT with and without class token, ResNet; and no small crops, which the official region loss
    can't do."""
    for encoder in (
        swin,
        vit,
        lambda: vit(class_token=False, global_pool='avg', stem='conv', positions='sincos'),
        lambda: resnet_nano(16),
    ):
        m = make(cls, encoder)
        for x in (crops(), crops(sizes=(16, 16)), crops(sizes=(16, 16, 16))):
            m(x)['loss'].backward()
        assert all(
            p.grad is not None
            for k, p in m.named_parameters()
            if p.requires_grad and not k.startswith('encoder.head')
        )
        assert not any(p.requires_grad for k, p in m.named_parameters() if k.startswith('momentum'))


def test_who_learns_and_who_follows():
    m = make(EsViT, momentum=0.5, momentum_schedule='constant')
    start = weights(m)
    m(crops())['loss'].backward()
    with torch.no_grad():
        for p in m.parameters():
            if p.grad is not None:
                p.sub_(p.grad)
    m.after_step(0.05)
    for momentum_part, online_part in (
        ('momentum_encoder', 'encoder'),
        ('momentum_projector', 'projector'),
        ('momentum_dense', 'dense'),
    ):
        for k, p in getattr(m, momentum_part).named_parameters():
            torch.testing.assert_close(
                p,
                (start[f'{momentum_part}.{k}'] + dict(getattr(m, online_part).named_parameters())[k]) / 2,
                rtol=0,
                atol=1e-6,
            )
    assert m.center.center.abs().sum() > 0
    assert m.region_center.center.abs().sum() > 0
    assert m.heat.item() == pytest.approx(0.055)
    assert all(k in m.state_dict() for k in ('center.center', 'region_center.center', 'heat')), (
        "a resumed run goes on with them"
    )


@pytest.mark.parametrize('cls', [DINO, EsViT])
def test_the_teachers_encoder_is_what_transfers(cls):
    m = make(cls)
    assert transfer_encoder(m) is m.momentum_encoder
    assert transfer_encoder(m) is not m.encoder
    assert not any(k.startswith('transfer_encoder') for k in m.state_dict()), "it is no third copy"


def test_in_eval_mode_nothing_is_held():
    m = make(EsViT).eval()
    m(crops())
    assert not m.center.staged
    assert not m.region_center.staged


def test_teacher_throws_no_dice():
    m = make(DINO, lambda: swin_nano(16, embed_dim=8, num_heads=(1, 1, 2), drop_path_rate=0.5)).train()
    x = crops()[0]
    assert m.momentum_encoder(x).pooled.equal(m.momentum_encoder(x).pooled)
    assert not m.encoder(x).pooled.equal(m.encoder(x).pooled)


def test_the_last_layer_waits_and_tensors_are_clipped():
    m = make(EsViT, freeze_last=0.1, clip=1e-3)
    m(crops())['loss'].backward()
    before = gradients(m)
    m.before_step(0.05)
    for k, p in m.named_parameters():
        if 'last_layer' in k:
            assert p.grad is None
        elif p.grad is not None:
            assert p.grad.norm() <= 1.001e-3
            torch.testing.assert_close(
                p.grad, before[k] * min(1.0, 1e-3 / (before[k].norm().item() + 1e-6)), rtol=1e-5, atol=1e-9
            )
    m.zero_grad()
    m(crops())['loss'].backward()
    m.before_step(0.1)
    assert all(p.grad is not None for h in m.heads() for p in h.last_layer.parameters())


def test_centring_and_sharpening_can_be_switched_off():
    m = make(DINO, center_momentum=1.0)
    m(crops())
    m.after_step(0.1)
    assert m.center.center.abs().sum() == 0
    t = torch.randn(2, 6, 32).cumsum(0)
    assert entropy(m.center(t, 0.04)).mean() < entropy(m.center(t, 1.0)).mean()


@pytest.mark.parametrize('match', ['place', 'random'])
def test_other_ways_to_match(match):
    m = make(EsViT, match=match)
    found = m.partners(torch.randn(3, 2, 4, 8), torch.randn(2, 2, 16, 8))
    assert found.shape == (2, 3, 2, 4)
    assert 0 <= found.min()
    assert found.max() < 16
    if match == 'place':
        assert found[0, 0, 0].tolist() == [5, 7, 13, 15]  # the middle of each quarter, rounded down
    m(crops())['loss'].backward()


# -- many processes, whole runs


def mini(method, **changes):
    """A run in miniature on 1,438 digits of 8x8 pixels.
    SGD without momentum: the change of the weights is the gradient."""
    return recipe(
        method,
        'laptop',
        **{
            **dict(
                data='digits',
                img_size=8,
                patch_size=2,
                encoder='vit_nano',
                views_options=dict(local=2, local_size=4),
                encoder_options=dict(
                    embed_dim=24, depth=1, num_heads=2, dynamic_img_size=True, stem='patchify'
                ),
                method_options=dict(OPTIONS, freeze_last=0.4, clip=0.5),
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


@pytest.mark.parametrize('method', ['dino', 'esvit'])
def test_two_processes_train_as_one(two_processes, method):
    """Losses, gradients, teacher, centres and temperature after six steps; the batches are uneven, the last
    one of the epoch has three pictures."""
    check_run(two_processes, mini(method))


def test_a_process_without_an_image(three_processes):
    "1,438 = 4 * 359 + 2: the first of three processes has no picture in the last batch."
    check_run(three_processes, mini('esvit', batch_size=359, steps=5))


@pytest.mark.parametrize(
    'case, match',
    [
        (lambda: make(DINO)(crops()[0]), 'got one tensor'),
        (lambda: make(EsViT)(crops()[:1]), 'compares two crops of each picture or more'),
        (lambda: make(DINO)([crops()[0], crops()[2]]), 'the first two crops'),
        (lambda: make(DINO)([*crops()[:2], crops(5)[2]]), 'are of 6, 6, 5'),
        (lambda: make(DINO, temperature=0.0), 'temperature must be above 0, not 0.0: it divides logits'),
        (lambda: make(DINO, warmup_teacher_temperature=-1.0), 'must be above 0, not -1'),
        (lambda: make(EsViT, teacher_temperature=0.0), 'above 0'),
        (lambda: make(DINO, teacher_warmup=30), 'shares of the run'),
        (lambda: make(DINO, clip=-1.0), 'DINO has 3'),
        (lambda: make(DINO, center_momentum=2.0), '0 to 1; 2.0 is not'),
        (lambda: make(DINO, momentum=1.2), '0 to 1; 1.2 is not'),
        (lambda: make(DINO, dim=1), 'dim=2 or more'),
        (lambda: make(EsViT, region=1.5), '0 to 1, and 1.5 is not'),
        (lambda: make(EsViT, match='feature '), "Did you mean 'feature'"),
        (
            lambda: DINO(
                ViT(16, 4, embed_dim=24, depth=1, num_heads=2),
                views=views('dino', 16, (0.5,) * 3, (0.5,) * 3),
                **OPTIONS,
            ),
            'dynamic_img_size=True',
        ),
        (
            lambda: DINO(vit(), views=views('dino', 16, (0.5,) * 3, (0.5,) * 3, local_size=6), **OPTIONS),
            'crop of 6 x 6 pixels does not divide',
        ),
        (
            lambda: EsViT(swin(), views=views('dino', 16, (0.5,) * 3, (0.5,) * 3, local_size=7), **OPTIONS),
            'multiple of 2',
        ),
        (lambda: DINO(nn.Linear(2, 2), **OPTIONS), 'needs an encoder with width|has no attribute'),
    ],
)
def test_bad_input(case, match):
    with pytest.raises((ValueError, TypeError, AttributeError), match=match):
        case()
