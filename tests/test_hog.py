"""HOG against scikit-image, against numbers that the official layer gave, and against a loop over pixels;
what it does not see; the five targets; the tokenizer."""

import json, math
from functools import partial
from pathlib import Path
import helpers
from helpers import seeded
import numpy as np
import pytest
import torch
from skimage.feature import hog as skimage_hog
from torch import nn
from vit_ssl_lab.components.targets import (
    CodeTarget,
    FeatureTarget,
    HOGTarget,
    LabelTarget,
    PixelTarget,
    TARGETS,
    Target,
    make_target,
)
from vit_ssl_lab.components.patches import normalise_patches
from vit_ssl_lab.components.hog import gradient, hog, hog_strokes, patch_cells, unpatch_cells
from vit_ssl_lab.components.patches import patchify
from vit_ssl_lab.components.tokenizer import Codebook, Tokenizer, train_tokenizer
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.evaluation import Classifier

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'hog_official.json').read_text())


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def golden_picture(h, w):
    i = torch.arange(2 * 3 * h * w, dtype=torch.float64)
    return ((0.11 * i).sin() + (0.013 * i).cos() + 0.5 * (0.0007 * i * i % 1)).reshape(2, 3, h, w).float()


def weights(t):
    return ((torch.arange(t.numel()) * 0.6180339887) % 1).reshape(t.shape)


@pytest.mark.parametrize('case', ['224', '32x48'])
def test_official_numbers(case):
    want = GOLDEN[case]
    cells = hog(golden_picture(want['height'], want['width']), want['cell'])
    tokens = patch_cells(cells, want['grid'])

    close = partial(helpers.close, rtol=1e-7, atol=2e-6)
    assert list(cells.shape) == want['shape']
    assert list(tokens.shape) == want['tokens_shape']
    close(cells[0, 1, :, 2, 3], want['cell_0_1_2_3'])
    close(cells[1, 2, :, -1, -1], want['last_cell'])
    close(cells.mean((0, 1, 3, 4)), want['per_bin'])
    close(tokens[1, 7, :40], want['token_1_7_first_40'])
    close((cells.double() * weights(cells)).mean(), want['weighted'])
    close((tokens.double() * weights(tokens)).mean(), want['token_weighted'])


@pytest.mark.parametrize('norm', ['l1', 'l2'])
@pytest.mark.parametrize('bins, cell', [(6, 8), (9, 8), (9, 4), (12, 16)])
def test_scikit_image(norm, bins, cell):
    """The settings both share: plain difference, one cell a block.
    Its angles are counted from the other axis, so it gets the transposed picture."""
    x = 255 * noise(3, 1, 32, 48)
    theirs = np.stack(
        [
            skimage_hog(
                p[0].T.numpy(), bins, (cell, cell), (1, 1), block_norm=norm.upper(), feature_vector=False
            )[:, :, 0, 0]
            for p in x
        ]
    )
    torch.testing.assert_close(
        hog(x, cell, bins, norm, 'central')[:, 0], torch.tensor(theirs).permute(0, 3, 2, 1), atol=1e-6, rtol=0
    )


def test_a_loop_over_pixels():
    x = noise(12, 8)
    cell = 4
    bins = 9
    pad = np.pad(x.numpy(), 1, mode='reflect')
    out = np.zeros((bins, 3, 2))
    for r in range(12):
        for c in range(8):
            w = pad[r : r + 3, c : c + 3]
            s = np.array([1, 2, 1])
            gx = s @ (w[:, 0] - w[:, 2])
            gy = s @ (w[0] - w[2])
            out[math.floor(math.atan2(gx, gy) / math.pi * bins) % bins, r // cell, c // cell] += math.hypot(
                gx, gy
            )
    torch.testing.assert_close(
        hog(x[None, None], cell, norm='none')[0, 0], torch.tensor(out), atol=1e-10, rtol=0
    )


def test_what_it_does_not_see():
    x = noise(2, 3, 32, 48)
    for a, b in ((0.3, 0.5), (7.0, -1.0), (-1.0, 1.0)):
        torch.testing.assert_close(hog(a * x + b), hog(x), atol=1e-9, rtol=0)
    torch.testing.assert_close(hog(0.25 * x, norm='none'), 0.25 * hog(x, norm='none'), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        hog(x.rot90(1, (2, 3)), bins=8), hog(x, bins=8).rot90(1, (3, 4)).roll(4, 2), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(hog(x)[:, 1:2], hog(x[:, 1:2]), atol=0, rtol=0)  # a channel by itself
    assert hog(torch.full((1, 3, 16, 16), 0.7)).eq(0).all()
    assert torch.allclose(hog(x).norm(dim=2), torch.ones(2, 3, 4, 6, dtype=torch.float64))


def test_edges_by_hand():
    edge = torch.zeros(1, 1, 16, 16)
    edge[..., 4:] = 1.0
    votes = hog(edge, norm='none')[0, 0]
    # two columns of eight pixels, 4 each, in two cells
    assert votes[4, :, 0].tolist() == [64.0, 64.0]
    assert votes.sum() == 128
    assert hog(edge.mT)[0, 0, 0, 0].tolist() == [1.0, 1.0]
    strokes = hog_strokes(hog(edge), 9)[0]  # an upright edge is drawn upright
    assert strokes[:9, 4].sum() > 3 * strokes[4, :9].sum() - 2 * strokes[4, 4]
    assert strokes.shape == (18, 18)


def test_types_and_layout():
    x = noise(2, 3, 32, 48, dtype=torch.float32)
    assert hog(x.bfloat16()).dtype == torch.float32
    assert hog(x.double()).dtype == torch.float64
    assert not hog(x.requires_grad_()).requires_grad
    torch.testing.assert_close(
        hog(x.detach().to(memory_format=torch.channels_last)), hog(x.detach()), atol=1e-6, rtol=0
    )
    cells = hog(x.detach(), 4)
    tokens = patch_cells(cells, (4, 6))
    assert tokens.shape == (2, 24, 108)
    assert torch.equal(unpatch_cells(tokens, (4, 6)), cells)
    # patch (1, 3): colour, bin, cell row 0, cell column 1
    assert tokens[1, 9, (2 * 9 + 4) * 4 + 1] == cells[1, 2, 4, 2, 7]
    wide = patch_cells(cells, (4, 3))
    assert torch.equal(unpatch_cells(wide, (4, 3), cells=(2, 4)), cells)  # patches need not be square


def vit():
    torch.manual_seed(0)
    return vit_nano(img_size=(32, 48), patch_size=8, depth=1, embed_dim=24, num_heads=2)


def all_targets():
    teacher = vit()
    tokenizer = Tokenizer(8, size=16, width=8, dim=4).eval()
    return {
        'pixels': PixelTarget(8),
        'raw': PixelTarget(8, normalise=False, error='l1'),
        'hog': HOGTarget(8, cell=4),
        'features': FeatureTarget(8, teacher=teacher),
        'mse': FeatureTarget(8, teacher=teacher, distance='mse'),
        'labels': LabelTarget(8, teacher=teacher, head=nn.Linear(24, 7)),
        'hard': LabelTarget(8, teacher=teacher, head=nn.Linear(24, 7), hard=True),
        'codes': CodeTarget(8, tokenizer=tokenizer),
    }


@pytest.mark.parametrize('name', all_targets())
def test_every_target_keeps_the_interface(name):
    target = all_targets()[name].freeze()
    x = noise(2, 3, 32, 48, dtype=torch.float32)
    truth = target(x)
    assert truth.shape[:2] == (2, 24)
    assert truth.ndim == 2 or truth.shape[2] == target.width
    assert not truth.requires_grad
    assert target.name in TARGETS
    pred = torch.randn(2, 24, target.width, requires_grad=True)
    cost = target.cost(pred, truth)
    cost.sum().backward()
    assert cost.shape == (2, 24)
    assert cost.min() >= 0
    assert pred.grad.abs().sum() > 0
    best = target.constant(truth)
    for _ in range(5):  # no other constant is better
        other = target.best_constant(truth) + 0.1 * torch.randn(target.width)
        assert target.cost(other.expand(2, 24, -1), truth).mean() >= best - 1e-5
    target.train()
    assert not any(m.training for m in target.modules())
    assert not any(p.requires_grad for p in target.parameters())
    if target.has_picture:
        assert target.picture(pred.detach(), x, torch.zeros(2, 24), (4, 6)).shape == x.shape
    else:
        with pytest.raises(ValueError, match='says nothing about pixels'):
            target.picture(pred, x, torch.zeros(2, 24), (4, 6))


def test_costs_by_hand():
    targets = all_targets()
    x = noise(2, 3, 32, 48, dtype=torch.float32)
    torch.testing.assert_close(targets['pixels'](x), normalise_patches(patchify(x, 8))[0])
    assert torch.equal(targets['raw'](x), patchify(x, 8))
    f = targets['features'](x)
    other = torch.randn(2, 24, 24)
    torch.testing.assert_close(
        targets['features'].cost(other, f),
        2 - 2 * nn.functional.cosine_similarity(other, f, dim=-1),
        atol=1e-5,
        rtol=1e-5,
    )
    for name in ('labels', 'hard', 'codes'):
        t = targets[name]
        truth = t(x)
        shares = t.probabilities(truth).flatten(0, 1).mean(0)
        torch.testing.assert_close(
            t.cost(torch.zeros(2, 24, t.width), truth),
            torch.full((2, 24), math.log(t.width)),
            atol=1e-5,
            rtol=0,
        )
        torch.testing.assert_close(
            t.constant(truth), -(shares * shares.clamp(min=1e-12).log()).sum(), atol=1e-4, rtol=0
        )
    assert torch.equal(
        targets['hard'](x), targets['hard'].head(targets['hard'].teacher(x).patches).argmax(-1)
    )
    scaled = HOGTarget(8, cell=4, scale=3.0)
    torch.testing.assert_close(scaled(x), 3 * targets['hog'](x))
    torch.testing.assert_close(scaled.histograms(scaled(x), (4, 6)), hog(x, 4))


def test_a_classifier_of_the_workbook_gives_labels():
    c = Classifier(vit(), 5).eval()
    t = LabelTarget(8, teacher=c.encoder, head=c.head)
    assert t.width == 5
    assert t(noise(2, 3, 32, 48, dtype=torch.float32)).sum(-1).sub(1).abs().max() < 1e-5


def test_tokenizer_learns_and_repeats_itself():
    x = noise(64, 3, 32, 32, dtype=torch.float32).round()  # any pictures
    x = nn.functional.interpolate(x[..., :4, :4], scale_factor=8)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        t = Tokenizer(8, size=16, width=8, dim=4)
        rows = train_tokenizer(t, x, steps=40, batch_size=32)
        runs.append(t.encode(x))
    assert rows[-1]['error'] < 0.7 * rows[0]['error']
    assert torch.equal(*runs)
    assert t.decode(runs[0], (4, 4)).shape == x.shape
    assert not any(p.requires_grad for p in t.parameters())
    assert 0 <= runs[0].min()
    assert runs[0].max() < 16


def test_codebook_is_kmeans():
    book = Codebook(3, 2, decay=0.0, dead=0.0)
    z = noise(60, 2, dtype=torch.float32)
    book.codes.copy_(z[:3])
    numbers = book.nearest(z)
    book.update(z, numbers)
    torch.testing.assert_close(book.codes, torch.stack([z[numbers == i].mean(0) for i in range(3)]))


class Nothing(Target):
    name = 'nothing'


@pytest.mark.parametrize(
    'case, error, match',
    [
        (
            lambda: hog(torch.rand(1, 3, 28, 32)),
            ValueError,
            'Cells of 8 pixels do not divide a picture of 28 x 32',
        ),
        (lambda: hog(torch.rand(1, 3, 32, 32), cell=0), ValueError, 'Cells of 0 pixels'),
        (lambda: hog(torch.rand(1, 3, 32, 32), bins=0), ValueError, 'one bin or more'),
        (lambda: hog(torch.rand(1, 3, 32, 32), norm='l3'), ValueError, "Did you mean 'l2'"),
        (lambda: hog(torch.rand(2, 3, 4, 32, 32)), ValueError, 'frames of a clip go in as a batch'),
        (lambda: gradient(torch.rand(1, 1, 8, 8), 'sobell'), ValueError, "Did you mean 'sobel'"),
        (lambda: HOGTarget(12), ValueError, 'Cells of 8 pixels do not divide a patch of 12 x 12'),
        (lambda: HOGTarget((16, 12)), ValueError, 'a patch of 16 x 12'),
        (lambda: HOGTarget(16, bins=-1), ValueError, 'one bin or more'),
        (
            lambda: patch_cells(torch.rand(1, 3, 9, 6, 6), (4, 6)),
            ValueError,
            'the cell must divide the patch',
        ),
        (lambda: PixelTarget(8, error='l0'), ValueError, "Did you mean"),
        (lambda: FeatureTarget(8), ValueError, 'give teacher='),
        (lambda: FeatureTarget(8, teacher=nn.Linear(2, 2)), TypeError, 'Linear has no width'),
        (lambda: FeatureTarget(4, teacher=vit()), ValueError, 'both must be alike'),
        (lambda: FeatureTarget(8, teacher=vit(), distance='cos'), ValueError, "Did you mean 'cosine'"),
        (lambda: LabelTarget(8, teacher=vit()), ValueError, 'give head='),
        (lambda: CodeTarget(8), ValueError, 'give tokenizer='),
        (lambda: CodeTarget(8, tokenizer=Tokenizer(4)), ValueError, 'both must be alike'),
        (lambda: make_target('hogg', 8), ValueError, "Did you mean 'hog'"),
        (lambda: make_target(PixelTarget(8), 8, bins=3), ValueError, 'with a name only'),
        (lambda: make_target(PixelTarget(8), 4), ValueError, 'both must be alike'),
        (lambda: Nothing()(torch.zeros(1, 3, 8, 8)), NotImplementedError, 'does not say what the truth is'),
        (lambda: Tokenizer(8, size=1), ValueError, 'two codes or more'),
        (lambda: Tokenizer(8).encode(torch.rand(1, 1, 32, 32)), ValueError, 'number of channels'),
        (lambda: Tokenizer(8).encode(torch.rand(1, 3, 30, 32)), ValueError, 'does not divide'),
    ],
    ids=range(25),
)
def test_bad_input(case, error, match):
    with pytest.raises(error, match=match):
        case()
