"""MACRL has no official code: its reconstruction against MAE, its contrast against lightly's and against
MoCo's rules by hand, and who learns from what."""

import copy, math
from helpers import check_moves, seeded, weights
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from vit_ssl_lab.components.masking import random_masking
from vit_ssl_lab.data import load
from vit_ssl_lab.data.views import PRESETS
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.methods.macrl import MACRL
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.training import build, pretrain, recipe

B, N = 4, 36


def vit():
    torch.manual_seed(0)
    return ViT(24, 4, 3, positions='sincos', embed_dim=32, depth=2, num_heads=4)


def make(**kw):
    return MACRL(
        vit(),
        **{**dict(decoder_width=16, decoder_depth=1, decoder_heads=2, dim=8, hidden=16, queue=12), **kw},
    )


def two(seed=1):
    return list(torch.randn(2, B, 3, 24, 24, generator=seeded(seed)))


def keys(seed=2):
    return torch.rand(B, 2, N, generator=seeded(seed))


@pytest.mark.parametrize('norm_pix', [False, True])
def test_without_contrast_one_branch_in_l2_is_mae(norm_pix):
    ours = make(contrast_weight=0, branches=1, error='l2', norm_pix=norm_pix)
    mae = MAE(vit(), decoder_width=16, decoder_depth=1, decoder_heads=2, norm_pix=norm_pix)
    mae.load_state_dict(
        {k: v for k, v in ours.state_dict().items() if k.startswith(('encoder.', 'decoder.'))}
    )
    a = ours(two(), keys())['loss']
    b = mae(two()[0], keys()[:, 0])['loss']
    a.backward()
    b.backward()
    assert torch.equal(a, b)
    theirs = dict(mae.named_parameters())
    for name, p in ours.named_parameters():
        if p.requires_grad:
            assert torch.equal(p.grad, theirs[name].grad), name


def test_l1_on_both_branches_by_hand():
    """In float64: the mean of two means over hidden patches; the second from the momentum encoder's code; all
    patches with where='all'."""
    x = [v.double() for v in two()]
    noise = keys()
    for where in ('hidden', 'all'):
        m = make(contrast_weight=0, where=where).double()
        with torch.no_grad():
            for p in m.momentum_encoder.parameters():
                p.mul_(0.9)
        want = 0
        for encoder, v, n, ratio in (
            (m.encoder, x[0], noise[:, 0], 0.75),
            (m.momentum_encoder, x[1], noise[:, 1], 0.5),
        ):
            mask = random_masking(B, N, ratio, noise=n)
            f = encoder(v, mask.keep)
            patches = v.reshape(B, 3, 6, 4, 6, 4).permute(0, 2, 4, 3, 5, 1).reshape(B, N, 48)
            error = (m.decoder(f.patches, mask.keep, f.pooled) - patches).abs().mean(-1)
            want = (
                want
                + ((error * mask.mask).sum() / mask.mask.sum() if where == 'hidden' else error.mean()) / 2
            )
        torch.testing.assert_close(m(x, noise)['loss'], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('pool', ['patches', 'encoder'])
def test_contrast_equals_lightlys_with_a_memory_bank(pool):
    """Loss and gradients on the same bank over three steps of SGD; the momentum encoder follows;
    the bank fills in the same order."""
    ours = make(pixel_weight=0, pool=pool, norm='layer').double()
    before = weights(ours)
    peer = copy.deepcopy(ours)
    bank = NTXentLoss(temperature=0.2, memory_bank_size=(12, 8))
    bank.memory_bank.bank = ours.queue.keys.clone()
    sgd = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1) for m in (ours, peer)]
    for t in range(3):
        x = [view.double() for view in two(t)]
        noise = keys(t)
        progress = t / 3
        mask1, mask2 = (random_masking(B, N, r, noise=noise[:, i]) for i, r in enumerate((0.75, 0.5)))

        def read(encoder, v, mask):
            features = encoder(v, mask.keep)
            return features.patches.mean(1) if pool == 'patches' else features.pooled

        out = ours(x, noise)
        q = peer.projector(read(peer.encoder, x[0], mask1))
        with torch.no_grad():
            k = peer.momentum_projector(read(peer.momentum_encoder, x[1], mask2))
        loss = bank(q, k)
        torch.testing.assert_close(out['loss'], loss, atol=1e-5, rtol=1e-5)
        for optimizer, value in zip(sgd, (out['loss'], loss)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        ours.after_step(progress)
        m = 1 - 0.01 * (math.cos(math.pi * progress) + 1) / 2
        with torch.no_grad():
            for momentum_part, online_part in (
                (peer.momentum_encoder, peer.encoder),
                (peer.momentum_projector, peer.projector),
            ):
                for a, b in zip(momentum_part.parameters(), online_part.parameters()):
                    a.copy_(m * a + (1 - m) * b)
        torch.testing.assert_close(ours.queue.keys, bank.memory_bank.bank, atol=1e-5, rtol=1e-5)
    every = {n: before[n] for n, _ in ours.named_parameters()}
    check_moves(every, dict(ours.named_parameters()), dict(peer.named_parameters()), rtol=1e-6)


def test_both_losses_add_up_and_a_batch_serves_as_bank():
    both = make(norm='layer', queue=0, pixel_weight=3.0)
    con = make(norm='layer', queue=0, pixel_weight=0)
    pix = make(norm='layer', queue=0, contrast_weight=0)
    for other in (con, pix):
        other.load_state_dict(both.state_dict())
    a, b, c = (m(two(), keys()) for m in (both, con, pix))
    torch.testing.assert_close(a['loss'], b['loss'] + 3 * c['loss'])

    def embed(encoder, projector, branch, ratio):
        mask = random_masking(B, N, ratio, noise=keys()[:, branch])
        pooled = encoder(two()[branch], mask.keep).patches.mean(1)
        return F.normalize(projector(pooled), dim=1)

    q = embed(con.encoder, con.projector, 0, 0.75)
    k = embed(con.momentum_encoder, con.momentum_projector, 1, 0.5)
    torch.testing.assert_close(b['loss'], F.cross_entropy(q @ k.T / 0.2, torch.arange(B)))
    both.after_step(0.5)  # no bank to fill


def touched(m):
    m(two(), keys())['loss'].backward()
    return {n.split('.')[0] for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_who_learns_from_what():
    """The second branch's reconstruction teaches the decoder only; no momentum part gets a gradient; a branch
    that is off has nothing to learn."""
    m = make(contrast_weight=0)
    reconstruction_loss = m.reconstruction_loss

    def second_view_only(latent, x, mask):
        is_second = mask.ratio == 0.5
        return reconstruction_loss(latent, x, mask) if is_second else latent.patches.sum() * 0

    m.reconstruction_loss = second_view_only
    assert touched(m) == {'decoder'}
    assert touched(make()) == {'encoder', 'projector', 'decoder'}
    assert touched(make(pixel_weight=0)) == {'encoder', 'projector'}
    assert touched(make(contrast_weight=0)) == {'encoder', 'decoder'}
    for kw in (dict(pixel_weight=0), dict(contrast_weight=0), {}):
        m = make(**kw)
        m(two(), keys())['loss'].backward()
        assert all(p.grad is not None for p in m.parameters() if p.requires_grad), (
            "on many devices every trained weight must get a gradient"
        )


def test_views_are_not_alike():
    "Exchanged views give another loss; with equal ratios and a fresh copy the reconstruction doesn't change."
    x = two()
    noise = keys()
    swapped = x[::-1], noise.flip(1)
    m = make()
    assert abs(m(x, noise)['loss'] - m(*swapped)['loss']) > 1e-4
    even = make(second_ratio=0.75)
    torch.testing.assert_close(even(x, noise)['pixels'], even(*swapped)['pixels'])


def test_a_whole_second_view_and_a_third_one():
    whole = make(second_ratio=0.0)
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(
            whole.momentum_encoder,
            'forward',
            lambda x, keep=None, f=whole.momentum_encoder.forward: seen.append(keep.shape[1]) or f(x, keep),
        )
        out = whole(two(), keys())
    one = make(second_ratio=0.0, branches=1)
    one.load_state_dict(whole.state_dict())
    assert seen == [N], "where nothing is hidden there is nothing to fill in"
    assert torch.equal(out['pixels'], one(two(), keys())['pixels']), (
        "where nothing is hidden there is nothing to fill in"
    )
    m = make(branches=1)
    x = two()
    clean = torch.randn(B, 3, 24, 24)
    mask = random_masking(B, N, 0.75, noise=keys()[:, 0])
    target = clean.reshape(B, 3, 6, 4, 6, 4).permute(0, 2, 4, 3, 5, 1).reshape(B, N, 48)
    torch.testing.assert_close(
        m([*x, clean], keys())['pixels'],
        ((m.predict(x[0], mask) - target).abs().mean(-1) * mask.mask).sum().detach() / mask.mask.sum(),
    )


def test_the_start_and_the_bank():
    m = make(queue=512, norm=None)
    torch.nn.init.zeros_(m.projector[-1].weight)
    torch.nn.init.ones_(m.projector[-1].bias)
    m.momentum_projector.load_state_dict(m.projector.state_dict())
    m.queue.keys.copy_(F.normalize(torch.ones(512, 8), dim=1))
    out = m(two(), keys())
    assert out['contrast'].item() == pytest.approx(math.log(513), abs=1e-4)
    assert m.queue.filled == 0
    m.after_step(0.0)
    assert m.queue.filled == B
    m.eval()
    m(two(), keys())
    m.after_step(0.0)
    assert m.queue.filled == B, "nothing enters in eval mode"


def test_preset_and_training():
    strong, weak = PRESETS['macrl']
    assert strong.scale == (0.2, 1.0)
    assert any(strong.jitter)
    assert weak.scale == (0.6, 1.0)
    assert not any(weak.jitter)
    assert weak.grey == weak.blur == 0
    data = load('scenes', 'train').subset(64)
    results = []
    for accumulate in (1, 2):  # normalised by layer, a batch in parts is the whole batch: masks, views, bank
        small_recipe = recipe(
            'macrl',
            'laptop',
            steps=3,
            batch_size=16,
            log_every=1,
            accumulate=accumulate,
            encoder_options=dict(stem='patchify'),
            method_options=dict(queue=32, norm='layer'),
        )
        m = build(small_recipe, data)
        history = pretrain(m, data, small_recipe, quiet=True, device='cpu')
        results.append((history.rows[-1]['loss'], m.queue.keys.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
    torch.testing.assert_close(results[0][1], results[1][1], atol=2e-3, rtol=0)
    r = m.reconstruct(data.images[:2])
    assert r.mask.mean() == 0.75


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: make()(two()[0]), 'one tensor'),
        (lambda: make()(two()[:1]), 'got 1'),
        (lambda: make()(two(), keys()[:, 0]), r'noise \(4, 2, 36\), not \(4, 36\)'),
        (lambda: make()([v[:1] for v in two()]), 'batch of one'),
        (lambda: make(second_ratio=1.0), '0 <= ratio < 1'),
        (lambda: make(branches=3), '1 or 2, not 3'),
        (lambda: make(error='l3'), "Did you mean"),
        (lambda: make(where='hiden'), "Did you mean 'hidden'"),
        (lambda: make(pool='patch'), "Did you mean 'patches'"),
        (lambda: make(temperature=0.0), 'above 0'),
        (lambda: make(momentum=2.0), '0 to 1; 2.0 is not'),
        (lambda: make(contrast_weight=0, pixel_weight=0), 'not both 0'),
        (lambda: make(pixel_weight=-1), '0 or more'),
        (lambda: MACRL(torch.nn.Identity()), 'MACRL needs an encoder'),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)
