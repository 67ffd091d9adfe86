"""MAE against two independent implementations: transformers' ViTMAEForPreTraining, and numbers that the
official code gave."""

import json, re, zlib
from functools import partial
from pathlib import Path
import helpers
from helpers import check_moves, equal, seeded
import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from vit_ssl_lab.components.masking import KINDS, block_masking, mask_from
from vit_ssl_lab.components.patches import patchify
from vit_ssl_lab.core import Mask
from vit_ssl_lab.data.views import MAEViews
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.data import load
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.training import build, pretrain
from vit_ssl_lab.recipe import Recipe

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'mae_official.json').read_text())


def official_name(ours: str) -> str:
    "The official implementation's name of a parameter of ours."
    ours = re.sub(r'^encoder\.', '', ours)
    ours = re.sub(r'^decoder\.(embed|blocks|norm|pos_embed)', r'decoder_\1', ours)
    return ours.replace('decoder.head', 'decoder_pred').replace('decoder.mask_token', 'mask_token')


def golden_model(norm_pix: bool) -> MAE:
    "The model of tests/golden/mae_official.json: parameters by formula from their official names."
    encoder = ViT(24, 4, 3, positions='sincos', embed_dim=32, depth=2, num_heads=4)
    model = MAE(encoder, decoder_width=16, decoder_depth=1, decoder_heads=2, norm_pix=norm_pix)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            name = official_name(name)
            wave = 0.1 * np.sin(np.arange(p.numel()) * 0.37 + zlib.crc32(name.encode()) % 1000)
            p.copy_(
                torch.tensor(wave).reshape(p.shape).float()
                + (1.0 if 'norm' in name and name.endswith('weight') else 0.0)
            )
    return model


@pytest.mark.parametrize('target', ['pixels', 'norm_pix'])
def test_official_numbers(target):
    want = GOLDEN[target]
    model = golden_model(target == 'norm_pix')
    i = np.arange(2 * 3 * 24 * 24)
    x = torch.tensor(np.sin(i * 0.11) + np.cos(i * 0.013)).reshape(2, 3, 24, 24).float()
    noise = torch.tensor((np.arange(72) * 0.6180339887) % 1).reshape(2, 36).float()
    mask = model_mask(model, noise)
    assert mask.mask[0].int().tolist() == want['mask']
    pred = model.predict(x, mask)
    latent = model.encoder(x, mask.keep)

    close = partial(helpers.close, rtol=1e-5, atol=1e-5)
    close(latent.pooled[0, :6], want['latent'])
    close(pred[1, 7, :6], want['pred'])
    close(pred.mean(), want['pred_mean'])
    close(pred.std(), want['pred_std'])
    close(model.encoder.pos_embed[0, 8, ::4], GOLDEN['pos_embed'])
    close(model.decoder.pos_embed[0, 20, ::3], GOLDEN['decoder_pos_embed'])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05
    )
    loss = model(x, noise=noise)['loss']
    loss.backward()
    norms = {official_name(n): p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    close(loss, want['loss'])
    for name, norm in want['gradient_norms'].items():
        close(norms[name], norm)
    optimizer.step()
    close(model(x, noise=noise)['loss'], want['loss_after_one_step'])


def model_mask(model: MAE, noise: torch.Tensor) -> Mask:
    from vit_ssl_lab.components.masking import random_masking

    return random_masking(len(noise), model.grid, model.mask_ratio, noise=noise)


def peer(norm_pix: bool) -> ViTMAEForPreTraining:
    torch.manual_seed(0)
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            image_size=32,
            patch_size=8,
            num_channels=3,
            decoder_num_attention_heads=2,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_intermediate_size=128,
            mask_ratio=0.75,
            norm_pix_loss=norm_pix,
            layer_norm_eps=1e-6,
        )
    )


def from_peer(p: ViTMAEForPreTraining) -> tuple[MAE, dict]:
    "Our model with the peer's weights; and the table our name -> the peer's names, for gradients."
    model = MAE(
        ViT(32, 8, 3, positions='sincos', embed_dim=48, depth=3, num_heads=4),
        decoder_width=32,
        decoder_depth=2,
        decoder_heads=2,
        norm_pix=p.config.norm_pix_loss,
    )
    newer = any('q_proj' in n for n in p.state_dict())  # transformers 5 renamed the layers
    encoder = 'vit.layers' if newer else 'vit.encoder.layer'
    qkv = 'attention.{}_proj' if newer else 'attention.attention.{}'
    out, fc1, fc2 = (
        ('attention.o_proj', 'mlp.fc1', 'mlp.fc2')
        if newer
        else ('attention.output.dense', 'intermediate.dense', 'output.dense')
    )

    def block(ours, theirs, kind):
        three = [f'{theirs}.{qkv.format(k)}.{kind}' for k in ('qkv' if newer else ('query', 'key', 'value'))]
        one = {
            'attn.proj': out,
            'norm1': 'layernorm_before',
            'norm2': 'layernorm_after',
            'mlp.fc1': fc1,
            'mlp.fc2': fc2,
        }
        return {f'{ours}.attn.qkv.{kind}': three} | {
            f'{ours}.{k}.{kind}': [f'{theirs}.{v}.{kind}'] for k, v in one.items()
        }

    table = {
        'encoder.cls_token': ['vit.embeddings.cls_token'],
        'encoder.pos_embed': ['vit.embeddings.position_embeddings'],
        'decoder.mask_token': ['decoder.mask_token'],
        'decoder.pos_embed': ['decoder.decoder_pos_embed'],
    }
    for kind in ('weight', 'bias'):
        table |= {
            f'encoder.patch_embed.proj.{kind}': [f'vit.embeddings.patch_embeddings.projection.{kind}'],
            f'encoder.norm.{kind}': [f'vit.layernorm.{kind}'],
            f'decoder.embed.{kind}': [f'decoder.decoder_embed.{kind}'],
            f'decoder.norm.{kind}': [f'decoder.decoder_norm.{kind}'],
            f'decoder.head.{kind}': [f'decoder.decoder_pred.{kind}'],
        }
        for i in range(3):
            table |= block(f'encoder.blocks.{i}', f'{encoder}.{i}', kind)
        for i in range(2):
            table |= block(f'decoder.blocks.{i}', f'decoder.decoder_layers.{i}', kind)
    model.load_state_dict(
        {ours: torch.cat([p.state_dict()[t] for t in theirs]) for ours, theirs in table.items()}, strict=True
    )
    return model, table


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('norm_pix', [False, True])
def test_equals_transformers(norm_pix, dtype, tolerance):
    "Same weights, pictures and noise: the same mask, prediction, loss and gradients."
    p = peer(norm_pix)
    model, table = from_peer(p)
    p.to(dtype)
    model.to(dtype)
    g = seeded(1)
    x = torch.randn(4, 3, 32, 32, generator=g).to(dtype)
    noise = torch.rand(4, 16, generator=g)

    close = partial(helpers.close, rtol=tolerance, atol=tolerance)
    out = p(x, noise=noise)
    mask = model_mask(model, noise)
    close(mask.mask, out.mask)
    close(model.predict(x, mask), out.logits)
    loss = model(x, noise=noise)['loss']
    loss.backward()
    out.loss.backward()
    close(loss, out.loss)
    theirs = dict(p.named_parameters())
    ours = {n: q for n, q in model.named_parameters() if q.requires_grad}
    for name, q in ours.items():
        close(q.grad, torch.cat([theirs[t].grad for t in table[name]]))
    if dtype == torch.float32:
        return  # a key's bias has gradient 0 up to rounding, which AdamW would blow up to a full step
    before = {name: q.detach().clone() for name, q in ours.items()}
    for params in (ours.values(), theirs.values()):
        torch.optim.AdamW(
            [q for q in params if q.requires_grad], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05
        ).step()
    expected = {name: torch.cat([theirs[t] for t in table[name]]) for name in ours}
    check_moves(before, ours, expected, rtol=1e-5, noise=1e-9)


def nano(**kw) -> MAE:
    torch.manual_seed(0)
    return MAE(
        vit_nano(img_size=24, patch_size=4, embed_dim=32, depth=2, num_heads=2, positions='sincos'),
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        **kw,
    )


def test_loss_at_initialisation():
    """A prediction of zero costs exactly (d-1)/d on normalised pixels, and the variance of the pixels on raw
    ones."""
    x = torch.randn(8, 3, 24, 24, generator=seeded(0))
    for norm_pix, theory in ((True, 47 / 48), (False, 1.0)):
        m = nano(norm_pix=norm_pix)
        nn.init.zeros_(m.decoder.head.weight)
        nn.init.zeros_(m.decoder.head.bias)
        assert abs(m(x)['loss'].item() - theory) < (1e-4 if norm_pix else 0.05)


def test_visible_patches_cost_nothing_and_hidden_pixels_are_not_seen():
    m = nano(norm_pix=False).eval()
    x = torch.randn(2, 3, 24, 24)
    mask = model_mask(m, torch.rand(2, 36))
    hidden = mask.mask.reshape(2, 1, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = x + 5 * hidden  # other content where the encoder can't look
    torch.testing.assert_close(m.predict(x, mask), m.predict(changed, mask))
    # What stands in the visible patches makes up most of the error over all patches.
    loud = x * (1 + 9 * (1 - hidden))
    errors = (m.predict(loud, mask) - patchify(loud, 4)).square().mean(-1)
    over_hidden = errors[mask.mask == 1].mean()
    assert errors.mean() > 5 * over_hidden
    torch.testing.assert_close(m(loud, mask=mask)['loss'], over_hidden)


def test_any_mask_of_the_contract():
    m = nano()
    x = torch.randn(3, 3, 24, 24)
    for mask in (
        block_masking(3, (6, 6), 0.5, generator=seeded(0)),
        mask_from(torch.eye(6).bool().expand(3, 6, 6)),
    ):
        assert m(x, mask=mask)['loss'].isfinite()
        assert m.reconstruct(x.clamp(0, 1), mask=mask).mask.equal(mask.mask)


def test_reconstruct():
    m = nano()
    m.train()
    images = torch.randint(0, 256, (2, 3, 30, 24), dtype=torch.uint8, generator=seeded(0))
    a, b = (m.reconstruct(images, generator=seeded(3)) for _ in range(2))
    assert equal(a, b), "one generator, one picture"
    assert m.training
    assert a.input.shape == (2, 3, 24, 24)
    assert a.error.shape == (2, 24, 24)
    assert all(0 <= v.min() and v.max() <= 1 for v in a)
    visible = (a.mask.reshape(2, 6, 6).repeat_interleave(4, 1).repeat_interleave(4, 2) == 0)[
        :, None
    ].expand_as(a.input)
    assert torch.equal(a.composite[visible], a.input[visible])
    assert a.error[visible[:, 0]].max() == 0


def test_estimated_statistics_know_nothing_of_hidden_patches():
    """Changing the brightness of hidden patches changes a reconstruction with true statistics, never one with
    estimated ones."""
    m = nano(views=MAEViews(24, (0.5,) * 3, (0.25,) * 3)).eval()
    x = torch.rand(1, 3, 24, 24, generator=seeded(0)) * 0.4 + 0.1
    mask = model_mask(m, torch.rand(1, 36, generator=seeded(1)))
    brighter = x + 0.4 * mask.mask.reshape(1, 1, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    estimated = [m.reconstruct(v, mask).prediction for v in (x, brighter)]
    true = [m.reconstruct(v, mask, pixels='true').prediction for v in (x, brighter)]
    torch.testing.assert_close(*estimated, atol=1e-5, rtol=0)
    assert (true[1] - true[0]).mean() > 0.05


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: nano(mask_ratio=1.0), '0 <= ratio < 1'),
        (lambda: nano(mask_ratio=-0.1), '0 <= ratio < 1'),
        (lambda: nano(masking='blok'), "Did you mean 'block'"),
        (lambda: nano()(torch.randn(2, 1, 24, 24)), r'takes float pictures \(B, 3, 24, 24\)'),
        (lambda: nano()(torch.randn(2, 3, 32, 32)), 'resize'),
        (lambda: nano()(torch.randn(2, 3, 24, 24), noise=torch.rand(2, 9)), r'\(2, 36\)'),
        (lambda: nano().reconstruct(torch.rand(1, 3, 24, 24), pixels='truth'), "Did you mean 'true'"),
        (lambda: MAE(nn.Identity()), 'timm_encoder'),
        (lambda: vit_nano(img_size=30, patch_size=4), 'patch'),
        (
            lambda: nano()(torch.randn(2, 3, 24, 24), mask=mask_from(torch.tensor([[1, 0], [1, 1]]))),
            'same number of patches',
        ),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('masking', KINDS)
def test_training_draws_every_kind_of_mask(masking):
    "The loop hands out the chance that each kind of mask asks for."
    small_recipe = Recipe(
        'mae',
        data='digits',
        img_size=16,
        patch_size=4,
        batch_size=8,
        steps=2,
        views_options=dict(scale=(0.5, 1.0)),
        method_options=dict(masking=masking, decoder_width=16, decoder_depth=1, decoder_heads=2),
    )
    data = load('digits').subset(32)
    assert torch.isfinite(
        torch.tensor(
            pretrain(build(small_recipe, data), data, small_recipe, quiet=True, device='cpu').rows[-1]['loss']
        )
    )
