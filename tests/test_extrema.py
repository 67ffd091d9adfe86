"""ExtreMA against the official implementation's stored numbers, BYOL's formula in float64, timm's class
attention, naive loops, two processes, and limits."""

import json
from functools import partial
from pathlib import Path
import helpers
from helpers import differing, named_numbers, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.cait import ClassAttn, LayerScaleBlockClassAttn
from torch import nn
from small_pairs import two
from vit_ssl_lab.components.heads import extrema_head
from vit_ssl_lab.components.attention import ClassAttention, ClassAttentionBlock, ClassAttentionPool
from vit_ssl_lab.components.masking import disjoint_masking, random_masking
from vit_ssl_lab.components.processes import sync_batchnorm
from vit_ssl_lab.data.views import views
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.evaluation import Classifier, random_encoder_like
from vit_ssl_lab.methods.extrema import ExtreMA
from vit_ssl_lab.training.optim import param_groups
from vit_ssl_lab.training.build import build, recipe
from vit_ssl_lab.weights import load_encoder, save

B, N, V = 8, 9, 3
GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'extrema_official.json').read_text())


def small(seed=0, enc: dict | None = None, dtype=torch.float32, **kw) -> ExtreMA:
    torch.manual_seed(seed)
    vit = vit_nano(
        **{
            **dict(
                img_size=24,
                patch_size=8,
                embed_dim=48,
                depth=2,
                positions='sincos',
                global_pool='class_attention',
            ),
            **(enc or {}),
        }
    )
    return ExtreMA(vit, **{**dict(masks=V, mask_ratio=0.7, hidden=32, dim=16), **kw}).to(dtype)


def draw(seed=0, batch=B):
    return torch.rand(batch, N, generator=seeded(seed))


# --- the official implementation's numbers


def official_name(ours):
    name = (
        ours.replace('momentum_', '')
        .replace('encoder.attn_pool.cls_token', 'encoder.cls_token')
        .replace('encoder.attn_pool.blocks', 'encoder.blocks_token')
        .replace('encoder.fc_norm', 'encoder.norm')
    )
    return name.replace('encoder.', 'base_encoder.').replace('projector.', 'base_encoder.head.')


def golden_views(t):
    i = np.arange(GOLDEN['batch'] * 3 * 28 * 28)
    x1 = torch.tensor(np.sin(i * 0.11 + t) + np.cos(i * 0.013 - t)).reshape(-1, 3, 28, 28)
    return [x1, 0.8 * x1 + 0.2 * torch.tensor(np.sin(i * 0.17 + 1 + t)).reshape(-1, 3, 28, 28)], (
        torch.tensor(1000 * np.sin(np.arange(GOLDEN['batch'] * 196) + 1.0 + t)) % 1
    ).reshape(-1, 196)


def golden_model():
    m = ExtreMA(
        ViT(
            28, 2, 3, embed_dim=24, depth=2, num_heads=2, positions='sincos', global_pool='class_attention'
        ).double(),
        hidden=32,
        dim=8,
        momentum=0.9,
    ).double()
    for name, p in m.named_parameters():
        fan_in = 24 if name.endswith('cls_token') else p[0].numel()  # theirs is (1, 1, D)
        many = p.ndim > 1 or name.endswith('cls_token')
        if not name.endswith('pos_embed'):
            p.data = named_numbers(p.shape, official_name(name)) * ((6 / fan_in) ** 0.5 if many else 0.1) + (
                1.0 if p.ndim == 1 and name.endswith('weight') else 0.0
            )
    return m


def test_official_numbers():
    """Masks, student, targets, loss, every gradient, AdamW with its decay, and the moving teacher with its
    momentum, over three steps."""
    m = golden_model()

    close = partial(helpers.close, rtol=1e-7, atol=1e-9)

    def three(p):
        return (p.norm().item(), p.flatten()[0].item(), p.flatten()[-1].item())

    for i, row in zip((1, -1), GOLDEN['table']):
        # float32 there
        np.testing.assert_allclose(torch.cat(m.encoder.pos_embed[0, i].chunk(2))[:3], row, atol=1e-6)
    adamw = torch.optim.AdamW(param_groups(m, 0.1), lr=1e-3, betas=(0.9, 0.95))
    for t, want in enumerate(GOLDEN['steps']):
        x, noise = golden_views(t)
        masks = disjoint_masking(3, (14, 14), 0.8, 5, noise=noise)
        assert [k.keep[:, :3].tolist() for k in masks] == want['keep']
        assert [k.keep.shape[1] for k in masks] == want['sizes']
        student = m.encoder(x[0].repeat(5, 1, 1, 1), torch.cat([k.keep for k in masks])).pooled
        close(student[[0, 1, 14], :3], want['student'])
        close(m.momentum_encoder(x[1]).pooled[1, :3], want['teacher'])
        assert m.momentum_at(t / 4) == pytest.approx(want['momentum'], abs=1e-12)
        mine = {
            official_name(n).removeprefix('base_encoder.'): p
            for n, p in m.named_parameters()
            if n.startswith('momentum')
        }
        for name, figures in want['teacher_in_this_forward'].items():
            close(three(mine[name]), figures)
        loss = m(x, noise=noise)['loss']
        adamw.zero_grad()
        loss.backward()
        close(loss, want['loss'])
        if t == 0:
            grads = {official_name(n): p.grad for n, p in m.named_parameters() if p.grad is not None}
            assert grads.keys() == want['grads'].keys(), "the same parameters learn"
            for name, figures in want['grads'].items():
                close(three(grads[name]), figures)
        adamw.step()
        m.after_step((t + 1) / 4)
        learned = {official_name(n): p for n, p in m.named_parameters() if p.requires_grad}
        for name, figures in want['after'].items():
            close(three(learned[name]), figures)


def test_official_loss():
    q, k = named_numbers((5, 8), 'q'), named_numbers((5, 8), 'k')
    assert small().agreement_loss(q, k).item() == pytest.approx(GOLDEN['byol_loss'], abs=1e-11)
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.3  # contrastive_loss, on one process
    assert small(loss='info_nce', temperature=0.3).agreement_loss(q, k).item() == pytest.approx(
        (2 * 0.3 * F.cross_entropy(logits, torch.arange(5))).item(), abs=1e-11
    )


# --- limits and formulas


def test_ratio_0_is_byol():
    "One mask that hides nothing: equation 2 of BYOL, one direction, in float64, with its gradient."
    m = small(masks=1, mask_ratio=0.0, dtype=torch.float64)
    x1, x2 = [x.double() for x in two()]
    params = [p for p in m.parameters() if p.requires_grad]
    q = m.predictor(m.projector(m.encoder(x1).pooled))
    k = m.momentum_projector(m.momentum_encoder(x2).pooled)

    def unit(v):
        return v / v.norm(dim=1, keepdim=True)

    by_hand = (unit(q) - unit(k).detach()).square().sum(1).mean()
    ours = m([x1, x2], noise=draw())['loss']
    torch.testing.assert_close(ours, by_hand, atol=1e-12, rtol=0)
    for a, b in zip(torch.autograd.grad(ours, params), torch.autograd.grad(by_hand, params)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize('loss', ['byol', 'info_nce'])
def test_mean_over_the_masks_with_one_target(loss):
    m = small(loss=loss, temperature=0.2)
    x1, x2 = two()
    noise = draw()
    calls = []
    m.momentum_encoder.register_forward_hook(lambda mod, x, out: calls.append(len(x[0])))
    whole = m([x1, x2], noise=noise)['loss']
    assert calls == [B], "the target is made once"
    k = m.momentum_embed(x2)
    each = [
        m.agreement_loss(m.predictor(m.projector(m.encoder(x1, mask.keep).pooled)), k)
        for mask in disjoint_masking(B, (3, 3), 0.7, V, noise=noise)
    ]
    torch.testing.assert_close(whole, torch.stack(each).mean(), atol=1e-6, rtol=0)


def test_loss_of_what_knows_nothing():
    m = small()
    nn.init.zeros_(m.predictor[-1].weight)
    assert m(two())['loss'].item() == pytest.approx(2, abs=1e-5)
    assert 0 < small()(two())['loss'] < 4
    alike = small(predictor=False, masks=1, mask_ratio=0.0)
    x = two()[0]
    assert alike([x, x])['loss'].item() == pytest.approx(0, abs=1e-5)
    assert isinstance(alike.predictor, nn.Identity)


def test_nothing_of_the_target_learns_or_depends_on_chance():
    m = small(enc=dict(drop_path_rate=0.5, attn_drop_rate=0.3, proj_drop_rate=0.3))
    x = two()
    assert torch.equal(m.momentum_embed(x[1]), m.momentum_embed(x[1])), "in train mode"
    assert m.training, "in train mode"
    noise = draw()
    assert m(x, noise=noise)['loss'] != m(x, noise=noise)['loss'], "the student drops paths"
    m(x)['loss'].backward()
    assert all(
        p.grad is None and not p.requires_grad for n, p in m.named_parameters() if n.startswith('momentum')
    )
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad)


def test_what_decays():
    "Matrices and the patch projection; no norm, bias, scale, and neither class token nor positions."
    m = small()
    names = {p: n for n, p in m.named_parameters()}
    none = {names[p] for g in param_groups(m, 0.1) if not g['weight_decay'] for p in g['params']}
    assert {'encoder.attn_pool.cls_token', 'encoder.attn_pool.blocks.0.gamma_1'} <= none
    assert not any('qkv.weight' in n for n in none)
    assert not any(
        'momentum' in names[p] or 'pos_embed' in names[p] for g in param_groups(m, 0.1) for p in g['params']
    )


# --- masks


@pytest.mark.parametrize(
    'n, ratio, masks, k',
    [
        (196, 0.8, 5, 39),
        (196, 0.9, 8, 19),
        (196, 0.9, 10, 19),
        (49, 0.8, 5, 9),
        (49, 0.9, 12, 4),
        (36, 0.75, 4, 9),
        (36, 0.0, 1, 36),
    ],
)
def test_disjoint_masks(n, ratio, masks, k):
    noise = torch.rand(5, n)
    found = disjoint_masking(5, n, ratio, masks, noise=noise)
    assert [m.keep.shape for m in found] == [(5, k)] * masks
    assert (sum(1 - m.mask for m in found) <= 1).all()
    assert all(m.mask.gather(1, m.keep).eq(0).all() and m.mask.sum(1).eq(n - k).all() for m in found)
    assert torch.equal(torch.cat([m.keep for m in found], 1), noise.argsort(1)[:, : masks * k])
    assert torch.equal(found[0].keep, random_masking(5, n, ratio, noise=noise).keep)
    again = [disjoint_masking(5, n, ratio, masks, generator=seeded(3)) for _ in range(2)]
    assert all(torch.equal(a.keep, b.keep) for a, b in zip(*again))


# --- class attention


def test_equals_timms_class_attention():
    torch.manual_seed(0)
    x, cls = torch.randn(4, 7, 24), torch.randn(4, 1, 24)
    u = torch.cat([cls, x], 1)
    ours = ClassAttention(24, 3)
    theirs = ClassAttn(24, 3, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(u), theirs(u), atol=1e-6, rtol=0)
    block = ClassAttentionBlock(24, 3, scale=0.7)
    timms = LayerScaleBlockClassAttn(
        24, 3, qkv_bias=True, norm_layer=lambda width, **kw: nn.LayerNorm(width, eps=1e-6)
    )
    timms.load_state_dict(block.state_dict())
    a = block(x, cls)
    b = timms(x, cls)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    for (name, p), q in zip(
        sorted(block.named_parameters()), (q for _, q in sorted(timms.named_parameters()))
    ):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_patches_never_meet_the_class_token():
    m = small().encoder
    x = two()[0]
    (gradient,) = torch.autograd.grad(m(x).patches.square().sum(), [m.attn_pool.cls_token], allow_unused=True)
    assert gradient is None
    # the same network without class attention
    plain = ViT(
        24, 8, embed_dim=48, depth=2, num_heads=3, positions='sincos', class_token=False, global_pool='avg'
    )
    plain.load_state_dict({k: v for k, v in m.state_dict().items() if not k.startswith('attn_pool')})
    torch.testing.assert_close(plain(x).patches, m(x).patches, atol=0, rtol=0)
    keep = random_masking(B, (3, 3), 0.7).keep
    torch.testing.assert_close(plain(x, keep).patches, m(x, keep).patches, atol=0, rtol=0)


@pytest.mark.parametrize('stem', ['patchify', 'conv'])
def test_an_encoder_of_the_contract(stem):
    m = encoder(
        'vit_nano',
        img_size=24,
        patch_size=8,
        stem=stem,
        global_pool='class_attention',
        class_depth=1,
        class_scale=0.3,
    ).eval()
    x = two()[0]
    f = m(x, random_masking(B, (3, 3), 0.7).keep)
    assert f.pooled.shape == (B, 96)
    assert f.patches.shape == (B, 2, 96)
    assert f.grid == (3, 3)
    assert len(m.attn_pool.blocks) == 1
    assert m.attn_pool.blocks[0].gamma_1[0].item() == pytest.approx(0.3)
    order = torch.randperm(9).expand(B, 9)
    # all of them, in any order
    torch.testing.assert_close(m(x, order).pooled, m(x).pooled, atol=1e-5, rtol=0)
    fresh = random_encoder_like(m, 1)
    assert not torch.equal(fresh.attn_pool.cls_token, m.attn_pool.cls_token)
    assert not torch.equal(fresh.attn_pool.blocks[0].attn.q.weight, m.attn_pool.blocks[0].attn.q.weight)
    model = Classifier(m, 3)
    model(x).sum().backward()  # fine-tuning takes the patches
    assert all(p.grad is None for p in model.encoder.attn_pool.parameters())
    assert model.encoder.blocks[0].attn.qkv.weight.grad is not None


def test_through_the_door_and_back(tmp_path):
    m = vit_nano(
        img_size=24, patch_size=8, positions='sincos', global_pool='class_attention', class_depth=1
    ).eval()
    x = two()[0]
    for name in ('net.safetensors', 'net.pth'):
        back, report = load_encoder(save(m, tmp_path / name))
        assert not report.missing
        assert not report.unexpected
        torch.testing.assert_close(back(x), m(x), atol=0, rtol=0)
    with pytest.raises(ValueError, match='class attention'):
        save(m, tmp_path / 'folder')
    with pytest.raises(ValueError, match='no place for this encoder'):
        save(m, tmp_path / 'folder', 'transformers')


# --- views, guesses, processes, recipes


def test_views_share_a_crop():
    v = views('extrema', 16, (0.5,) * 3, (0.25,) * 3)
    images = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8)
    a, b = v.sample(6, (24, 24))
    assert torch.equal(a.box, b.box)
    assert torch.equal(a.flip, b.flip)
    assert not torch.equal(a.factors, b.factors)
    same = views('extrema', 16, (0.5,) * 3, (0.25,) * 3, jitter=(0.0,) * 4, grey=0.0)
    torch.testing.assert_close(*same(images), atol=0, rtol=0)
    torch.testing.assert_close(
        v(images[:2], [d.take(slice(0, 2)) for d in (a, b)])[1], v(images, [a, b])[1][:2], atol=1e-5, rtol=0
    )
    assert small().views.policies[1].shared
    assert [p.blur for p in small().views.policies] == [0.0, 0.0]


def test_guess():
    m = small(norm='batch').train()
    images = torch.randint(0, 256, (B, 3, 24, 24), dtype=torch.uint8)
    g = m.guess(images, seeded(0))
    again = m.guess(images, seeded(0))
    assert g.cosine.shape == g.rank.shape == (V, B)
    assert torch.equal(g.cosine, again.cosine)
    assert m.training
    assert 1 <= g.rank.min()
    assert g.rank.max() <= B
    m.eval()
    x = m.views.prepare(images)
    p = m.predictor(m.projector(m.encoder(x, g.masks[1].keep).pooled))
    k = m.momentum_embed(x)
    cosine = F.cosine_similarity(p[:, None], k[None], dim=-1)
    torch.testing.assert_close(g.cosine[1], cosine.diagonal(), atol=1e-5, rtol=0)
    for p in m.projector.parameters():
        nn.init.zeros_(p)
    for p in m.momentum_projector.parameters():
        nn.init.ones_(p)
    assert m.guess(images).rank.min() == B, "who says the same of all finds nobody"


def parts(index: int, world: int, norm: str):  # what one process computes for its part: loss, gradients
    m = small(norm=norm, dtype=torch.float64)
    x = [v.double() for v in two()]
    noise = draw()
    mine = slice(index * B // world, (index + 1) * B // world)
    if world > 1:
        m = sync_batchnorm(m)
    loss = m([v[mine] for v in x], noise=noise[mine])['loss']
    loss.backward()
    return (
        loss.detach(),
        {n: p.grad for n, p in m.named_parameters() if p.grad is not None},
        {n: b for n, b in m.named_buffers() if 'running' in n},
    )


def of_this_process(norm):
    import torch.distributed as dist

    return parts(dist.get_rank(), 2, norm)


@pytest.mark.parametrize('norm', ['layer', 'batch'])
def test_two_processes_equal_one(two_processes, norm):
    both = two_processes(of_this_process, norm)
    loss, grads, buffers = parts(0, 1, norm)
    torch.testing.assert_close(sum(b[0] for b in both) / 2, loss, atol=1e-12, rtol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(sum(b[1][name] for b in both) / 2, grad, atol=1e-10, rtol=1e-8)
    for name, value in buffers.items():
        torch.testing.assert_close(both[0][2][name], value, atol=1e-10, rtol=0)


def test_recipes():
    from types import SimpleNamespace

    paper = recipe('extrema', 'paper')
    assert paper.lr == pytest.approx(1.2e-3)
    assert paper.betas == (0.9, 0.95)
    assert paper.weight_decay == 0.1
    assert not differing(paper, batch_size=2048, epochs=300, warmup=40)
    m = build(recipe('extrema', 'laptop'), SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3))
    assert any(isinstance(x, nn.BatchNorm1d) for x in m.projector)
    assert m(m.views(torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)))['loss'].isfinite()
    from vit_ssl_lab.studies.runs import fashion_mnist_variant

    grey = build(
        fashion_mnist_variant(recipe('extrema', 'laptop')), SimpleNamespace(mean=(0.5,), std=(0.25,))
    )
    assert grey(grey.views(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)))['loss'].isfinite()


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: small(masks=5), 'give 1 to 4 masks'),
        (lambda: small(masks=0), "can't be disjoint"),
        (lambda: small(masks=2, mask_ratio=0.0), 'give 1 to 1 masks'),
        (lambda: small(mask_ratio=0.95), 'leaves none of 9'),
        (lambda: small(mask_ratio=1.0), '0 <= ratio < 1'),
        (lambda: small()(two()[0]), r'\[x1, x2\]'),
        (lambda: small()([*two(), two()[0]]), 'got 3'),
        (lambda: small()(two(), noise=draw(batch=3)), r'is \(8, 9\), not \(3, 9\)'),
        (lambda: small(norm='batch')(two(1)), 'batch of one picture'),
        (lambda: small(norm='bacth'), "Did you mean 'batch'"),
        (lambda: small(loss='infonce'), "Did you mean 'info_nce'"),
        (lambda: small(temperature=0.0), 'must be above 0'),
        (lambda: small(momentum=1.5), '1.5 is not'),
        (lambda: ExtreMA(nn.Identity()), 'with grid'),
        (lambda: ClassAttention(24, 5), 'do not divide'),
        (lambda: ClassAttentionPool(24, 3, depth=0), 'one block or more'),
        (lambda: extrema_head(8, norm='batch-without-affine'), 'normalisation of ExtreMA'),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)
