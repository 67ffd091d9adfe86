"""MP3: golden numbers of an unofficial implementation where the two agree, the point where they part, and
the paper's figure: every patch is a query, few give keys and values, and no position leaks."""

import json, math, re, sys, zlib
from pathlib import Path
from helpers import close, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import nn
from vit_ssl_lab.components.attention import context_attention, block_in_context
from vit_ssl_lab.components.lean import LeanBlock
from vit_ssl_lab.components.masking import random_masking, gather_tokens
from vit_ssl_lab.components.patches import patchify, unpatchify
from vit_ssl_lab.components.positions import grid_steps, sincos_nd, with_positions, without_positions
from vit_ssl_lab.core import Mask
from vit_ssl_lab.data.dataset import Dataset
from vit_ssl_lab.data.views import views
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.evaluation import finetune
from vit_ssl_lab.methods.mp3 import MP3, position_leak
from vit_ssl_lab.training import build, pretrain, recipe

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'mp3_vit_pytorch.json').read_text())


class Golden(nn.Module):
    """The encoder of tests/golden/mp3_vit_pytorch.json in timm's parts:
    LayerNorm, linear, LayerNorm as stem; blocks without a bias for queries, keys and values; no last norm."""

    grid = (3, 5)
    width = 32

    def __init__(self, depth, first_layer=False):
        super().__init__()
        self.stem = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 32), nn.LayerNorm(32))
        self.blocks = nn.ModuleList(Block(32, 2, mlp_ratio=2, norm_layer=nn.LayerNorm) for _ in range(depth))
        self.first_layer = first_layer

    def in_context(self, images, context=None):
        x = first = self.stem(rearrange(images, 'b c (h p) (w q) -> b (h w) (p q c)', p=4, q=4))
        for b in self.blocks:
            if self.first_layer:  # what the golden implementation does: the context never gets any deeper
                x = x + b.attn.proj(attend_bare(b.attn, b.norm1(x), b.norm1(gather_tokens(first, context))))
                x = x + b.mlp(b.norm2(x))
            else:
                x = block_in_context(b, x, context)
        return x


def attend_bare(attn, x, context):
    "Attention in loops over heads, before the output projection."
    to_q, to_k, to_v = attn.qkv.weight.chunk(3)
    q = F.linear(x, to_q).unflatten(-1, (2, 16))
    k = F.linear(context, to_k).unflatten(-1, (2, 16))
    v = F.linear(context, to_v).unflatten(-1, (2, 16))
    heads = [(q[:, :, h] @ k[:, :, h].mT / 4).softmax(-1) @ v[:, :, h] for h in range(2)]
    return torch.cat(heads, -1)


def golden_parts(name: str) -> list[str]:
    "The golden implementation's names of a parameter of ours; several where ours is their concatenation."
    if name.startswith('head.'):
        return [name.replace('head.', 'mlp_head.')]
    name = re.sub(r'^encoder\.stem\.(\d)', lambda m: f'vit.to_patch_embedding.{int(m[1]) + 1}', name)
    name = re.sub(r'^encoder\.blocks', 'vit.transformer.layers', name)
    if 'attn.qkv' in name:
        return [name.replace('attn.qkv', f'0.{k}') for k in ('to_q', 'to_kv')]
    for ours, theirs in (
        ('norm1', '0.norm'),
        ('attn.proj', '0.to_out.0'),
        ('norm2', '1.net.0'),
        ('mlp.fc1', '1.net.1'),
        ('mlp.fc2', '1.net.4'),
    ):
        name = name.replace(ours, theirs)
    return [name]


def golden_model(depth, **kw) -> MP3:
    m = MP3(Golden(depth, **kw), mask_ratio=0.6, views=nn.Identity())
    m.head[0].eps = 1e-5
    with torch.no_grad():
        for name, p in m.named_parameters():
            theirs = golden_parts(name)
            sizes = [p.numel()] if len(theirs) == 1 else [32 * 32, 64 * 32]
            waves = [
                0.2 * np.sin(np.arange(n) * 0.37 + zlib.crc32(t.encode()) % 1000)
                for t, n in zip(theirs, sizes)
            ]
            norm = p.ndim == 1 and name.endswith('weight')
            p.copy_(torch.tensor(np.concatenate(waves)).reshape(p.shape).float() + (1.0 if norm else 0.0))
    return m


def golden_input() -> tuple[torch.Tensor, Mask]:
    i = np.arange(2 * 3 * 12 * 20)
    noise = torch.tensor((np.arange(30) * 0.6180339887) % 1).reshape(2, 15).float()
    keep = noise.argsort(1)[:, 9:]  # there the first are hidden
    return torch.tensor(np.sin(i * 0.11) + np.cos(i * 0.013)).reshape(2, 3, 12, 20).float(), Mask(
        keep, torch.ones(2, 15).scatter(1, keep, 0.0)
    )


def test_golden_numbers_at_depth_one():
    want = GOLDEN['depth 1']
    m = golden_model(1)
    x, mask = golden_input()
    logits = m.head(m.encoder.in_context(x, mask.keep))
    close(logits[1, 4, :6], want['logits'])
    close(logits.std(), want['logit_std'])
    out = m(x, mask=mask)
    close(out['loss'], want['loss'])
    out['loss'].backward()
    for name, p in m.named_parameters():
        theirs = golden_parts(name)
        for t, g in zip(theirs, [p.grad] if len(theirs) == 1 else p.grad.split([32, 64])):
            close(g.norm(), want['gradient_norms'][t], 2e-5)


def test_where_the_two_implementations_part():
    """Deeper, the other one keeps the first layer's tokens as context.
    Done on purpose, its number comes out; done right, another."""
    x, mask = golden_input()
    want = GOLDEN['depth 4']['loss']
    close(golden_model(4, first_layer=True)(x, mask=mask)['loss'], want)
    assert abs(golden_model(4)(x, mask=mask)['loss'].item() - want) > 1e-3


# --- attention to a context


@pytest.mark.parametrize(
    'made',
    [dict(qkv_bias=True), dict(), dict(qkv_bias=True, qk_norm=True, scale_attn_norm=True, init_values=0.1)],
    ids=['bias', 'plain', 'norms'],
)
@pytest.mark.parametrize('kind', [Block, LeanBlock])
def test_a_context_is_a_mask_of_minus_infinities(kind, made):
    torch.manual_seed(0)
    block = kind(24, 3, norm_layer=nn.LayerNorm, **made)
    x = torch.randn(2, 10, 24)
    context = torch.rand(2, 10).argsort(1)[:, :4]
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    closed = (
        torch.full((2, 1, 1, 10), -torch.inf).scatter(-1, context[:, None, None], 0.0).expand(-1, 1, 10, -1)
    )
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = block_in_context(block, a, context)
    want = block(b, attn_mask=closed)
    close(got, want)
    got.square().sum().backward()
    mine = {n: p.grad.clone() for n, p in block.named_parameters()}
    block.zero_grad()
    want.square().sum().backward()
    close(a.grad, b.grad, 1e-4)
    for n, p in block.named_parameters():
        close(mine[n], p.grad, 1e-4)


def test_lean_blocks_stay_lean_with_a_context(monkeypatch):
    monkeypatch.setattr(LeanBlock, 'min_bytes', 0)
    torch.manual_seed(0)
    lean = LeanBlock(24, 3)
    plain = Block(24, 3)
    plain.load_state_dict(lean.state_dict())
    context = torch.rand(2, 10).argsort(1)[:, :4]
    x = torch.randn(2, 10, 24)
    out = []
    for b in (lean, plain):
        a = x.clone().requires_grad_()
        block_in_context(b, a, context).square().sum().backward()
        out.append((a.grad, b.mlp.fc1.weight.grad))
    for g, h in zip(*out):
        close(g, h)


def test_a_gate_is_used():
    from timm.models.vision_transformer import Attention

    torch.manual_seed(0)
    try:
        attn = Attention(24, 3, gated=True)
    except TypeError:
        pytest.skip("this timm has no gated attention")
    x = torch.randn(2, 10, 24)
    close(context_attention(attn, x, x), attn(x))


@pytest.mark.parametrize(
    'made',
    [dict(class_token=False, global_pool='avg'), dict(), dict(reg_tokens=2, class_token=True)],
    ids=['no prefix', 'class token', 'registers'],
)
def test_full_context_is_the_encoder(made):
    torch.manual_seed(0)
    v = vit_nano(img_size=(16, 24), depth=2, **made).eval()
    x = torch.randn(2, 3, 16, 24)
    every = torch.rand(2, 24).argsort(1)
    for context in (None, every):
        close(v.in_context(x, context), v(x).patches)


def test_checkpointing_changes_nothing():
    torch.manual_seed(0)
    v = vit_nano(img_size=16, depth=2, positions='none')
    x = torch.randn(2, 3, 16, 16)
    grads = []
    context = torch.rand(2, 16).argsort(1)[:, :5]
    for enable in (False, True):
        v.set_grad_checkpointing(enable)
        v.zero_grad()
        v.in_context(x, context).square().sum().backward()
        grads.append(v.blocks[0].attn.qkv.weight.grad.clone())
    close(*grads)


# --- the method


def nano(size=24, **kw) -> MP3:
    torch.manual_seed(0)
    encoder = {
        k: kw.pop(k) for k in list(kw) if k in ('positions', 'stem', 'class_token', 'global_pool', 'depth')
    }
    return MP3(
        vit_nano(
            img_size=size,
            patch_size=4,
            embed_dim=32,
            num_heads=2,
            **{'depth': 2, 'positions': 'none', **encoder},
        ),
        **kw,
    )


def test_full_context_equals_plain_attention():
    "With a ratio of 0: an ordinary encoder without positions and a linear layer."
    m = nano(mask_ratio=0.0).eval()
    x = torch.randn(3, 3, 24, 24)
    plain = m.head(m.encoder(x).patches)
    close(m(x)['loss'], F.cross_entropy(plain.flatten(0, 1), torch.arange(36).repeat(3)))


@pytest.mark.parametrize(
    'made', [dict(class_token=False, global_pool='avg'), dict()], ids=['no class token', 'class token']
)
def test_shuffled_patches_shuffle_the_answer(made):
    m = nano(**made).eval()
    x = torch.randn(2, 3, 24, 24)
    order = torch.randperm(36)
    for p in m.encoder.blocks.parameters():
        nn.init.normal_(p, std=0.2)
    keep = torch.rand(2, 36).argsort(1)[:, :9]
    mixed = unpatchify(patchify(x, 4)[:, order], 4, (6, 6))
    close(
        m.head(m.encoder.in_context(mixed, order.argsort()[keep])),
        m.head(m.encoder.in_context(x, keep))[:, order],
        1e-4,
    )


def test_hidden_patches_are_placed_but_not_seen():
    m = nano().eval()
    x = torch.randn(2, 3, 24, 24)
    mask = random_masking(2, (6, 6), 0.75)
    other = x + 5 * mask.mask.reshape(2, 1, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    a, b = (m.head(m.encoder.in_context(v, mask.keep)) for v in (x, other))
    moved = (a - b).abs().amax(-1) > 1e-6
    assert torch.equal(moved, mask.mask > 0), "a hidden patch changes its own answer and no other"


def test_loss_counts_every_token():
    "By hand: the mean of -log p(own place) over all 36 patches, those of the context too."
    m = nano().double().eval()
    x = torch.randn(2, 3, 24, 24).double()
    noise = torch.rand(2, 36)
    keep = noise.argsort(1)[:, :9]
    log_p = m.head(m.encoder.in_context(x, keep)).log_softmax(-1)
    by_hand = -sum(log_p[b, i, i].item() for b in range(2) for i in range(36)) / 72
    assert m(x, noise=noise)['loss'].item() == pytest.approx(by_hand, abs=1e-6)


def test_at_initialisation():
    out = nano()(torch.randn(32, 3, 24, 24))
    assert out['loss'].item() == pytest.approx(math.log(36), rel=0.02)
    assert abs(out['accuracy'].item() - 1 / 36) < 0.02
    assert out['distance'].item() == pytest.approx(4, abs=1)


def test_scalars():
    m = nano()
    head = m.head
    # everyone one to the right
    logits = torch.full((1, 36, 36), -9.0).scatter(-1, torch.arange(36).roll(-1)[None, :, None], 9.0)
    right, away = head.evaluate(logits)
    assert not right.any()
    assert away[0, 0] == 1
    assert away[0, 5] == 6
    assert away[0, 35] == 10
    assert not m(torch.randn(2, 3, 24, 24))['accuracy'].requires_grad


def test_steps_of_any_grid():
    assert grid_steps((5,))[0].tolist() == [0, 1, 2, 3, 4]
    s = grid_steps((2, 3, 4))
    assert s.shape == (24, 24)
    assert s.max() == 1 + 2 + 3
    assert torch.equal(s, s.T)


class Frames(nn.Module):
    "An encoder of sequences: frames of 8 numbers on one axis, no pictures anywhere."

    grid = (12,)
    width = 16

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Linear(8, 16)
        self.pos_embed = None
        self.blocks = nn.ModuleList(LeanBlock(16, 2) for _ in range(2))

    def in_context(self, x, context=None):
        x = self.patch_embed(x) if self.pos_embed is None else self.patch_embed(x) + self.pos_embed
        for b in self.blocks:
            x = block_in_context(b, x, context)
        return x


def test_one_axis():
    """Speech: nothing assumes rows and columns.
    Frames that tell their place are placed after some steps, from a quarter of them as context."""
    torch.manual_seed(0)
    m = MP3(Frames(), views=nn.Identity())
    walk = torch.randn(12, 8)
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2)
    first = m(walk + 0.1 * torch.randn(16, 12, 8))
    for _ in range(40):
        out = m(walk + 0.1 * torch.randn(16, 12, 8))
        optimizer.zero_grad()
        out['loss'].backward()
        optimizer.step()
    assert first['loss'].item() == pytest.approx(math.log(12), rel=0.05)
    assert out['accuracy'] > 0.9
    assert out['distance'] < 1
    p = with_positions(m.encoder)
    close(p.in_context(walk[None]), m.encoder.in_context(walk[None]))
    assert p.pos_embed.shape == (1, 12, 16)


# --- positions, later


@pytest.mark.parametrize(
    'made',
    [dict(class_token=False, global_pool='avg'), dict(), dict(no_embed_class=True, reg_tokens=1)],
    ids=['no prefix', 'class token', 'registers, no_embed_class'],
)
def test_positions_later(made):
    torch.manual_seed(0)
    v = vit_nano(img_size=(16, 24), depth=1, positions='none', **made).eval()
    x = torch.randn(2, 3, 16, 24)
    w = with_positions(v)
    close(w(x).pooled, v(x).pooled)
    assert v.pos_embed is None
    assert w.pos_embed.requires_grad
    learned = vit_nano(img_size=(16, 24), depth=1, **made)
    assert w.pos_embed.shape == learned.pos_embed.shape
    # a file of it loads into an encoder that was made with positions
    learned.load_state_dict(w.state_dict(), strict=True)
    back = without_positions(learned.eval())
    close(back(x).pooled, v(x).pooled)
    back.load_state_dict(v.state_dict(), strict=True)
    prefix = 0 if made.get('no_embed_class') else w.num_prefix_tokens
    waves = with_positions(v, table=sincos_nd((4, 6), 96, prefix), learn=False)
    assert not waves.pos_embed.requires_grad
    assert (waves(x).patches - v(x).patches).abs().max() > 0.01
    keep = torch.tensor([[3, 1], [0, 23]])
    assert waves(x, keep).patches.shape == (2, 2, 96)


def test_fine_tuning_writes_into_the_table(monkeypatch):
    "The table that starts at zero learns; the waves stay; the pre-trained encoder is not touched."
    torch.manual_seed(0)
    data = Dataset(
        'toy',
        'train',
        torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8),
        torch.arange(40) % 2,
        ['a', 'b'],
        (0.5,) * 3,
        (0.25,) * 3,
    )
    module = sys.modules['vit_ssl_lab.evaluation.finetune']
    made = []
    monkeypatch.setattr(
        module, 'Classifier', lambda *a, true=module.Classifier: made.append(true(*a)) or made[-1]
    )
    encoder = vit_nano(img_size=16, depth=1, positions='none', class_token=False, global_pool='avg')
    for kind in (
        encoder,
        with_positions(encoder),
        with_positions(encoder, table=sincos_nd((4, 4), 96), learn=False),
    ):
        finetune(kind, data, data, labels_per_class=5, steps=3, batch_size=10)
    none, learned, waves = (m.encoder.pos_embed for m in made)
    assert none is None
    assert learned.abs().max() > 0
    assert torch.equal(waves.detach(), sincos_nd((4, 4), 96))
    assert encoder.pos_embed is None


# --- locating


def test_locate_and_measure():
    m = nano(views=views('mae', 24, (0.5,) * 3, (0.25,) * 3))
    m.train()
    images = torch.randint(0, 256, (7, 3, 30, 24), dtype=torch.uint8, generator=seeded(0))
    a, b = (m.locate(images, generator=seeded(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (7, 36, 36)
    assert m.training
    assert not a.requires_grad
    close(a.sum(-1), torch.ones(7, 36))
    images[:3] = 128  # flat: no structure
    data = Dataset('toy', 'test', images, torch.zeros(7, dtype=torch.long), ['x'], (0.5,) * 3, (0.25,) * 3)
    s = m.measure(data, batch_size=3)
    assert s.share == pytest.approx(100 * 4 / 7, abs=0.1)
    assert 0 <= s.structured <= 100
    assert 0 <= s.distance <= 10
    close(s.confusion.sum(1), torch.ones(36))
    assert m.measure(data, batch_size=3)[:4] == s[:4], "one seed, one score"
    assert math.isnan(m.measure(data, contrast=9.0).structured)


def test_identical_patches_cannot_be_told_apart():
    "The floor of the loss: of k identical patches at most one is put in its place."
    m = nano().eval()
    p = m.locate(torch.full((1, 3, 24, 24), 0.5))
    close(p[0], p[0, :1].expand(36, -1))
    assert m.head.evaluate(p)[0].sum() == 1


# --- recipes and training


@pytest.mark.parametrize('scale', ['laptop', 'slow', 'gpu', 'paper'])
def test_recipes_build(scale):
    r = recipe('mp3', scale)
    assert r.encoder_options['positions'] == 'none'
    if scale == 'paper':
        assert 'UNVERIFIED' in r.note
        return
    data = Dataset(
        'toy',
        'train',
        torch.zeros(1, 3, 48, 48, dtype=torch.uint8),
        torch.zeros(1),
        ['x'],
        (0.5,) * 3,
        (0.25,) * 3,
    )
    m = build(r, data)
    assert not position_leak(m.encoder)
    assert m(torch.randn(2, 3, *2 * (r.img_size,)))['loss'].isfinite()


def test_a_few_steps_learn():
    "On pictures whose patches differ the loss falls below chance in a few steps."
    g = seeded(0)
    base = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8, generator=g)
    images = (base + torch.randint(20, (64, 3, 8, 8), dtype=torch.uint8, generator=g)).clamp(0, 255)
    data = Dataset('toy', 'train', images, torch.zeros(64, dtype=torch.long), ['x'], (0.5,) * 3, (0.25,) * 3)
    r = recipe(
        'mp3',
        'laptop',
        img_size=8,
        patch_size=2,
        batch_size=32,
        steps=40,
        views_options=dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0),
        encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
        base_lr=1e-2,
        log_every=1,
    )
    frame = pretrain(build(r, data), data, r, quiet=True, device='cpu').frame()
    assert frame['loss'].iloc[-1] < 0.7 * math.log(16)
    assert frame['accuracy'].iloc[-1] > 2 / 16


# --- bad input


class Conv1dStem(Frames):
    def __init__(self, **kw):
        super().__init__()
        self.patch_embed = nn.Conv1d(8, 16, **kw)


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: nano(positions='learn'), "positions='none'"),
        (lambda: nano(positions='sincos'), 'without_positions'),
        (lambda: nano(stem='conv'), "stem='patchify'"),
        (lambda: MP3(Conv1dStem(kernel_size=3, stride=2), views=nn.Identity()), 'overlap'),
        (lambda: MP3(Conv1dStem(kernel_size=2, stride=2, padding=1), views=nn.Identity()), 'padded'),
        (lambda: MP3(Conv1dStem(kernel_size=1, padding='same'), views=nn.Identity()), 'padded'),
        (lambda: MP3(nn.Identity()), 'ViT.from_timm'),
        (lambda: nano(mask_ratio=1.0), '0 <= ratio < 1'),
        (lambda: nano(mask_ratio=-0.1), '0 <= ratio < 1'),
        (lambda: nano(mask_ratio=0.99), 'leaves none of 36'),
        (lambda: nano()(torch.randn(2, 1, 24, 24)), r'takes float pictures \(B, 3, 24, 24\)'),
        (lambda: nano()(torch.randn(2, 3, 32, 32)), 'resize'),
        (lambda: nano()(torch.randn(2, 3, 24, 24), noise=torch.rand(2, 9)), r'\(2, 36\)'),
        (lambda: nano().locate(torch.rand(1, 3, 24, 24), ratio=1.0), '0 <= ratio < 1'),
        (
            lambda: nano().encoder.in_context(torch.randn(2, 3, 24, 24), torch.full((2, 3), 36)),
            'from 0 to 35',
        ),
        (
            lambda: context_attention(Block(8, 2).attn, torch.randn(1, 3, 8), torch.randn(1, 0, 8)),
            'keep one token or more',
        ),
        (
            lambda: context_attention(nn.MultiheadAttention(8, 2), *torch.randn(2, 1, 3, 8)),
            "timm's Attention",
        ),
        (lambda: with_positions(vit_nano()), 'already'),
        (lambda: with_positions(vit_nano(positions='none'), table=torch.zeros(1, 5, 96)), r'\(1, 145, 96\)'),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)


def test_leaks_may_be_let_through():
    for kw in (dict(positions='learn'), dict(stem='conv')):
        assert nano(allow_leaks=True, **kw)(torch.randn(2, 3, 24, 24))['loss'].isfinite()
    assert not position_leak(Conv1dStem(kernel_size=2, stride=2))
    assert not position_leak(ViT(24, 4, positions='none', embed_dim=32, depth=1, num_heads=2))
