"""A method built without views takes its paper's, at any size of picture and patch and for any number of
channels: it makes a step, or says in one sentence why it can't. Views of one's own can be shown, too."""

import inspect
from math import prod
import pytest
import torch
from helpers import seeded
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.transforms import v2
from vit_ssl_lab.data.views import default_views, plain_views, statistics_of
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.encoders.text import text_encoder
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.methods.maskfeat import MaskFeat
from vit_ssl_lab.methods.extrema import ExtreMA
from vit_ssl_lab.methods.mp3 import MP3
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.training.build import method_class, method_names

pytestmark = pytest.mark.unit

VIT = dict(embed_dim=24, depth=2, num_heads=2)
SMALL = dict(  # options of a method in miniature; what its constructor doesn't take is left out
    hidden=16, dim=8, pred_dim=8, bottleneck=8, decoder_width=16, decoder_depth=1, decoder_heads=2, queue=8
)
OWN = {  # what a method needs beside an encoder
    'supmae': dict(num_classes=2),
    'mp3': dict(encoder=dict(positions='none', class_token=False, global_pool='avg')),
    'dino': dict(encoder=dict(dynamic_img_size=True)),
    'esvit': dict(encoder=dict(dynamic_img_size=True)),
    'maskfeat': dict(target='pixels'),
}
PLACES = ((28, 7), (28, 14), (32, 4), (48, 16), (64, 8), ((32, 64), 16), (96, 16), (112, 14), (224, 16))
CHANNELS = (1, 3, 4)


def make(name, img_size, patch_size, channels):
    own = dict(OWN.get(name, {}))
    options = own.pop('encoder', {})
    cls = method_class(name)
    if name == 'fcmae':
        e = encoder('convnextv2_yocto', img_size=img_size, patch_size=patch_size, in_chans=channels)
    else:
        e = encoder('vit_nano', img_size=img_size, patch_size=patch_size, in_chans=channels, **VIT, **options)
    parameters = dict(inspect.signature(cls).parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for base in cls.__mro__[1:]:
            parameters |= dict(inspect.signature(base.__init__).parameters) if base is not object else {}
    small = {option: value for option, value in SMALL.items() if parameters.get(option) is not None}
    if 'text_encoder' in parameters:
        small['text_encoder'] = text_encoder('text_nano', width=16, layers=1, heads=2)
    return cls(e, **small, **own)


def step(method, images):
    needed = {}
    if 'noise' in method.needs:
        needed['noise'] = torch.rand(len(images), *method.noise_shape, generator=seeded(0))
    if 'labels' in method.needs:
        needed['labels'] = torch.arange(len(images)) % 2
    if 'captions' in method.needs:
        needed['captions'] = method.tokenize(['a picture'] * len(images))
    loss = method(method.views(images), **needed)['loss']
    loss.backward()
    return loss


@pytest.mark.parametrize('name', method_names())
def test_every_method_makes_a_step_with_its_default_views(name):
    said = {}
    for number, (img_size, patch_size) in enumerate(PLACES):
        channels = CHANNELS[number % 3]
        side = (img_size, img_size) if isinstance(img_size, int) else img_size
        if prod(side) > 100**2 and name not in ('dino', 'mae', 'simclr', 'cmae'):
            continue  # the larger sizes are tried with one method of each kind of views
        torch.manual_seed(0)
        images = torch.randint(0, 256, (2, channels, *side), dtype=torch.uint8, generator=seeded(1))
        try:
            method = make(name, img_size, patch_size, channels)
        except ValueError as e:
            said[img_size, patch_size] = str(e)
            continue
        assert step(method, images).isfinite(), (img_size, patch_size, channels)
    assert {place: sentence for place, sentence in said.items() if place not in EXPECTED.get(name, {})} == {}
    for place, sentence in EXPECTED.get(name, {}).items():
        assert sentence in said[place]


EXPECTED = {  # method -> the places at which it can't be built as it stands, and why
    'cmae': {  # its masks hide groups of 2 x 2 patches
        (28, 14): 'A mask ratio of 0.65 leaves none of 1 patches visible',
        ((32, 64), 16): 'A mask ratio of 0.65 leaves none of 2 patches visible',
        (48, 16): "Groups of 2 x 2 patches don't tile a grid of 3 x 3",
    },
    'extrema': {(28, 14): 'A mask ratio of 0.8 leaves none of 4 patches visible'},
    'fcmae': {
        (28, 7): 'give places of 2, 4, 8 or 16 pixels, not 7',
        (28, 14): 'give places of 2, 4, 8 or 16 pixels, not 14',
    },
}


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 13])
def test_default_statistics_are_imagenet_s(channels):
    made = default_views(encoder('resnet_nano', img_size=32, in_chans=channels), 'mocov2')
    mean = made.mean.tolist()
    expected = {1: IMAGENET_DEFAULT_MEAN[1:2], 3: IMAGENET_DEFAULT_MEAN}
    average = (sum(IMAGENET_DEFAULT_MEAN) / 3,) * channels
    torch.testing.assert_close(mean, list(expected.get(channels, average)))
    assert len(made.std) == channels and made.std.mean().item() == pytest.approx(
        sum(IMAGENET_DEFAULT_STD) / 3, abs=0.002
    )


@pytest.mark.parametrize('img_size', [28, 32, 48, 56, 64, 96, 112, 224])
@pytest.mark.parametrize('patch_size', [4, 7, 8, 14, 16])
def test_dino_s_small_crops_are_whole_patches(img_size, patch_size):
    if img_size % patch_size:
        pytest.skip("this patch doesn't divide the picture")
    e = encoder('vit_nano', img_size=img_size, patch_size=patch_size, dynamic_img_size=True, **VIT)
    large, *_, small = default_views(e, 'dino').sizes
    assert large == (img_size, img_size)
    assert small[0] % patch_size == 0 and abs(small[0] - img_size * 96 / 224) <= max(
        patch_size / 2, patch_size - 12
    )
    e.check_input(torch.zeros(1, 3, *small))


def test_dino_at_224_pixels_is_as_published():
    assert (
        default_views(encoder('vit_nano', img_size=224, patch_size=16, **VIT), 'dino').sizes[2:]
        == [(96, 96)] * 8
    )


class Own(nn.Module):
    "One view, as somebody else would make it."

    def __init__(self, mean, std):
        super().__init__()
        self.steps = nn.Sequential(v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std))

    def forward(self, images):
        return self.steps(images)


MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.mark.parametrize(
    'own', [Own(MEAN, STD), v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])]
)
def test_reconstruct_takes_views_of_one_s_own(own):
    vit = encoder('vit_nano', img_size=32, patch_size=8, **VIT)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=seeded(0))
    assert statistics_of(own) is not None
    for method in (
        MAE(vit, views=own, decoder_width=16, decoder_depth=1, decoder_heads=2, norm_pix=False),
        MaskFeat(vit, target='pixels', views=own),
    ):
        found = method.reconstruct(images)
        torch.testing.assert_close(found.input, images / 255, rtol=0, atol=1e-5)
        x = plain_views(own, vit).prepare(images)
        torch.testing.assert_close(x, own(images), rtol=1e-5, atol=1e-5)


def test_other_looks_at_a_method_take_them_too():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=seeded(0))
    own = Own(MEAN, STD)
    blind = encoder(
        'vit_nano', img_size=32, patch_size=8, positions='none', class_token=False, global_pool='avg', **VIT
    )
    assert MP3(blind, views=own).locate(images).shape == (3, 16, 16)
    seen = ExtreMA(encoder('vit_nano', img_size=32, patch_size=8, **VIT), views=own, hidden=16, dim=8)
    assert seen.guess(images).cosine.shape[1] == 3


@pytest.mark.parametrize(
    'own, sentence',
    [
        (nn.Identity(), "Identity doesn't say how it normalises 3"),
        (Own([0.5] * 2, [0.5] * 2), 'give it mean and std of pixels'),
    ],
)
def test_views_that_do_not_say_how_they_normalise_are_refused(own, sentence):
    vit = encoder('vit_nano', img_size=32, patch_size=8, **VIT)
    mae = MAE(vit, views=own, decoder_width=16, decoder_depth=1, decoder_heads=2)
    with pytest.raises(ValueError, match=sentence):
        mae.reconstruct(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_views_are_found_on_the_encoder_s_device_and_of_its_size():
    vit = encoder('vit_nano', img_size=(24, 32), patch_size=8, **VIT)
    plain = plain_views(Own([0.5], [0.5]), vit)
    assert plain.prepare(torch.zeros(2, 3, 50, 70, dtype=torch.uint8)).shape == (2, 3, 24, 32)
    assert SimCLR(vit, hidden=8, dim=8).views.sizes[0] == (24, 32)
