"""Lean blocks keep less and change nothing: the same bits as timm's, wherever blocks are used."""

import copy
import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vit_ssl_lab.components.attention import attention_maps
from vit_ssl_lab.components.lean import LeanBlock, LiveBytes, recompute_in_backward
from vit_ssl_lab.components.masking import make_mask, random_masking
from vit_ssl_lab.components.patches import patchify
from vit_ssl_lab.components.losses import masked_mse
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.methods.mae import MAE


@pytest.fixture(autouse=True)
def small_inputs_too(monkeypatch):
    monkeypatch.setattr(LeanBlock, 'min_bytes', 0)


def grads(loss, module) -> list:
    return torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=True)


def small(**kw):
    return dict(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=0, **kw)


@pytest.mark.parametrize(
    'kw',
    [
        {},
        dict(init_values=0.1, qk_norm=True),
        dict(proj_drop_rate=0.2, attn_drop_rate=0.1, drop_path_rate=0.2),
        dict(reg_tokens=2, global_pool='avg'),
        dict(act_layer='relu'),
        dict(act_layer='silu'),
    ],
)
def test_encoder_equals_timm_to_the_bit(kw):
    torch.manual_seed(0)
    theirs = VisionTransformer(**small(**kw))
    x = torch.randn(2, 3, 16, 16)
    ours = ViT(**small(**kw))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    from_timm = ViT.from_timm(theirs)
    assert all(type(b) is LeanBlock for v in (ours, from_timm) for b in v.blocks)
    assert all(type(b) is Block for b in theirs.blocks)
    outs = []
    for v in (theirs, ours, from_timm):
        torch.manual_seed(1)
        y = v.forward_features(x)
        outs.append([y, *grads(y.square().sum(), v)])
    for a, b, c in zip(*outs):
        assert (a is None and b is None) or torch.equal(a, b) and torch.equal(a, c)


def test_less_is_kept_and_no_product_more():
    torch.manual_seed(0)
    x = torch.randn(2, 40, 64)
    figures = {}
    for kind in (Block, LeanBlock):
        b = kind(64, 4)
        with LiveBytes() as live:
            output = b(x)
            kept = live.now / (4 * x.numel())
        del output  # its graph is what was kept
        with FlopCounterMode(display=False) as count:
            b(x).sum().backward()
        figures[kind] = kept, count.get_total_flops()
    assert figures[Block][0] - figures[LeanBlock][0] == pytest.approx(4, abs=0.05)
    assert figures[Block][1] == figures[LeanBlock][1]


def test_live_bytes_come_back_to_where_they_were():
    x = torch.randn(100, 10, requires_grad=True)
    with LiveBytes() as live:
        y = (x @ x.T).softmax(-1)
        assert live.now == 40_000
        y.sum().backward()
        assert live.now == 44_000
        x.grad = None
        del y
        assert live.now == 0
    assert live.peak >= 80_000


def test_a_hook_that_changes_an_output_is_respected():
    "A user's forward hook on the norm (an ablation, say) is not undone in the backward pass."
    torch.manual_seed(0)
    plain = Block(32, 2)
    lean = LeanBlock(32, 2)
    lean.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 32)
    out = []
    for b in (plain, lean):
        b.norm1.register_forward_hook(lambda m, args, y: y * 2)
        b.mlp.act.register_forward_hook(lambda m, args, y: y.add_(1))
        y = b(x)
        out.append([y, *grads(y.square().sum(), b)])
    for a, b in zip(*out):
        assert torch.equal(a, b)


def test_shared_layer_and_two_passes():
    "One layer used twice inside the context, two passes before one backward."
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    linear = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    out = []
    both = nn.ModuleList([norm, linear])

    def f(x):
        return linear(norm(linear(norm(x))))

    for lean in (False, True):
        if lean:
            with recompute_in_backward(norm):
                y = f(x) + f(2 * x)
        else:
            y = f(x) + f(2 * x)
        out.append([y, *grads(y.square().sum(), both)])
    for a, b in zip(*out):
        assert torch.equal(a, b)


def test_an_error_leaves_no_hook_behind():
    b = LeanBlock(32, 2)
    with pytest.raises(RuntimeError):
        b(torch.randn(1, 3, 31))
    assert not any(m._forward_hooks for m in b.modules())
    assert torch.equal(copy.deepcopy(b)(torch.ones(1, 2, 32)), b(torch.ones(1, 2, 32)))


def test_attention_maps_of_a_lean_encoder():
    torch.manual_seed(0)
    theirs = VisionTransformer(**small()).eval()
    ours = ViT.from_timm(theirs)
    plain = ViT.from_timm(theirs)
    for b in plain.blocks:
        b.recompute = False
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(attention_maps(ours, x), attention_maps(plain, x))


def test_checkpointing_keeps_less_still():
    torch.manual_seed(0)
    v = ViT(**small())
    x = torch.randn(2, 3, 16, 16)
    kept = []
    out = []
    for enable in (False, True):
        v.set_grad_checkpointing(enable)
        with LiveBytes() as live:
            loss = v(x).pooled.square().sum()
            kept.append(live.now)
        out.append(grads(loss, v))
    assert kept[1] < kept[0] / 2
    for a, b in zip(*out):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    'options',
    [{}, dict(norm_pix=False, masking='block', mask_ratio=0.6), dict(decoder_positions=None, masking='grid')],
)
def test_hidden_patches_only_is_the_same_loss(options):
    "MAE finishes hidden patches only; the loss over a full prediction is the definition."
    torch.manual_seed(0)
    m = MAE(vit_nano(img_size=24), 32, 2, 4, **options)
    x = torch.randn(3, 3, 24, 24)
    mask = make_mask(m.masking, 3, m.grid, m.mask_ratio)
    assert torch.equal(mask.hidden.sort(1).values, mask.hidden)
    assert torch.equal(mask.mask.gather(1, mask.hidden), torch.ones_like(mask.hidden, dtype=torch.float))
    whole = masked_mse(m.predict(x, mask), m.target(patchify(x, m.patch_size)), mask.mask)
    part = m(x, mask=mask)['loss']
    torch.testing.assert_close(part, whole, rtol=1e-6, atol=1e-6)
    for a, b in zip(grads(part, m), grads(whole, m)):
        assert a is None and b is None or torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_nothing_hidden():
    m = MAE(vit_nano(img_size=24), 32, 1, 4, mask_ratio=0.0)
    out = m(torch.randn(2, 3, 24, 24))
    assert out['loss'] == 0
    assert all(torch.isfinite(v) for v in out.values())


def test_at_under_autocast():
    torch.manual_seed(0)
    b = LeanBlock(32, 2, qkv_bias=True)
    x = torch.randn(2, 10, 32)
    want = random_masking(2, 10, 0.5).keep
    with torch.autocast('cpu', torch.bfloat16):
        a = b.at(x, want)
        c = b(x).gather(1, want[..., None].expand(-1, -1, 32))
    assert a.dtype == c.dtype
    torch.testing.assert_close(a, c, rtol=2e-2, atol=2e-2)


def test_small_inputs_are_left_alone(monkeypatch):
    monkeypatch.setattr(LeanBlock, 'min_bytes', 2**18)

    def kept(rows):
        x = torch.randn(rows, 64, 64)
        b = LeanBlock(64, 4)
        with LiveBytes() as live:
            output = b(x)
            kept = live.now / (4 * x.numel())
        del output  # its graph is what was kept
        return kept

    assert kept(8) - kept(16) == pytest.approx(4, abs=0.1)  # 128 KiB, and 256 KiB of input
