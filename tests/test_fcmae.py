"""FCMAE: the numbers of the official sparse model through `weights`, the loss by hand, what is hidden,
who learns, bad input."""

import argparse, json
from pathlib import Path
import helpers
from helpers import equal, seeded, sine_state
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from torch import nn
from vit_ssl_lab.components.decoders import ConvDecoder
from vit_ssl_lab.components.masking import mask_from, random_masking
from vit_ssl_lab.components.patches import mask_to_pixels, patchify
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders.convnextv2 import CONVNEXT_V1, convnextv2_yocto
from vit_ssl_lab.encoders.resnet import resnet_nano
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.studies.runs import fashion_mnist_variant
from vit_ssl_lab.methods.fcmae import FCMAE
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.weights import from_official_convnext, load_method, save

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'fcmae_official.json').read_text())
D = torch.float64


def close(actual, expected, tolerance=1e-9):
    helpers.close(actual, expected, tolerance)


def tiny(dtype=torch.float32, grn=True, **kw) -> FCMAE:
    torch.manual_seed(0)
    return FCMAE(
        convnextv2_yocto(24, **({} if grn else CONVNEXT_V1)),
        **{'decoder_width': 16, 'decoder_grn': grn, **kw},
    ).to(dtype)


def official(name: str) -> str:
    "Our name of an official parameter."
    ours = next(iter(from_official_convnext({name: torch.zeros(1, 1)})))
    return ours if ours.startswith('decoder.') else f'encoder.{ours}'


def official_file(folder: Path, norm_pix: bool) -> Path:
    "A checkpoint as the official pre-training writes it, filled by formula."

    state = sine_state(GOLDEN['shapes'])
    torch.save(
        {
            'model': state,
            'epoch': 3,
            'args': argparse.Namespace(norm_pix_loss=norm_pix, mask_ratio=0.6, input_size=96),
        },
        folder / 'checkpoint-3.pth',
    )
    return folder / 'checkpoint-3.pth'


@pytest.mark.parametrize('target', ['pixels', 'norm_pix'])
def test_official_numbers(tmp_path, target):
    """Mask, features, prediction, loss, gradients and one step of the official sparse model, one picture
    after the other."""
    i = np.arange(2 * 3 * 96 * 96)
    path = official_file(tmp_path, target == 'norm_pix')
    x = torch.tensor(np.sin(i * 0.11) + np.cos(i * 0.013)).reshape(2, 3, 96, 96)
    noise = torch.tensor((np.arange(18) * 0.6180339887) % 1).reshape(2, 9)

    def near(a, b, eps=1e-05):
        (np.testing.assert_allclose(torch.as_tensor(a).detach().numpy(), b, rtol=eps, atol=eps))

    losses = []
    for k, want in enumerate(GOLDEN[target]):
        m, report = load_method(path)
        assert report.layout == 'convnextv2'
        assert m.norm_pix == (target == 'norm_pix')
        assert report.missing == ['encoder.head.norm.weight', 'encoder.head.norm.bias']
        assert not report.unexpected
        assert not report.assumed
        m = m.double()
        one, keys = x[k : k + 1], noise[k : k + 1]
        mask = m.draw_mask(one, keys)
        assert mask.mask[0].int().tolist() == want['mask']
        field = torch.zeros(9, 24, dtype=D)
        field[mask.keep[0]] = m.encode(one, mask).patches[0]
        near(field.T[:4], want['latent'])
        pred = m.predict(one, mask)
        near(pred[0].T[:4], want['pred'])
        near(pred.mean(), want['pred_mean'])
        near(pred.std(), want['pred_std'])
        opt = torch.optim.AdamW(
            [p for p in m.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05
        )
        loss = m(one, noise=keys)['loss']
        near(loss, want['loss'])
        loss.backward()
        losses.append(loss.detach())
        grads = {n: p.grad.norm() for n, p in m.named_parameters() if p.grad is not None}
        assert set(grads) == {official(n) for n in want['gradient_norms']}
        for name, norm in want['gradient_norms'].items():
            near(grads[official(name)], norm, 1e-5)
        opt.step()
        near(m(one, noise=keys)['loss'], want['loss_after_one_step'])
    both = load_method(path)[0].double()
    # GRN normalises each picture alone, unlike the official sparse layer
    close(both(x, noise=noise)['loss'], torch.stack(losses).mean(), 1e-9)
    assert official('proj.weight') == 'decoder.embed.weight'
    assert official('mask_token') == 'decoder.mask_token'


def test_without_hints_the_door_says_what_it_assumed(tmp_path):
    state = torch.load(official_file(tmp_path, True), weights_only=False)['model']
    torch.save(state, tmp_path / 'x.pt')
    m, report = load_method(tmp_path / 'x.pt')
    assert report.assumed == ['img_size=224', 'norm_pix=True']
    assert m.grid == (7, 7)
    assert load_method(tmp_path / 'x.pt', norm_pix=False, old_size=96)[0].grid == (3, 3)


def test_own_training_state_comes_in(tmp_path):
    m = tiny(norm_pix=False).eval()
    x = torch.randn(2, 3, 24, 24)
    torch.save(m.state_dict(), tmp_path / 'x.pth')
    again, report = load_method(tmp_path / 'x.pth', norm_pix=False, old_size=24)
    assert report.layout == 'vit_ssl_lab'
    assert not report.missing
    noise = torch.rand(2, 9)
    assert torch.equal(again(x, noise=noise)['loss'], m(x, noise=noise)['loss'])
    save(m, tmp_path / 'encoder.safetensors')
    with pytest.raises(ValueError, match='FCMAE'):
        load_method(tmp_path / 'encoder.safetensors')


@pytest.mark.parametrize('norm_pix', [False, True])
@pytest.mark.parametrize('grn', [True, False])
def test_loss_and_decoder_by_hand(norm_pix, grn):
    m = tiny(D, grn, norm_pix=norm_pix)
    x = torch.randn(2, 3, 24, 24, dtype=D)
    for b in m.decoder.blocks:  # nothing the identity by chance
        if grn:
            nn.init.normal_(b.mlp.grn.weight)
        else:
            nn.init.normal_(b.gamma)
    mask = random_masking(2, (3, 3), 0.6, generator=seeded(1))
    d = m.decoder
    seen = m.encoder(x, mask.keep).patches
    assert mask.keep.shape == (2, 3)
    field = d.mask_token.expand(2, 9, 16).clone()
    for b in range(2):
        for token, k in zip(seen[b], mask.keep[b]):
            field[b, k] = d.embed.weight @ token + d.embed.bias
    field = field.mT.reshape(2, 16, 3, 3)
    block = d.blocks[0]
    h = F.conv2d(field, block.conv_dw.weight, block.conv_dw.bias, padding=3, groups=16).permute(0, 2, 3, 1)
    h = F.gelu(
        F.linear(
            F.layer_norm(h, (16,), block.norm.weight, block.norm.bias, 1e-6),
            block.mlp.fc1.weight,
            block.mlp.fc1.bias,
        )
    )
    if grn:
        energy = h.square().sum((1, 2), keepdim=True).sqrt()
        h = (
            h
            + block.mlp.grn.bias
            + block.mlp.grn.weight * h * energy / (energy.mean(-1, keepdim=True) + 1e-6)
        )
    h = F.linear(h, block.mlp.fc2.weight, block.mlp.fc2.bias)
    if not grn:
        h = h * block.gamma
    pred = d.head((field + h.permute(0, 3, 1, 2)).flatten(2).mT)
    close(m.predict(x, mask), pred)
    target = patchify(x, 8)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (
            target.var(-1, unbiased=True, keepdim=True) + 1e-6
        ).sqrt()
    each = (pred - target).square().mean(-1)
    close(m(x, mask=mask)['loss'], (each * mask.mask).sum() / mask.mask.sum())


def test_loss_at_initialisation():
    "A prediction of zero costs (d-1)/d on normalised pixels, and their mean square on raw ones."
    x = torch.randn(8, 3, 24, 24, generator=seeded(0))
    for norm_pix, theory in ((True, 191 / 192), (False, 1.0)):
        m = tiny(norm_pix=norm_pix)
        nn.init.zeros_(m.decoder.head.weight)
        assert abs(m(x)['loss'].item() - theory) < (1e-4 if norm_pix else 0.05)


def test_hidden_pixels_reach_no_prediction():
    m = tiny()
    x = torch.randn(2, 3, 24, 24, requires_grad=True)
    mask = random_masking(2, (3, 3), 0.6)
    hidden = mask_to_pixels(mask.mask, 8, (3, 3)).expand(-1, 3, -1, -1) == 1
    m.predict(x, mask).square().sum().backward()
    assert x.grad[hidden].abs().max() == 0
    assert x.grad[~hidden].abs().sum() > 0
    assert torch.equal(m.predict(x, mask), m.predict(torch.where(hidden, -x, x), mask))


def test_every_weight_that_is_free_learns():
    for m in (tiny(), tiny(grn=False)):
        m(torch.randn(2, 3, 24, 24))['loss'].backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters() if p.requires_grad)
        assert [n for n, p in m.named_parameters() if not p.requires_grad] == [
            'encoder.head.norm.weight',
            'encoder.head.norm.bias',
        ]


def test_the_loop_trains_it_and_repeats_itself():
    data = load('scenes', 'train', n=64, size=24)
    small_recipe = recipe(
        'fcmae', 'laptop', steps=6, batch_size=16, log_every=1, data_options=dict(size=24), img_size=24
    )
    rows = []
    for _ in range(2):
        m = build(small_recipe, data)
        start = m.encoder.stages[0].blocks[0].conv_dw.weight.clone()
        rows.append([r['loss'] for r in pretrain(m, data, small_recipe, quiet=True, device='cpu').rows])
        assert not torch.equal(start, m.encoder.stages[0].blocks[0].conv_dw.weight)
    assert rows[0] == rows[1]
    small_recipe = fashion_mnist_variant(recipe('fcmae', 'laptop'))
    grey = load('digits')
    m = build(small_recipe, grey)
    assert m.grid == (7, 7)
    assert m(m.views(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)))['loss'].isfinite()


def test_recipes():
    paper = recipe('fcmae', 'paper')
    assert abs(paper.lr - 2.4e-3) < 1e-12
    assert paper.encoder == 'convnextv2_base'
    assert paper.method_options['mask_ratio'] == 0.6
    with torch.device('meta'):
        m = FCMAE(convnextv2_yocto(224, patch_size=32, stem_size=4))
    assert m.grid == (7, 7)
    assert m.decoder.head.out_features == 3072
    assert m.decoder.mask_token.shape == (1, 1, 512)
    assert len(m.decoder.blocks) == 1
    assert random_masking(1, (7, 7), m.mask_ratio).keep.shape == (1, 19)  # int(49 * 0.4)


def test_reconstruct():
    m = tiny()
    images = torch.randint(0, 256, (2, 3, 30, 24), dtype=torch.uint8, generator=seeded(0))
    a, b = (m.reconstruct(images, generator=seeded(3)) for _ in range(2))
    assert equal(a, b)
    assert a.input.shape == (2, 3, 24, 24)
    assert a.mask.shape == (2, 9)
    visible = mask_to_pixels(a.mask, 8, (3, 3)).expand(-1, 3, -1, -1) == 0
    assert torch.equal(a.composite[visible], a.input[visible])


def test_other_pairs_of_encoder_and_decoder():
    """MAE's decoder behind a convolutional network (the paper's ablation), and this decoder behind a
    transformer."""
    x = torch.randn(2, 3, 24, 24)
    for m in (
        MAE(convnextv2_yocto(24), 16, 1, 2),
        FCMAE(vit_nano(24, 8), decoder_width=16),
        tiny(decoder_depth=3),
        tiny(masking='block'),
    ):
        loss = m(x)['loss']
        loss.backward()
        assert loss.isfinite()
    assert all(isinstance(b, ConvNeXtBlock) for b in tiny(decoder_depth=3).decoder.blocks)


X = torch.randn(2, 3, 24, 24)


def build_with_stem(size):
    return build(recipe('fcmae', 'laptop', encoder_options=dict(stem_size=size)), load('scenes', 'test', n=4))


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: FCMAE(resnet_nano()), 'its convolutions need every place'),
        (lambda: FCMAE(nn.Identity()), 'vit and convnextv2'),
        (lambda: resnet_nano()(X, torch.zeros(2, 1, dtype=torch.int64)), '`keep` must be None'),
        (lambda: tiny(mask_ratio=1.0), '0 <= ratio < 1'),
        (lambda: tiny(mask_ratio=0.95), 'leaves none of 9'),
        (lambda: tiny(masking='cells'), 'There is no kind of masking'),
        (lambda: tiny(decoder_depth=0), 'one block or more'),
        (
            lambda: tiny()(X, mask=random_masking(2, (6, 6), 0.6)),
            'grid is 3 x 3, one place for every 8 x 8 pixels',
        ),
        (lambda: tiny()(X, noise=torch.rand(2, 36)), r'\(2, 9\)'),
        (lambda: tiny()(X[..., :20]), 'does not divide'),
        (lambda: tiny()(X[..., :16]), 'counts the 3 x 3 cells'),
        (lambda: tiny()(X[:, :1]), r'\(B, 3, H, W\)'),
        (lambda: FCMAE(convnextv2_yocto(50)), 'does not divide'),
        (lambda: ConvDecoder(8, (2, 3, 4), 12), 'rows.*columns'),
        (lambda: tiny()(X, mask=mask_from(torch.ones(2, 9))), 'leave at least one visible'),
        (lambda: build_with_stem(3), 'not 8: change patch_size or stem_size'),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)
