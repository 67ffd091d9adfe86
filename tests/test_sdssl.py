"""SDSSL: its three sums against stacked rows in float64, the methods it stands on against lightly, who learns
from what, bad input."""

import math
from helpers import gradients, normal
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.evaluation import Classifier
from vit_ssl_lab.methods.sdssl import SDSSL, block_outputs, exit_after

DEPTH, B, TAU = 3, 6, 0.2


def make(base='mocov3', depth=DEPTH, dtype=torch.float32, **kw):
    torch.manual_seed(0)
    return SDSSL(
        ViT(16, 8, 3, embed_dim=24, depth=depth, num_heads=2, positions='sincos'),
        base,
        hidden=16,
        dim=8,
        **kw,
    ).to(dtype)


def two(seed=1, dtype=torch.float32):
    return list(normal(2, B, 3, 16, 16, seed=seed, dtype=dtype))


def stacked(rows, keys):  # (L B, d), (B, d)
    "The official form: rows of all layers under each other, one cross-entropy, times 2 tau."
    logits = F.normalize(rows, dim=1) @ F.normalize(keys, dim=1).T / TAU
    return 2 * TAU * F.cross_entropy(logits, torch.arange(B).repeat(len(rows) // B))


def official(m, x1, x2):
    """training_step of pl_train_moco.py and pl_train_byol.py in words: student and teacher outputs, detached
    predictors, split, three terms."""
    with torch.no_grad():
        t1, t2 = (m.momentum_projector(m.momentum_encoder(x).pooled) for x in (x1, x2))
    heads = [*m.early_projectors, m.projector]
    s1, s2 = (torch.cat([h(o) for h, o in zip(heads, block_outputs(m.encoder, x))]) for x in (x1, x2))

    def predict(s):
        return torch.cat([h(v) for h, v in zip(m.predictors, s.chunk(DEPTH))])

    if m.base == 'byol':

        def loss(rows, keys):
            return (2 - 2 * F.cosine_similarity(rows, keys.repeat(len(rows) // B, 1))).mean()
    else:
        loss = stacked
    det = loss(predict(s1.detach()), t2) + loss(predict(s2.detach()), t1)
    p1, p2 = predict(s1), predict(s2)
    mid = loss(p1[:-B], t2) + loss(p2[:-B], t1)
    out = loss(p1[-B:], t2) + loss(p2[-B:], t1)
    return out + m.strength * mid + DEPTH * det


@pytest.mark.parametrize('base', ['mocov3', 'byol'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_loss_gradient_and_a_step_equal_the_stacked_form(base, dtype):
    close = dict(rtol=1e-9, atol=1e-10) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-5)
    results = []
    for form in (lambda m, x: m(x)['loss'], lambda m, x: official(m, *x)):
        m = make(base, dtype=dtype)
        m.strength.fill_(0.7)
        sgd = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1)
        loss = form(m, two(dtype=dtype))
        loss.backward()
        results.append((loss.detach(), gradients(m)))
        sgd.step()
        results[-1] += ({n: p.detach() for n, p in m.named_parameters()},)
    torch.testing.assert_close(results[0], results[1], **close)


def test_what_it_stands_on_equals_lightlys_losses():
    x = two()
    simclr = make('simclr', ratio=0)
    z = simclr.embed(torch.cat(x))
    torch.testing.assert_close(simclr(x)['loss'], NTXentLoss(TAU)(*z.chunk(2)), rtol=1e-5, atol=1e-5)
    byol = make('byol', ratio=0)
    p = [byol.predictors[0](byol.embed(v)) for v in x]
    cosine = NegativeCosineSimilarity()
    torch.testing.assert_close(
        byol(x)['loss'],
        4 + 2 * (cosine(p[0], byol.momentum_embed(x[1])) + cosine(p[1], byol.momentum_embed(x[0]))),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_simclr_variant_looks_among_the_last_blocks_outputs():
    m = make('simclr', dtype=torch.float64)
    m.strength.fill_(1.0)
    x = torch.cat(two(dtype=torch.float64))
    z = [F.normalize(v, dim=1) for v in m.layers(x)]

    def ask(rows, keys):
        logits = (rows @ keys.T / TAU).masked_fill(torch.eye(2 * B, dtype=torch.bool), -torch.inf)
        return F.cross_entropy(logits, (torch.arange(2 * B) + B) % (2 * B))

    by_hand = ask(z[-1], z[-1]) + sum(ask(v, z[-1].detach()) for v in z[:-1]) / (DEPTH - 1)
    torch.testing.assert_close(m(two(dtype=torch.float64))['loss'], by_hand, rtol=1e-9, atol=1e-10)
    assert m.momentum_encoder is None
    assert len(m.predictors) == 0
    m.after_step(1.0)  # nothing slow to move


def touched(m, part):
    m.zero_grad()
    m.strength.fill_(1.0)
    m.total = lambda parts, z: dict(loss=parts[part])
    m(two())['loss'].backward()
    return {n for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize('base', ['mocov3', 'byol'])
def test_who_learns_from_what(base):
    assert {n.split('.')[0] for n in touched(make(base), 'det')} == {'predictors'}
    mid = touched(make(base), 'mid')
    last = DEPTH - 1
    fixed = (f'encoder.blocks.{last}', 'projector.', f'predictors.{last}', 'momentum', 'encoder.patch_embed')
    assert not [name for name in mid if name.startswith(fixed)]
    assert any(n.startswith('encoder.norm') for n in mid)
    assert any(n.startswith('encoder.blocks.0') for n in mid)


def test_strength_fades_in_and_is_kept_in_checkpoints():
    m = make(ramp=0.5)
    assert [m.strength_at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert make('byol').ratio == 0.8
    m.after_step(0.25)
    assert m.strength.item() == pytest.approx(0.5)
    assert m.state_dict()['strength'] == m.strength
    assert make(ramp=1.0).strength_at(0.5) == pytest.approx(0.5 * (1 - math.cos(math.pi * 0.5)))


def test_leaving_early_and_a_frozen_patch_projection():
    m = make().eval()
    x = two()[0]
    for i, o in enumerate(block_outputs(m.encoder, x)):
        torch.testing.assert_close(o, exit_after(m.encoder, i + 1)(x).pooled, rtol=0, atol=1e-6)
    assert len(m.encoder.blocks) == DEPTH
    assert not any(p.requires_grad for p in m.encoder.patch_embed.parameters())
    assert all(
        p.requires_grad
        for p in SDSSL(m.encoder, hidden=16, dim=8, freeze_patches=False).encoder.patch_embed.parameters()
    ), "frozen before, learns now"
    assert [n for n, p in Classifier(make().encoder, 3).named_parameters() if not p.requires_grad] == [
        'encoder.pos_embed'
    ], "fine-tuning trains the patch projection"


@pytest.mark.parametrize('base', ['mocov3', 'byol', 'simclr'])
def test_a_convolutional_stem_and_a_mean_of_patches(base):
    """The laptop recipe's encoder: every block's output, the last one the encoder's own, and gradient in the
    stem."""
    torch.manual_seed(0)
    m = SDSSL(
        ViT(
            16,
            8,
            3,
            embed_dim=24,
            depth=DEPTH,
            num_heads=2,
            positions='sincos',
            stem='conv',
            global_pool='avg',
        ),
        base,
        hidden=16,
        dim=8,
        freeze_patches=False,
    ).eval()
    torch.testing.assert_close(
        block_outputs(m.encoder, two()[0])[-1], m.encoder(two()[0]).pooled, rtol=0, atol=1e-6
    )
    m.train()(two())['loss'].backward()
    assert all(p.grad is not None for p in m.encoder.patch_embed.parameters())


def test_chance_at_the_start():
    m = make()
    for h in m.predictors:
        torch.nn.init.zeros_(h[0].weight)
        h[-1].eval()
    out = m(two())
    chance = 4 * TAU * math.log(B)
    assert (out['out'].item(), out['mid'].item(), out['det'].item()) == pytest.approx(
        (chance, chance, DEPTH * chance), rel=1e-4
    )


@pytest.mark.parametrize(
    'case, match',
    [
        (lambda: make(depth=1), 'two blocks or more'),
        (lambda: SDSSL(torch.nn.Linear(2, 2)), 'Linear has 0'),
        (lambda: make('moco'), "Did you mean 'mocov3'"),
        (lambda: make(temperature=0.0), 'must be above 0'),
        (lambda: make(ramp=2.0), 'fades in'),
        (lambda: make(momentum=1.1), '0 to 1; 1.1 is not'),
        (lambda: make()(two()[0]), 'compares two views'),
        (lambda: make()([v[:1] for v in two()]), 'batch of one'),
        (lambda: exit_after(make().encoder, 0), 'leave after 1 to 3'),
    ],
)
def test_bad_input(case, match):
    with pytest.raises(ValueError, match=match):
        case()
