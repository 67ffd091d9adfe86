"""ConvNeXt V2: GRN against timm's and a sum by hand; the encoder against timm's network, and its visible
cells against a sparse convolution written site by site; official checkpoints; bad input."""

import argparse, itertools, json
from pathlib import Path
import helpers
from helpers import gradients, seeded, sine_state
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from vit_ssl_lab.components.masking import random_masking, gather_tokens
from vit_ssl_lab.components.norms import GRN
from vit_ssl_lab.components.patches import mask_to_pixels
from vit_ssl_lab.encoders import encoder as by_name
from vit_ssl_lab.encoders.convnextv2 import (
    ENCODERS,
    CONVNEXT_V1,
    ConvNeXtV2,
    convnextv2_atto,
    convnextv2_yocto,
)
from vit_ssl_lab.evaluation import random_encoder_like
from vit_ssl_lab.training.optim import layers_of
from vit_ssl_lab.weights import from_official_convnext, load_encoder, save

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'fcmae_official.json').read_text())
D = torch.float64


def pictures(dtype=D) -> torch.Tensor:
    i = np.arange(2 * 3 * 96 * 96)
    return torch.tensor(np.sin(i * 0.11) + np.cos(i * 0.013)).reshape(2, 3, 96, 96).to(dtype)


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    "Every parameter random, so that nothing is the identity by chance."
    g = seeded(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype) * (0.5 if p.ndim == 1 else 0.1))
    return net


def close(actual, expected, tolerance=1e-9):
    helpers.close(actual, expected, tolerance)


# --- GRN


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('dtype, eps', [(D, 1e-10), (torch.float32, 1e-5)])
def test_grn_equals_timm(last, dtype, eps):
    ours = GRN(6, channels_last=last).to(dtype)
    theirs = GlobalResponseNorm(6, channels_last=last).to(dtype)
    g = seeded(0)
    for m in (ours, theirs):
        g.manual_seed(0)
        nn.init.normal_(m.weight, generator=g)
        nn.init.normal_(m.bias, generator=g)
    shape = (3, 4, 5, 6) if last else (3, 6, 4, 5)
    x1 = torch.randn(shape, generator=seeded(1), dtype=dtype).requires_grad_()
    x2 = x1.detach().clone().requires_grad_()
    a = ours(x1)
    b = theirs(x2)
    close(a, b, eps)
    a.pow(3).sum().backward()
    b.pow(3).sum().backward()
    close(x1.grad, x2.grad, eps * 10)
    close(ours.weight.grad, theirs.weight.grad, eps * 10)
    close(ours.bias.grad, theirs.bias.grad, eps * 10)


def test_grn_by_hand():
    "Two channels with energies 3 and 5: the mean is 4, so their shares are 3/4 and 5/4."
    m = GRN(2).to(D)
    m.weight.data[:] = torch.tensor([2.0, 4.0])
    m.bias.data[:] = torch.tensor([0.5, 0.0])
    x = torch.tensor([[3.0, 0.0], [0.0, 5.0]], dtype=D)[None, None]  # (1, 1, 2, 2): energies 3 and 5
    close(
        m(x),
        torch.tensor([[3 * (1 + 2 * 0.75) + 0.5, 0.0], [0.5, 5 * (1 + 4 * 1.25)]], dtype=D)[None, None],
        1e-6,
    )
    assert torch.equal(GRN(5)(torch.ones(2, 3, 3, 5)), torch.ones(2, 3, 3, 5)), "the identity at the start"


def test_grn_does_not_count_hidden_places_and_gives_them_no_gradient_through_the_norm():
    m = shaken(GRN(4)).to(D)
    x = torch.randn(2, 3, 3, 4, dtype=D)
    mask = torch.zeros(2, 3, 3, dtype=D)
    mask[:, 0] = 1
    seen = x[:, 1:].clone().requires_grad_()
    x.requires_grad_()
    a = m(x, mask)[:, 1:]
    b = m(seen)
    close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    close(x.grad[:, 1:], seen.grad)
    assert x.grad[:, 0].abs().max() == 0


# --- the network is timm's


@pytest.mark.parametrize(
    'name, options',
    [
        ('convnextv2_atto', {}),
        ('convnext_atto', CONVNEXT_V1),
        ('convnextv2_tiny', {}),
        ('convnext_tiny', CONVNEXT_V1),
    ],
)
def test_equals_timm_with_gradients(name, options):
    small = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24))
    theirs = shaken(timm.create_model(name, num_classes=0, **small)).to(D).eval()
    ours = ConvNeXtV2(64, conv_mlp='atto' in name, **small, **options).to(D).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=D)
    f = ours(x)
    close(f.pooled, theirs(x))
    close(f.patches, theirs.forward_features(x).flatten(2).mT)
    f.pooled.square().sum().backward()
    theirs(x).square().sum().backward()
    grads = dict(theirs.named_parameters())
    for n, p in ours.named_parameters():
        close(p.grad, grads[n].grad, 1e-8)
    again = ConvNeXtV2.from_timm(theirs, 64)
    close(again(x).pooled, theirs(x))
    assert isinstance(
        getattr(theirs.stages[0].blocks[0].mlp, 'grn', GlobalResponseNorm(1)), GlobalResponseNorm
    ), 'what is given stays timm\'s'


@pytest.mark.parametrize(
    'name, millions',
    [
        ('atto', 3.7),
        ('femto', 5.2),
        ('pico', 9.1),
        ('nano', 15.6),
        ('tiny', 28.6),
        ('base', 89),
        ('large', 198),
        ('huge', 660),
    ],
)
def test_sizes_are_the_papers(name, millions):
    with torch.device('meta'):
        net = ENCODERS[f'convnextv2_{name}'](num_classes=1000)
        theirs = timm.create_model(f'convnextv2_{name}')
    assert abs(sum(p.numel() for p in net.parameters()) / 1e6 - millions) < (0.5 if millions > 50 else 0.05)
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_small_pictures():
    for size, patch, stem, grid, maps in (
        (48, 8, 2, (6, 6), (24, 12, 6, 6)),
        (32, 8, 1, (4, 4), (32, 16, 8, 4)),
        (28, 4, 2, (7, 7), (14, 7, 7, 7)),
        (48, 8, 8, (6, 6), (6, 6, 6, 6)),
        ((48, 24), 24, 3, (2, 1), None),
    ):
        net = convnextv2_yocto(size, patch_size=patch, stem_size=stem).eval()
        f = net(torch.randn(2, 3, *net.img_size))
        wide = net.expansions(torch.randn(1, 3, *net.img_size))
        assert f.grid == net.grid == grid
        assert f.patches.shape == (2, grid[0] * grid[1], 128)
        assert f.pooled.shape == (2, 128)
        if maps:
            assert [wide[i].shape[-1] for i in (0, 1, 2, 4)] == list(maps)
    assert by_name('convnextv2_yocto', img_size=24, patch_size=None, in_chans=1)(
        torch.randn(1, 1, 24, 24)
    ).grid == (3, 3)


# --- visible cells: a sparse convolution, site by site


def layer_norm(v, norm):
    return (v - v.mean()) / (v.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias


def sparse(net: ConvNeXtV2, image: torch.Tensor, keep: list[int]) -> torch.Tensor:  # (K, D)
    "One picture. Features live in a dictionary from place to vector; what is not in it does not exist."
    s = net.stem[0].stride[0]
    side = net.patch_size[0] // net.stem[0].stride[0]
    cols = net.grid[1]
    places = [
        (k // cols * side + i, k % cols * side + j) for k in keep for i in range(side) for j in range(side)
    ]
    w, b = net.stem[0].weight, net.stem[0].bias
    x = {
        (y, z): layer_norm(
            (w * image[None, :, y * s : y * s + s, z * s : z * s + s]).sum((1, 2, 3)) + b, net.stem[1]
        )
        for y, z in places
    }
    for stage in net.stages:
        if isinstance(stage.downsample, nn.Sequential):
            norm, conv = stage.downsample
            n = conv.stride[0]
            parents = {(y // n, z // n) for y, z in x}
            merged = {}
            for Y, Z in parents:
                merged[Y, Z] = conv.bias
                for i, j in itertools.product(range(n), range(n)):
                    child = layer_norm(x[Y * n + i, Z * n + j], norm)
                    merged[Y, Z] = merged[Y, Z] + conv.weight[:, :, i, j] @ child
            x = merged
        for block in stage.blocks:
            w = block.conv_dw.weight[:, 0]
            b = block.conv_dw.bias
            mlp = block.mlp
            h = {}
            for y, z in x:
                h[y, z] = b
                for i, j in itertools.product(range(-3, 4), range(-3, 4)):
                    if (y + i, z + j) in x:
                        h[y, z] = h[y, z] + w[:, i + 3, j + 3] * x[y + i, z + j]
            h = {
                p: F.gelu(mlp.fc1.weight.flatten(1) @ layer_norm(v, block.norm) + mlp.fc1.bias)
                for p, v in h.items()
            }
            if hasattr(mlp, 'grn'):
                energy = sum(v**2 for v in h.values()) ** 0.5
                h = {
                    p: mlp.grn.weight * v * (energy / (energy.mean() + 1e-6)) + mlp.grn.bias + v
                    for p, v in h.items()
                }
            h = {p: mlp.fc2.weight.flatten(1) @ v + mlp.fc2.bias for p, v in h.items()}
            x = {p: x[p] + (h[p] if block.gamma is None else block.gamma * h[p]) for p in x}
    return torch.stack([x[k // cols, k % cols] for k in keep])


SPARSE = [
    dict(img_size=(24, 32), patch_size=8, stem_size=2),
    dict(img_size=(24, 32), patch_size=8, stem_size=2, conv_mlp=True),
    dict(img_size=(24, 32), patch_size=8, stem_size=2, **CONVNEXT_V1),
    dict(img_size=(16, 24), patch_size=8, stem_size=1),
    dict(img_size=(64, 96)),
]


@pytest.mark.parametrize('options', SPARSE)
def test_visible_cells_are_a_sparse_convolution_in_values_and_gradients(options):
    net = shaken(ConvNeXtV2(depths=(1, 1, 2, 1), dims=(3, 4, 5, 6), **options)).to(D)
    images = torch.randn(2, 3, *net.img_size, dtype=D, generator=seeded(1)).requires_grad_()
    keep = random_masking(2, net.grid, 0.6, generator=seeded(2)).keep
    weight = torch.randn(2, keep.shape[1], 6, dtype=D, generator=seeded(3))
    results = []
    for form in (
        lambda: net(images, keep).patches,
        lambda: torch.stack([sparse(net, x, k.tolist()) for x, k in zip(images, keep)]),
    ):
        net.zero_grad()
        images.grad = None
        out = form()
        (out * weight).sum().backward()
        results.append(
            (
                out.detach(),
                images.grad.clone(),
                gradients(net),
            )
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-9)
    f = net(images, keep)
    close(f.pooled, F.layer_norm(f.patches.mean(1), (6,), net.head.norm.weight, net.head.norm.bias, 1e-6))
    assert f.grid == net.grid


def test_the_masked_dense_form_is_the_same_and_all_cells_are_the_plain_network():
    net = shaken(convnextv2_yocto(24)).to(D)
    x = torch.randn(2, 3, 24, 24, dtype=D)
    m = random_masking(2, net.grid, 0.6)
    y = net.stem(x)
    for stage in net.stages:
        y = stage.downsample(y)
        hidden = mask_to_pixels(m.mask, y.shape[-1] // 3, (3, 3)).to(D)
        for b in stage.blocks:
            h = b.norm(b.conv_dw(y * (1 - hidden)).permute(0, 2, 3, 1))
            y = y + b.mlp.fc2(b.mlp.grn(b.mlp.act(b.mlp.fc1(h)), hidden[:, 0])).permute(0, 3, 1, 2)
    close(net(x, m.keep).patches, gather_tokens(y.flatten(2).mT, m.keep))
    everything = torch.arange(9).expand(2, 9)
    close(net(x, everything).patches, net(x).patches)
    close(net(x, everything).pooled, net(x).pooled)
    turn = torch.randperm(m.keep.shape[1])
    close(net(x, m.keep[:, turn]).patches, net(x, m.keep).patches[:, turn])
    for i in range(2):
        # each picture by itself
        close(net(x[i : i + 1], m.keep[i : i + 1]).patches, net(x, m.keep).patches[i : i + 1])


def test_nothing_leaks_from_hidden_pixels():
    net = shaken(convnextv2_yocto(24))
    x = torch.randn(2, 3, 24, 24, requires_grad=True)
    m = random_masking(2, net.grid, 0.6)
    hidden = mask_to_pixels(m.mask, 8, (3, 3)).expand(-1, 3, -1, -1) == 1
    net(x, m.keep).patches.square().sum().backward()
    assert x.grad[hidden].abs().max() == 0
    assert x.grad[~hidden].abs().min() > 0
    x.grad = None
    gather_tokens(net(x).patches, m.keep).square().sum().backward()
    assert x.grad[hidden].abs().mean() > 1e-4, "a plain convolution does leak"
    assert torch.equal(
        net(x, m.keep).patches, net(torch.where(hidden, torch.full_like(x, 1e6), x), m.keep).patches
    )


def test_checkpointing_drop_path_and_half_precision():
    net = shaken(convnextv2_yocto(24))
    x = torch.randn(2, 3, 24, 24)
    keep = random_masking(2, net.grid, 0.6).keep
    plain = torch.autograd.grad(net(x, keep).patches.square().sum(), list(net.stages.parameters()))
    net.set_grad_checkpointing()
    for a, b in zip(
        plain, torch.autograd.grad(net(x, keep).patches.square().sum(), list(net.stages.parameters()))
    ):
        close(a, b, 1e-4)
    with torch.autocast('cpu', torch.bfloat16):
        assert (net(x, keep).patches.float() - net(x, keep).patches).isfinite().all()
    half = convnextv2_yocto(24)
    with torch.autocast('cpu', torch.bfloat16):
        a = half(x, keep).patches.float()
    close(a, half(x, keep).patches, 3e-2)
    dropped = shaken(convnextv2_yocto(24, drop_path_rate=0.9))
    torch.manual_seed(0)
    assert not torch.equal(dropped(x, keep).patches, dropped.eval()(x, keep).patches)


# --- initial weights, layers


def test_a_random_encoder_like_it():
    for options in ({}, CONVNEXT_V1):
        net = convnextv2_yocto(24, **options)
        learned = shaken(net)
        new = random_encoder_like(learned, 3)
        for name, p in new.named_parameters():
            if 'grn' in name or name.endswith('bias'):
                assert p.abs().max() == 0, name
            elif name.endswith('gamma'):
                assert (p == 1e-6).all()
            elif 'norm' in name or name.startswith('stem.1') or 'downsample.0' in name:
                assert (p == 1).all(), name
            else:
                assert 0 < p.std() < 0.03, name
                assert not torch.equal(p, dict(learned.named_parameters())[name]), name


def test_layers_are_the_official_ones():
    "optim_factory.py: get_num_layer_for_convnext_single, in this workbook's names."
    net = convnextv2_atto(64)
    layers, depth = layers_of(net)
    before = np.cumsum([0, 2, 2, 6, 2])
    assert depth == 12
    assert set(layers) == {n for n, _ in net.named_parameters()}
    for name, layer in layers.items():
        part = name.split('.')
        if part[0] in ('stem', 'head'):
            assert layer == (0 if part[0] == 'stem' else 13), name
            continue
        block = int(part[3]) if part[2] == 'blocks' else 0
        assert layer == before[int(part[1])] + 1 + block, name


# --- official checkpoints


def test_the_official_dense_network_comes_in(tmp_path):
    state = sine_state(GOLDEN['dense_shapes'])
    torch.save({'model': state, 'args': argparse.Namespace(input_size=96)}, tmp_path / 'x.pt')
    net, report = load_encoder(tmp_path / 'x.pt', num_classes=5)
    assert report.layout == 'convnextv2'
    assert not report.missing
    assert not report.unexpected
    assert not report.assumed
    assert net.grid == (3, 3)
    net = net.to(D)
    x = pictures()
    logits = net.head.fc(net(x).pooled)
    np.testing.assert_allclose(logits.detach().numpy(), GOLDEN['dense']['logits'], rtol=1e-5)
    logits.square().sum().backward()
    grads = {n: p.grad.norm().item() for n, p in net.named_parameters()}
    for name, norm in GOLDEN['dense']['gradient_norms'].items():
        np.testing.assert_allclose(
            grads[next(iter(from_official_convnext({name: torch.zeros(1, 1)})))], norm, rtol=1e-4
        )
    plain, report = load_encoder(tmp_path / 'x.pt', img_size=64)
    assert report.unexpected == ['head.fc.weight', 'head.fc.bias']
    assert plain.grid == (2, 2)


@pytest.mark.parametrize('name', ['convnextv2_atto', 'convnext_atto', 'convnextv2_tiny'])
def test_official_names_as_timm_reads_them(tmp_path, name):
    "A random official file, read by timm's own filter and by `load_encoder`: one network."
    from timm.models.convnext import checkpoint_filter_fn

    small = dict(depths=(1, 2, 1, 1), dims=(8, 12, 16, 24))
    version2 = 'v2' in name
    shapes = {k: v for k, v in GOLDEN['dense_shapes'].items() if not k.startswith('stages.2.1')}
    shapes |= {
        k.replace('stages.1.0', 'stages.1.1'): v for k, v in shapes.items() if k.startswith('stages.1.0')
    }
    if not version2:
        shapes = {k: v for k, v in shapes.items() if 'grn' not in k} | {
            f'{k[:-14]}.gamma': [v[0]] for k, v in shapes.items() if k.endswith('.dwconv.weight')
        }
    g = seeded(0)
    state = {k: torch.randn(v, generator=g) for k, v in shapes.items()}
    theirs = timm.create_model(name, num_classes=5, **small).eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs), strict=True)
    torch.save({'model': state}, tmp_path / 'x.pt')
    ours, report = load_encoder(tmp_path / 'x.pt', num_classes=5)
    assert not report.missing
    assert not report.unexpected
    assert report.assumed == ['img_size=224']
    x = torch.randn(2, 3, 64, 64)
    close(ours.head.fc(ours(x).pooled), theirs(x), 1e-3)


def test_out_and_in_again(tmp_path):
    ours = shaken(convnextv2_yocto(24)).eval()
    x = torch.randn(2, 3, 24, 24)
    for name in ('x.safetensors', 'x.pth'):
        again, report = load_encoder(save(ours, tmp_path / name))
        assert torch.equal(again(x).pooled, ours(x).pooled)
        assert not report.missing
        assert not report.unexpected
        assert not report.assumed
        assert again.img_size == (24, 24)
    atto = shaken(convnextv2_atto(64, depths=(1, 1, 1, 1))).eval()
    save(atto, tmp_path / 'folder')
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(load_encoder(tmp_path / 'folder')[0](x).pooled, atto(x).pooled)
    close(
        timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()(x), atto(x).pooled, 1e-4
    )


def test_timm_names(monkeypatch):
    source = shaken(timm.create_model('convnextv2_atto'))
    monkeypatch.setattr(
        'timm.models._builder.load_state_dict_from_hf', lambda *a, **k: dict(source.state_dict())
    )
    ours, report = load_encoder('timm:convnextv2_atto.fcmae_ft_in1k', img_size=64)
    x = torch.randn(1, 3, 64, 64)
    assert isinstance(ours, ConvNeXtV2)
    assert ours.grid == (2, 2)
    assert not report.missing
    close(ours(x).patches, source.eval().forward_features(x).flatten(2).mT, 1e-4)
    with pytest.raises(ValueError, match='Did you mean'):
        load_encoder('timm:convnextv2_ato')


# --- what must not work

X = torch.randn(2, 3, 24, 24)
KEEP = torch.tensor([[0, 1], [2, 3]])


@pytest.mark.parametrize(
    'do, message',
    [
        (lambda: convnextv2_yocto(50), 'does not divide into patches of 8 x 8'),
        (lambda: convnextv2_yocto(patch_size=7), 'not 7: change patch_size or stem_size'),
        (lambda: convnextv2_atto(64, stem_size=2, patch_size=32), 'not 32'),
        (lambda: convnextv2_yocto(24)(X[:, :1]), r'takes float pictures \(B, 3, H, W\)'),
        (lambda: convnextv2_yocto(24)(X.to(torch.uint8)), 'uint8'),
        (lambda: convnextv2_yocto(24)(X[..., :7]), '8 pixels or more'),
        (lambda: convnextv2_yocto(24)(X[..., :20], KEEP), 'does not divide'),
        (
            lambda: convnextv2_yocto(24)(X[..., :16], KEEP),
            'counts the 3 x 3 cells of a picture of 24 x 24 pixels, and these have 24 x 16',
        ),
        (lambda: convnextv2_yocto(24)(X, KEEP[:1]), 'one row a picture'),
        (lambda: convnextv2_yocto(24)(X, KEEP.float()), 'must be int64'),
        (lambda: convnextv2_yocto(24)(X, KEEP + 7), 'from 0 to 8'),
        (lambda: convnextv2_yocto(24)(X, KEEP[:, :0]), 'K from 1 to 9'),
        (lambda: by_name('convnextv2_yokto'), "Did you mean 'convnextv2_yocto'"),
        (lambda: ConvNeXtV2.from_timm('vit_tiny_patch16_224'), 'starts with convnext'),
        (lambda: ConvNeXtV2.from_timm('convnext_tiny', output_stride=16), 'overlap'),
        (lambda: GRN(4)(torch.zeros(2, 4, 3, 3)), 'has 3 on axis 3'),
        (lambda: GRN(4)(torch.zeros(2, 4)), 'needs places'),
        (lambda: save(convnextv2_yocto(), '/nowhere/x'), "stem of 2 pixels"),
        (lambda: save(convnextv2_atto(64), '/nowhere/x', 'transformers'), "timm's layout"),
    ],
)
def test_bad_input(do, message):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        do()
    assert '\n' not in str(e.value)
