"The ResNet against timm's and torchvision's: same weights, same pictures; and encoders by name."

import re
from dataclasses import replace
from pathlib import Path

from helpers import differing, equal, seeded, weights
import pytest
import timm
import torch
import torchvision

from vit_ssl_lab import encoders
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders import ENCODERS, convnextv2, encoder, resnet, swin, vit
from vit_ssl_lab.encoders.resnet import ResNet, resnet18, resnet50, resnet_nano
from vit_ssl_lab.evaluation import random_encoder_like, score_table
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.methods import mae


def pictures(n=3, channels=3, size=(33, 65), seed=0):
    return torch.randn(n, channels, *size, generator=seeded(seed))


def alive(model):
    """Away from the special values of initialisation: zero gammas hide whole branches, fresh statistics hide
    the norms."""
    g = seeded(1)
    for p in model.parameters():
        p.data.normal_(std=0.1, generator=g)
    for name, b in model.named_buffers():
        if name.endswith('running_mean'):
            b.normal_(std=0.1, generator=g)
        if name.endswith('running_var'):
            b.uniform_(0.5, 2.0, generator=g)
    return model


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_equals_timm_bit_for_bit(name, training):
    theirs = alive(timm.create_model(name, num_classes=0)).train(training)
    ours = encoder(name).train(training)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = pictures()
    f = ours(x)
    maps = theirs.forward_features(x)
    assert torch.equal(f.patches, maps.flatten(2).mT)
    assert f.grid == (2, 3)
    pooled = theirs.forward_head(maps)
    assert torch.equal(f.pooled, pooled)
    torch.testing.assert_close(f.patches.mean(1), f.pooled, rtol=1e-5, atol=1e-5)
    w = torch.randn(f.pooled.shape, generator=seeded(2))
    (f.pooled * w).sum().backward()
    (pooled * w).sum().backward()
    for (n, a), b in zip(theirs.named_parameters(), ours.parameters()):
        assert torch.equal(a.grad, b.grad), n


def test_equals_torchvision():
    theirs = alive(torchvision.models.resnet18(num_classes=5)).eval()
    ours = resnet18(num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = pictures()
    torch.testing.assert_close(ours.fc(ours(x).pooled), theirs(x), rtol=1e-5, atol=1e-5)


def test_same_chance_same_weights():
    "The ImageNet stem is timm's own, so a seed draws timm's weights."
    torch.manual_seed(0)
    theirs = timm.create_model('resnet18', num_classes=0)
    torch.manual_seed(0)
    ours = resnet18()
    assert equal(theirs.parameters(), ours.parameters())


@pytest.mark.parametrize('stem,stride', [('small', 8), ('imagenet', 32)])
@pytest.mark.parametrize('size', [(48, 48), (28, 28), (33, 50), (64, 65)])
def test_grid_is_known_before_the_first_picture(stem, stride, size):
    e = resnet_nano(img_size=size, stem=stem, in_chans=1).eval()
    f = e(pictures(1, 1, size))
    assert f.grid == e.grid
    assert e.stride == stride
    assert f.patches.shape == (1, f.grid[0] * f.grid[1], e.width)
    assert e.width == 128


def test_small_stem_by_hand():
    "One 3x3 convolution of stride 1 and no pool, as wide as the first stage; the rest has timm's names."
    e = resnet_nano()
    assert not differing(
        e.conv1, in_channels=3, out_channels=16, kernel_size=(3, 3), stride=(1, 1), bias=None
    )
    x = pictures(2, size=(48, 48))
    assert torch.equal(e.eval().maxpool(x), x)
    assert e.forward_features(x).shape == (2, 128, 6, 6)
    assert [i['reduction'] for i in e.feature_info] == [1, 1, 2, 4, 8]
    assert set(resnet18(stem='small').state_dict()) == set(resnet18().state_dict())
    std = e.conv1.weight.std().item()
    assert std == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.15), (
        "He's, by fan-out, as every other convolution"
    )


@pytest.mark.parametrize('zero', [True, False])
def test_last_norms_and_a_random_encoder(zero):
    """A fresh copy keeps the encoder's setting of its last norms; all weights differ, and the original
    is left alone."""
    e = resnet_nano(zero_init_last=zero)

    def last(m):
        return [b.bn2.weight for s in (m.layer1, m.layer2, m.layer3, m.layer4) for b in s]

    assert all((w == (0 if zero else 1)).all() for w in last(e))
    before = weights(alive(e))
    new = random_encoder_like(e, seed=3)
    assert all((w == (0 if zero else 1)).all() for w in last(new))
    assert not new.training
    assert equal(e.state_dict(), before)
    for name, p in new.named_parameters():
        assert not torch.equal(p, before[name]), name
        if p.ndim == 4:
            assert p.std().item() == pytest.approx((2 / (p.shape[0] * p[0, 0].numel())) ** 0.5, rel=0.2), name
    assert (new.bn1.running_mean == 0).all()
    assert (new.bn1.running_var == 1).all()
    again = random_encoder_like(e, seed=3)
    assert equal(new.parameters(), again.parameters())


def test_from_timm():
    theirs = timm.create_model('seresnext26t_32x4d', num_classes=0).eval()
    ours = ResNet.from_timm(theirs, img_size=(64, 96))
    x = pictures()
    assert torch.equal(ours(x).pooled, theirs(x))
    assert ours(x).grid == ours.grid
    assert ours is not theirs
    assert type(theirs) is not ResNet
    assert ResNet.from_timm('resnet18').img_size == (224, 224)
    wide = ResNet.from_timm('resnet18', output_stride=16, img_size=64).eval()
    assert wide(pictures(1, size=(64, 64))).grid == wide.grid == (4, 4)
    assert random_encoder_like(ours)(x).pooled.isfinite().all()


def test_evaluation_takes_it():
    train, test = load('digits'), load('digits', split='test')
    e = resnet_nano(img_size=8, in_chans=1).eval()
    table = score_table(e, train, test, k=5)
    assert list(table.rows) == ['encoder', 'raw pixels', 'random encoder']
    assert e.grid == (1, 1)


def test_explorers_that_need_attention_refuse_it():
    from vit_ssl_lab.explorers.attention import AttentionExplorer
    from vit_ssl_lab.explorers.positions import PositionExplorer

    with pytest.raises(ValueError, match="ResNet has no row of blocks, each of which attends"):
        AttentionExplorer(resnet_nano(), torch.rand(2, 3, 48, 48))
    with pytest.raises(ValueError, match="ResNet has no table of positions"):
        PositionExplorer(resnet_nano())


@pytest.mark.parametrize(
    'make,message',
    [
        (
            lambda: resnet_nano()(pictures(2, size=(48, 48)), torch.zeros(2, 3, dtype=torch.int64)),
            "can't leave patches out",
        ),
        (lambda: resnet_nano()(pictures(2, 1)), r"takes float pictures \(B, 3, H, W\)"),
        (lambda: resnet_nano()(torch.zeros(2, 3, 48, 48, dtype=torch.uint8)), "got torch.uint8"),
        (lambda: resnet18(patch_size=16), "no patches to cut"),
        (lambda: resnet50(stem='smal'), "Did you mean 'small'"),
        (lambda: ResNet(block='bottel'), "Did you mean 'bottleneck'"),
        (lambda: ResNet(layers=(1, 1, 1)), "one number a stage"),
        (lambda: ResNet.from_timm('vit_tiny_patch16_224'), "starts with resnet"),
        (lambda: vit.ViT.from_timm('resnet18'), "starts with vit_ or deit_"),
        (lambda: encoder('resnet81'), "Did you mean 'resnet18'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message) as e:
        make()
    assert '\n' not in str(e.value)


# --- encoders by name


def test_registry_is_the_modules():
    assert {name: encoders.family(name) for name in ENCODERS} == {
        name: m.__name__.rpartition('.')[2] for m in (vit, resnet, convnextv2, swin) for name in m.ENCODERS
    }
    assert type(encoder('vit_nano', img_size=48, patch_size=8)) is vit.ViT
    assert encoder('vit_nano', patch_size=None).patch_size == (4, 4)


def test_looking_up_is_cheap():
    "The face of the folder imports the families of timm, but no text encoder: open_clip takes seconds."
    assert not re.search(r'^(import|from) .*(open_clip|\btext\b)', Path(encoders.__file__).read_text(), re.M)


class Plain(torch.nn.Module):
    "The least that can be trained: vectors that shrink."

    needs = ()

    def __init__(self, encoder, views):
        super().__init__()
        self.encoder, self.views = encoder, views

    def forward(self, x):
        return dict(loss=self.encoder(x).pooled.square().mean())

    def after_step(self, progress): ...


def test_a_recipe_changes_family(monkeypatch):
    """The ViT's options and patches stay behind, and a ViT of another size keeps them; the weights are drawn
    from the seed."""
    monkeypatch.setattr(mae, 'METHOD', Plain)
    data = load('digits')
    r = recipe('mae', 'laptop', encoder='resnet_nano', data='digits', img_size=8, steps=2, batch_size=16)
    assert r.encoder_options == {}
    assert r.patch_size is None
    r = replace(r, method_options={})
    a, b = build(r, data), build(r, data)
    assert isinstance(a.encoder, ResNet)
    assert equal(a.parameters(), b.parameters())
    h = pretrain(a, data, r, quiet=True, device='cpu')
    assert h.finished
    assert not torch.equal(a.encoder.conv1.weight, b.encoder.conv1.weight)
    assert recipe('mae', 'laptop', encoder='vit_tiny').encoder_options == {'positions': 'sincos'}
