"""Views: every operation against torchvision and TensorFlow's formulas, presets against their published
figures, bad input."""

import colorsys
from collections import Counter
from dataclasses import fields
import helpers
from helpers import differing, equal, seeded
import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv
from vit_ssl_lab.data import operations as ops
from vit_ssl_lab.data.views import (
    PRESETS,
    ViewParams,
    MAEViews,
    Policy,
    ShiftedViews,
    Views,
    sample_params,
    views,
)

TOLERANCE = 1e-5
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def pictures(n=6, channels=3, height=41, width=57, seed=0):
    return torch.rand(n, channels, height, width, generator=seeded(seed))


def close(actual, expected, tolerance=TOLERANCE):
    helpers.close(actual, expected, rtol=0, atol=tolerance)


# --- crops


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(16, 16), (24, 40), (96, 64)])
def test_crop_equals_torchvision(mode, channels, size):
    x = pictures(channels=channels)
    boxes = ops.random_resized_crop_params(6, (41, 57), (0.08, 1.0), generator=seeded(1))
    flip = torch.arange(6) % 2 == 0
    theirs = torch.stack(
        [
            tv.resized_crop(p, *b.int().tolist(), list(size), InterpolationMode(mode), antialias=True).clamp(
                0, 1
            )
            for p, b in zip(x, boxes)
        ]
    )
    theirs[flip] = theirs[flip].flip(-1)
    close(ops.resized_crop(x, boxes, size, flip, mode), theirs)


def test_views_in_one_pass_equal_one_by_one():
    x = pictures()
    boxes = ops.random_resized_crop_params((3, 6), (41, 57), generator=seeded(2))
    flip = torch.rand(3, 6, generator=seeded(3)) < 0.5
    together = ops.resized_crop(x, boxes, 20, flip)
    for v in range(3):
        close(together[v], ops.resized_crop(x, boxes[v], 20, flip[v]), 1e-6)


def test_crop_without_antialias_is_plain_linear_interpolation():
    x = pictures(height=40, width=40)
    whole = ops.center_box((40, 40)).expand(6, 4)
    close(
        ops.resized_crop(x, whole, 16, antialias=False),
        torch.nn.functional.interpolate(x, size=(16, 16), mode='bilinear', antialias=False),
    )


def test_boxes_follow_torchvisions_distribution():
    ours = ops.random_resized_crop_params(4000, (60, 80), (0.08, 1.0), generator=seeded(0))
    torch.manual_seed(0)
    theirs = torch.tensor(
        [
            RandomResizedCrop.get_params(torch.empty(3, 60, 80), [0.08, 1.0], [3 / 4, 4 / 3])
            for _ in range(4000)
        ]
    ).float()
    for measure in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
    ):
        a, b = np.sort(measure(ours)), np.sort(measure(theirs))
        grid = np.concatenate([a, b])
        distance = np.abs(
            np.searchsorted(a, grid, 'right') / 4000 - np.searchsorted(b, grid, 'right') / 4000
        ).max()
        assert distance < 1.95 * (2 / 4000) ** 0.5  # Kolmogorov-Smirnov at 0.1 %


def test_a_box_that_never_fits_becomes_the_middle():
    boxes = ops.random_resized_crop_params(5, (10, 100), (1.0, 1.0), generator=seeded())
    assert boxes.tolist() == [[0, 43, 10, 13]] * 5  # the middle with the widest ratio, 4/3
    assert (
        ops.random_resized_crop_params(
            5, (10, 100), (1.0, 1.0), generator=seeded(), how='tensorflow'
        ).tolist()
        == [[0, 0, 10, 100]] * 5
    )
    assert (
        ops.random_resized_crop_params(5, (10, 100), (1.0, 1.0), (1.0, 1.0), seeded(), how='byol')[
            :, 2:
        ].tolist()
        == [[10, 32]] * 5
    )


def test_tensorflow_crops_keep_a_tenth_and_prefer_small():
    share = (
        ops.random_resized_crop_params(20000, (224, 224), (0.08, 1.0), generator=seeded(), how='tensorflow')[
            :, 2:
        ].prod(-1)
        / 224**2
    )
    assert share.min() >= 0.1
    assert (share < 0.3).float().mean() > 1.3 * ((share > 0.5) & (share < 0.7)).float().mean()


# --- colour, blur, solarize


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
@pytest.mark.parametrize('channels', [1, 3])
def test_factor_operations_equal_torchvision(name, channels):
    x = pictures(channels=channels)
    factor = torch.rand(6, generator=seeded(1)) * 2
    theirs = torch.stack([getattr(tv, f'adjust_{name}')(p, float(f)) for p, f in zip(x, factor)])
    close(getattr(ops, f'adjust_{name}')(x, factor), theirs)


def test_hue_equals_torchvision_and_colorsys():
    x = pictures()
    turn = torch.rand(6, generator=seeded(1)) - 0.5
    ours = ops.adjust_hue(x, turn)
    close(ours, torch.stack([tv.adjust_hue(p, float(t)) for p, t in zip(x, turn)]))
    h, s, v = colorsys.rgb_to_hsv(*x[0, :, 3, 4].tolist())
    close(ours[0, :, 3, 4], torch.tensor(colorsys.hsv_to_rgb((h + float(turn[0])) % 1, s, v)))
    # ties between channels, and no chroma at all
    flat = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [1, 0, 0], [1, 1, 0], [0, 1, 1]]).view(
        6, 3, 1, 1
    )
    close(ops.adjust_hue(flat, turn), torch.stack([tv.adjust_hue(p, float(t)) for p, t in zip(flat, turn)]))
    close(ops.adjust_hue(flat, 0.0), flat, 1e-6)


def test_tensorflow_dialect_is_hsv_and_channel_means():
    x = pictures(3, height=4, width=5)
    factor = torch.tensor([0.3, 1.4, 5.0])
    ours = ops.adjust_saturation(x, factor, 'tensorflow')
    for i in range(3):
        for r, c in [(0, 0), (1, 3), (3, 4)]:
            h, s, v = colorsys.rgb_to_hsv(*x[i, :, r, c].tolist())
            close(ours[i, :, r, c], torch.tensor(colorsys.hsv_to_rgb(h, min(1, s * float(factor[i])), v)))
    mean = x.mean((2, 3), keepdim=True)
    close(
        ops.adjust_contrast(x, factor, 'tensorflow'),
        ((x - mean) * factor.view(-1, 1, 1, 1) + mean).clamp(0, 1),
    )
    close(ops.adjust_brightness(x, factor, add=True), (x + factor.view(-1, 1, 1, 1) - 1).clamp(0, 1))


@pytest.mark.parametrize(
    'library, add', [('torchvision', False), ('tensorflow', False), ('tensorflow', True)]
)
@pytest.mark.parametrize('channels', [1, 3])
def test_jitter_is_the_four_operations_in_each_pictures_order(library, add, channels):
    x = pictures(24, channels)
    order = torch.cartesian_prod(*[torch.arange(4)] * 4)
    order = order[(order.sort(1).values == torch.arange(4)).all(1)]  # all 24 orders
    factors = torch.cat(
        [0.3 + 1.4 * torch.rand(24, 3, generator=seeded(1)), torch.rand(24, 1, generator=seeded(2)) - 0.5], 1
    )
    steps = [
        lambda p, f: ops.adjust_brightness(p, f, add),
        lambda p, f: ops.adjust_contrast(p, f, library),
        lambda p, f: ops.adjust_saturation(p, f, library),
        ops.adjust_hue,
    ]
    expected = []
    for p, f, o in zip(x, factors, order):
        p = p[None]
        for k in o:
            p = steps[k](p, f[k])
        expected.append(p[0])
    before = x.clone()
    close(ops.color_jitter(x, factors, order, library, add), torch.stack(expected))
    assert torch.equal(x, before)


@pytest.mark.parametrize('size', [(41, 57), (30, 30)])
def test_blur_equals_torchvision_and_zero_leaves_alone(size):
    x = pictures(height=size[0], width=size[1])
    sigma = torch.tensor([0.0, 0.1, 0.7, 1.3, 2.0, 4.0])
    ours = ops.gaussian_blur(x, sigma, 23)
    assert torch.equal(ours[0], x[0])
    close(
        ours[1:],
        torch.stack([tv.gaussian_blur(p, [23, 23], [float(s)] * 2) for p, s in zip(x[1:], sigma[1:])]),
    )


def test_blur_with_black_border_is_a_zero_padded_convolution():
    x = pictures(2)
    s = 1.5
    taps = torch.exp(-(torch.arange(-5.0, 6) ** 2) / (2 * s * s))
    taps /= taps.sum()
    kernel = (taps[:, None] * taps).expand(3, 1, 11, 11)
    close(
        ops.gaussian_blur(x, torch.tensor([s, s]), 11, 'black'),
        torch.nn.functional.conv2d(x, kernel, padding=5, groups=3),
    )


def test_blur_that_repeats_the_edge_is_pil_s_up_to_its_boxes():
    """A replicated padding in front of torchvision's blur, exactly; PIL approximates the Gaussian by three
    boxes on 8-bit pixels, and is as near at the rim as inside, where a mirrored blur is further off."""
    from PIL import Image, ImageFilter

    x = pictures(2, height=40, width=52)
    for s in (0.6, 1.0, 2.0):
        sigma = torch.tensor([s, s])
        padded = torch.nn.functional.pad(x, (6, 6, 6, 6), mode='replicate')
        expected = tv.gaussian_blur(padded, [13, 13], [s, s])[..., 6:-6, 6:-6]
        ours = ops.gaussian_blur(x, sigma, 13, 'edge')
        close(ours, expected)
    # where mirroring and repeating differ
    ramp = torch.linspace(0.3, 1, 52).expand(1, 3, 40, 52).contiguous()
    pil = Image.fromarray((ramp[0] * 255).byte().permute(1, 2, 0).numpy()).filter(
        ImageFilter.GaussianBlur(2.0)
    )
    pil = torch.tensor(np.asarray(pil)).permute(2, 0, 1) / 255
    off = {b: (ops.gaussian_blur(ramp, torch.tensor([2.0]), 13, b)[0] - pil).abs() * 255 for b in ops.BORDERS}
    assert off['edge'][..., :3].mean() < 1.1
    assert off['edge'][..., :3].mean() < off['mirror'][..., :3].mean() < off['black'][..., :3].mean()
    assert off['edge'].mean() < 1.0


def test_each_preset_has_the_border_of_its_library():
    from vit_ssl_lab.data.views import PRESETS

    for name in ('mocov2', 'simsiam', 'mocov3', 'dino', 'cmae'):
        assert all(policy.border == 'edge' for policy in PRESETS[name]), name  # PIL
    for name in ('simclr', 'byol'):
        assert all(policy.border == 'black' for policy in PRESETS[name]), name  # TensorFlow


def test_grey_and_solarize_equal_torchvision():
    x = pictures()
    some = torch.tensor([True, False] * 3)
    for ours, theirs in [
        (ops.to_grey(x, some), tv.rgb_to_grayscale(x, 3)),
        (ops.solarize(x, some), tv.solarize(x, 0.5)),
    ]:
        close(ours[some], theirs[some])
        assert torch.equal(ours[~some], x[~some])


# --- views


def test_every_preset_makes_its_views_for_grey_and_colour():
    count = dict(
        mae=1, mocov2=2, simsiam=2, mocov3=2, byol=2, simclr=2, dino=10, extrema=2, cmae=2, macrl=2, none=1
    )
    assert count.keys() == PRESETS.keys()
    for name in PRESETS:
        for channels in (1, 3):
            images = (pictures(3, channels) * 255).byte()
            v = views(name, 32, MEAN[:channels], STD[:channels], generator=seeded())
            out = v(images)
            out = [out] if name == 'mae' else out
            assert len(out) == count[name]
            assert out[0].shape == (3, channels, 32, 32)
            assert all(torch.isfinite(o).all() for o in out)
            assert all(v.restore(o).min() >= 0 and v.restore(o).max() <= 1 for o in out)


@pytest.mark.parametrize('name', [n for n in PRESETS if n not in ('mae', 'none')])
def test_presets_probabilities_and_ranges_come_out(name):
    n = 8000
    for p, d in zip(PRESETS[name], views(name, 64, MEAN, STD).sample(n, (64, 64), seeded(1))):
        came = dict(
            flip=d.flip,
            grey=d.grey,
            blur=d.sigma > 0,
            solarize=d.solarize,
            jitter_p=(d.factors != torch.tensor([1.0, 1, 1, 0])).any(1),
        )
        for field, on in came.items():
            share = on.float().mean().item()
            wanted = getattr(p, field) if field != 'jitter_p' or any(p.jitter) else 0.0
            assert abs(share - wanted) <= 4.5 * (wanted * (1 - wanted) / n) ** 0.5, (name, field, share)
        on = d.factors[came['jitter_p']]
        middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
        if any(p.jitter):
            close(on.amax(0), middle + torch.tensor(p.jitter), 0.01)
            close(on.amin(0), middle - torch.tensor(p.jitter), 0.01)
        blurred = d.sigma[d.sigma > 0]
        if p.blur:
            assert 0.1 <= blurred.min() < 0.2
            assert 1.9 < blurred.max() <= 2
        assert max(Counter(map(tuple, d.order.tolist())).values()) < 1.3 * n / 24
        assert len(set(map(tuple, d.order.tolist()))) == 24
        # there a view is a window of the crop
        area = d.box[:, 2:].prod(-1) / 64**2 * ((64 + 9) / 64) ** (2 * (name == 'cmae'))
        assert area.min() > p.scale[0] * 0.9
        assert area.max() < p.scale[1] * 1.05


def test_shifted_views_are_windows_of_one_crop():
    """Against making the larger crop and cutting it, as the official pipeline does; a window's rim, as wide
    as the kernel, doesn't see beyond it."""
    x = pictures(6, 3, 60, 60)
    m = 7
    v = views('cmae', 48, MEAN, STD, jitter=(0.0, 0.0, 0.0, 0.0), grey=0.0, blur=0.0)
    draws = v.sample(6, (60, 60), seeded(5))
    crop = sample_params(v.policies[0], 6, (60, 60), seeded(5))
    assert (v.margin, v.shift) == (m, m - 1)
    assert torch.equal(draws[0].flip, draws[1].flip)
    larger = ops.resized_crop(x, crop.box, 48 + m, crop.flip, 'bicubic')
    a, b = v.pixels(x, draws)
    step = crop.box[:, 2:] / (48 + m)
    offset = (draws[1].box - draws[0].box)[:, :2] / step
    down = offset[:, 0].round().int()
    right = torch.where(crop.flip, -offset[:, 1], offset[:, 1]).round().int()
    assert down.min() >= 0
    assert right.min() >= 0
    assert max(down.max(), right.max()) < m
    for i in range(6):
        rim = int(2 * max(1.0, 1 / step[i].min().item())) + 2
        inner = slice(rim, 48 - rim)
        close(a[i][:, inner, inner], larger[i, :, :48, :48][:, inner, inner], 1e-4)
        close(
            b[i][:, inner, inner],
            larger[i, :, down[i] : down[i] + 48, right[i] : right[i] + 48][:, inner, inner],
            1e-4,
        )


def test_shifts_are_uniform_and_a_part_is_as_in_the_whole():
    v = views('cmae', 48, MEAN, STD, generator=seeded(7))
    draws = v.sample(7000, (60, 80))
    step = draws[0].box[:, 2:] / 48
    offset = (draws[1].box - draws[0].box)[:, :2] / step
    offset[:, 1] *= 1 - 2 * draws[0].flip.float()
    for axis in offset.round().int().T:
        assert axis.unique().tolist() == list(range(7))
        assert axis.bincount().min() > 850
    x = pictures(6, 3, 60, 60)
    draws = v.sample(6, (60, 60))
    for whole, part in zip(v(x, draws), v(x[2:4], [d.take(slice(2, 4)) for d in draws])):
        close(whole[2:4], part)
    still = views('cmae', 48, MEAN, STD, jitter=(0.0, 0.0, 0.0, 0.0), grey=0.0, blur=0.0, shift=0)
    close(*still(x))


def test_published_figures():
    moco = PRESETS['mocov2'][0]
    v3a, v3b = PRESETS['mocov3']
    b1, b2 = PRESETS['byol']
    simclr = PRESETS['simclr'][0]
    dino = PRESETS['dino']
    assert not differing(
        moco, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey=0.2, blur=0.5, solarize=0
    )
    for a, b in [(v3a, v3b), (b1, b2), dino[:2]]:
        assert (a.blur, b.blur, a.solarize, b.solarize) == (1.0, 0.1, 0.0, 0.2)
        assert a.jitter == b.jitter == (0.4, 0.4, 0.2, 0.1)
    assert v3a.scale == b1.scale == simclr.scale == (0.08, 1.0)
    assert simclr.jitter == (0.8, 0.8, 0.8, 0.2)
    assert dino[0].scale == (0.4, 1.0)
    assert [p.scale for p in dino[2:]] == [(0.05, 0.4)] * 8
    assert dino[2].blur == 0.5
    assert dino[2].solarize == 0
    assert views('dino', 224, MEAN, STD).sizes[2:] == [(96, 96)] * 8
    assert PRESETS['mae'][0].scale == (0.2, 1.0)
    assert PRESETS['mae'][0].mode == 'bicubic'
    assert not any(PRESETS['mae'][0].jitter)


def test_view_equals_torchvision_step_by_step():
    "One whole MoCo v2 view, picture by picture, from the kept draw."
    v = views('mocov2', 24, MEAN, STD)
    x = pictures(12)
    draws = v.sample(12, (41, 57), seeded(3))
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for d, ours in zip(draws, v(x, draws)):
        for i in range(12):
            p = tv.resized_crop(x[i], *d.box[i].int().tolist(), [24, 24], antialias=True)
            if d.flip[i]:
                p = tv.horizontal_flip(p)
            for k in d.order[i]:
                p = steps[k](p, float(d.factors[i, k]))
            if d.grey[i]:
                p = tv.rgb_to_grayscale(p, 3)
            if d.sigma[i] > 0:
                padded = torch.nn.functional.pad(p[None], (6, 6, 6, 6), mode='replicate')[0]  # as PIL
                p = tv.gaussian_blur(padded, [13, 13], [float(d.sigma[i])] * 2)[:, 6:-6, 6:-6]
            close(ours[i], tv.normalize(p, MEAN, STD), 1e-4)


def test_parts_of_a_batch_change_nothing(monkeypatch):
    v = views('dino', 32, MEAN, STD)
    x = pictures(9)
    draws = v.sample(9, (41, 57), seeded(1))
    whole = v(x, draws)
    # `vit_ssl_lab.data.views` is the function there, not the module
    monkeypatch.setitem(Views.pixels.__globals__, 'CACHE', 1)
    for a, b in zip(whole, v(x, draws)):
        close(a, b, 1e-5)


def test_generator_decides_everything():
    x = pictures()

    def run(seed):
        return views('byol', 32, MEAN, STD, generator=seeded(seed))(x)

    torch.manual_seed(0)
    a = run(1)
    torch.manual_seed(5)
    b = run(1)
    assert equal(a, b)
    assert not torch.equal(a[0], run(2)[0])


def test_each_picture_has_its_own_parameters():
    d = sample_params(PRESETS['byol'][0], 64, (64, 64), seeded())
    assert len({tuple(b) for b in d.box.tolist()}) > 50
    assert len(set(d.sigma.tolist())) == 64
    assert len({tuple(f) for f in d.factors.tolist()}) > 40


def test_prepare_and_restore():
    v = MAEViews(32, MEAN, STD)
    x = (pictures(2, height=32, width=32) * 255).round().byte()
    close(v.restore(v.prepare(x)), x / 255)
    assert v.prepare(pictures(2)).shape == (2, 3, 32, 32)


def test_mask_and_points_follow_the_view():
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 10:20, 10:30] = 1
    d = ViewParams(torch.tensor([[10.0, 10, 20, 20]]), torch.tensor([True]), *[None] * 5)
    seen = d.warp(mask, 10)
    assert seen[0, 0, :4].min() == 1
    assert seen[0, 0, 6:].max() == 0
    assert d.to_source(torch.tensor([[[0.5, 0.0], [0.0, 1.0]]])).tolist() == [[[20.0, 30.0], [10.0, 10.0]]]


@pytest.mark.parametrize(
    'field', [f.name for f in fields(Policy) if f.name not in ('crop', 'kernel', 'size')]
)
def test_changes_reach_every_view(field):
    other = dict(
        scale=(0.5, 0.6),
        ratio=(1.0, 1.0),
        mode='bicubic',
        antialias=False,
        flip=0.1,
        jitter=(0.0, 0, 0, 0),
        jitter_p=0.3,
        library='tensorflow',
        add=True,
        grey=0.7,
        blur=0.3,
        sigma=(1.0, 1.5),
        border='black',
        solarize=0.9,
        threshold=0.4,
        shared=True,
    )[field]
    assert [getattr(p, field) for p in views('mocov2', 32, MEAN, STD, **{field: other}).policies] == [
        other
    ] * 2


# --- bad input: one sentence


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda: views('mocov', 32, MEAN, STD), "Did you mean 'mocov"),
        (lambda: views('mae', 32, MEAN, STD, colour=1), "no field of Policy"),
        (lambda: views('byol', 32, MEAN, STD, local=3), "no small views"),
        (lambda: MAEViews(32, MEAN, STD)(torch.zeros(2, 1, 32, 32)), "pictures of 3 channel"),
        (lambda: MAEViews(32, MEAN, STD)(torch.zeros(3, 32, 32)), r"shape \(B, C, H, W\)"),
        (lambda: Views(32, MEAN, (1.0,), [Policy()]), "one value a channel"),
        (lambda: Views(32, MEAN, STD, []), "at least one"),
        (
            lambda: views('cmae', 48, MEAN, STD, shift=9),
            "shift of up to 9 pixels goes beyond the border: the crop is 7 pixels larger",
        ),
        (lambda: views('cmae', 48, MEAN, STD, margin=-4), "goes beyond the border"),
        (lambda: views('mae', 48, MEAN, STD, shift=2), "no field of Policy 'shift'"),
        (lambda: ShiftedViews(48, MEAN, STD, [Policy()] * 3), "got 3 policies"),
        (lambda: Policy(flip=-0.1), "flip is a probability"),
        (lambda: Policy(jitter=(1, 1, 1, 1)), "hue in 0..0.5"),
        (lambda: Policy(sigma=(0.0, 1.0)), "sigma is a range"),
        (lambda: Policy(scale=(0.5, 2.0)), "scale is a range"),
        (lambda: Policy(library='pil'), "no library"),
        (lambda: ops.resized_crop(torch.zeros(2, 3, 8, 8), torch.zeros(3, 4), 8), "need boxes"),
        (lambda: ops.blur_matrix(torch.ones(1), 4, 9), "odd and at most"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert '\n' not in str(error.value)


def test_integer_pictures_are_refused():
    with pytest.raises(TypeError, match="convert them first"):
        MAEViews(8, MEAN, STD)(torch.zeros(1, 3, 8, 8, dtype=torch.int32))
