"""Swin: equal to timm's where windows divide and to EsViT's official network at every size, sizes as
published, crops of several sizes, bad input."""

import json, math, re
from pathlib import Path
from helpers import sine
import pytest, timm, torch
from timm.models.swin_transformer import SwinTransformer
from vit_ssl_lab.data.views import default_views
from vit_ssl_lab.encoders import ENCODERS, encoder
from vit_ssl_lab.encoders.swin import Swin, SwinBlock, swin_base, swin_nano, swin_small, swin_tiny
from vit_ssl_lab.evaluation import Classifier, random_encoder_like
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.weights import load_encoder

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'swin_esvit_official.json').read_text())['outputs']


@pytest.mark.parametrize('size', GOLDEN)
def test_features_are_the_official_ones_at_every_size(size):
    "Pad, then roll: also where windows don't divide the grid."
    net = swin_nano(32, embed_dim=8, num_heads=(1, 2, 2)).double().eval()
    s = int(size)
    with torch.no_grad():
        for i, (k, p) in enumerate(sorted(net.named_parameters())):
            p.copy_(
                0.3 * sine(*p.shape, f=0.7 + 0.013 * i)
                + k.endswith(('norm.weight', 'norm1.weight', 'norm2.weight'))
            )
        f = net(sine(2, 3, s, s, f=0.37))
    want = GOLDEN[size]
    torch.testing.assert_close(
        f.pooled.flatten(), torch.tensor(want['pooled']).double(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        f.patches[1, :, ::5].flatten(), torch.tensor(want['regions']).double(), rtol=1e-5, atol=1e-6
    )
    assert list(f.grid) == want['grid']


def test_equal_to_timms_values_and_gradients():
    theirs = SwinTransformer(
        img_size=32,
        patch_size=2,
        num_classes=0,
        embed_dim=16,
        depths=(2, 2, 2),
        num_heads=(1, 2, 4),
        window_size=4,
        drop_path_rate=0.0,
    )
    ours = Swin.from_timm(theirs)
    x = torch.randn(3, 3, 32, 32)
    a = ours(x).pooled
    b = theirs(x)
    assert a.equal(b)
    a.square().sum().backward()
    b.square().sum().backward()
    for (k, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=k)
    assert list(swin_nano(embed_dim=16).state_dict()) == list(theirs.state_dict())


def test_sizes_are_the_published_ones():
    with torch.device('meta'):
        for make, millions in ((swin_tiny, 28), (swin_small, 49), (swin_base, 87)):
            assert round(sum(p.numel() for p in make().parameters()) / 1e6) == millions
    with torch.device('meta'):
        big = timm.create_model('swin_tiny_patch4_window7_224', num_classes=0)
        ours = swin_tiny()
    assert {k: v.shape for k, v in big.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    assert ours.grid == (7, 7)
    assert ours.layers[0].blocks[1].window_size == (7, 7)
    with torch.device('meta'):
        assert swin_tiny(384).layers[0].blocks[0].window_size == (12, 12)
        assert swin_tiny(window_size=14).layers[3].blocks[0].window_size == (7, 7)
    assert set(ENCODERS) >= {'swin_nano', 'swin_tiny', 'swin_small', 'swin_base'}
    assert encoder('swin_nano', img_size=48, patch_size=None).grid == (6, 6)


@pytest.mark.parametrize('size', [12, 16, 24, 32, 48, (16, 32)])
def test_crops_of_every_size(size):
    net = swin_nano(32).eval()
    h, w = (size, size) if isinstance(size, int) else size
    f = net(torch.randn(2, 3, h, w))
    assert f.grid == (math.ceil(h / 8), math.ceil(w / 8))
    assert f.patches.shape == (
        2,
        f.grid[0] * f.grid[1],
        96,
    )
    torch.testing.assert_close(f.pooled, f.patches.mean(1))
    both = net(torch.randn(1, 3, 32, 32))
    assert both.grid == net.grid  # another size in between changes nothing


def test_what_a_shifted_window_may_see():
    """In a padded crop too, a region on the left edge of stage 1 learns nothing of the right edge: the rolled
    windows are masked."""
    net = swin_nano(32, depths=(2,), num_heads=(1,), window_size=4).eval()
    x = torch.randn(1, 3, 28, 28, requires_grad=True)
    f = net(x)
    f.patches[0].unflatten(0, f.grid)[
        0, 0, 0
    ].backward()  # one number: the sum over a normalised vector is constant
    assert x.grad[0, :, :, 20:].abs().sum() == 0
    assert x.grad[0, :, :8, :8].abs().sum() > 0


def test_in_the_house():
    "A Siamese method, a random encoder like it and a classifier take it, and it takes grey pictures."
    net = swin_nano(32, embed_dim=8, num_heads=(1, 1, 2))
    SimCLR(net, hidden=16, dim=8, views=default_views(net, 'simclr'))(
        [torch.randn(4, 3, 32, 32) for _ in range(2)]
    )['loss'].backward()
    assert not random_encoder_like(net)(torch.ones(1, 3, 32, 32)).pooled.equal(
        net.eval()(torch.ones(1, 3, 32, 32)).pooled
    )
    assert all(type(m) is SwinBlock for m in net.modules() if 'Block' in type(m).__name__)
    assert Classifier(net, 5)(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert swin_nano(in_chans=1)(torch.randn(2, 1, 32, 32)).pooled.shape == (2, 96)


def test_through_the_weights_door(tmp_path):
    """The official code's names (a whole EsViT checkpoint: its teacher), timm's names, a timm name, another
    size."""
    torch.manual_seed(0)
    net = swin_nano(32).eval()
    x = torch.randn(2, 3, 32, 32)
    state = net.state_dict()
    want = net(x).pooled
    official = {
        'module.layers.0.blocks.1.attn_mask': torch.zeros(4, 16, 16),
        'module.head.mlp.0.weight': torch.zeros(8, 96),
    }
    for name, value in state.items():
        # the official code counts a downsampling layer with the stage before it
        name = re.sub(r'^layers\.(\d+)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', name)
        official[f'module.{name}'] = value
    torch.save(dict(teacher=official, student={}, epoch=3), tmp_path / 'esvit.pth')
    torch.save(state, tmp_path / 'timm.pth')
    as_timm = swin_nano(32, norm_layer=torch.nn.LayerNorm).eval()  # whose eps is 1e-5, EsViT's is 1e-6
    as_timm.load_state_dict(state)
    wanted = {'esvit.pth': want, 'timm.pth': as_timm(x).pooled}
    for name, layout, eps in (('esvit.pth', 'swin', 1e-6), ('timm.pth', 'timm', 1e-5)):
        loaded, report = load_encoder(tmp_path / name)
        assert report.layout == layout
        assert not report.missing
        assert report.assumed == ['img_size=32', f'eps={eps}']
        assert loaded(x).pooled.equal(wanted[name])
    assert report.unexpected == []
    assert load_encoder(tmp_path / 'esvit.pth')[1].unexpected == ['head.mlp.0.weight']
    larger, _ = load_encoder(tmp_path / 'timm.pth', img_size=48)
    assert larger.grid == (6, 6)
    assert larger(x).pooled.equal(as_timm(x).pooled)
    assert larger.layers[0].blocks[0].window_size == (4, 4)
    named, report = load_encoder('swin_tiny_patch4_window7_224', pretrained=False)
    assert isinstance(named, Swin)
    assert len(report.missing) == len(named.state_dict())
    assert named.grid == (7, 7)


@pytest.mark.parametrize(
    'case, match',
    [
        (
            lambda: swin_nano()(torch.randn(1, 3, 15, 16)),
            'crop of 15 x 16 pixels does not divide into patches of 2 x 2',
        ),
        (lambda: swin_nano()(torch.randn(1, 1, 32, 32)), 'in_chans'),
        (lambda: swin_nano()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), 'uint8'),
        (
            lambda: swin_nano()(torch.randn(1, 3, 32, 32), torch.zeros(1, 2, dtype=torch.int64)),
            "can't leave patches out",
        ),
        (lambda: swin_nano(window_size=3), "don't fit stage 1"),
        (lambda: swin_nano(28), 'multiple of 8'),
        (lambda: swin_tiny(100), 'multiple of 32'),
        (lambda: swin_nano(num_heads=(1,)), 'one number a stage'),
        (lambda: Swin.from_timm(timm.create_model('resnet10t')), 'not ResNet'),
    ],
)
def test_bad_input(case, match):
    with pytest.raises(ValueError, match=match):
        case()
