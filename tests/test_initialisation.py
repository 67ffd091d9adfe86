"""How weights start: every parameter of every method, built with `init="paper"`, against the formulas of the
official code; who is asked, who keeps what it has learned."""

import inspect
import math
import re
import pytest
import torch
from torch import nn
from vit_ssl_lab.components.initialisation import init_as_published, init_mae
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.evaluation import random_encoder_like
from vit_ssl_lab.methods.base.distillation import SelfDistillation
from vit_ssl_lab.methods.byol import BYOL
from vit_ssl_lab.methods.mocov3 import RESNET50, RESNET50_LONGER, MoCoV3
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.recipe import SCALES
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training.build import method_class, method_names

pytestmark = pytest.mark.unit

SMALL_ENCODERS = {
    'vit': dict(encoder='vit_nano', patch_size=8, img_size=32),
    'resnet50': dict(encoder='resnet_nano', img_size=32),
    'resnet18': dict(encoder='resnet_nano', img_size=32),
    'swin': dict(encoder='swin_nano', patch_size=2, img_size=32),
    'convnextv2': dict(encoder='convnextv2_yocto', patch_size=8, img_size=32),
}
SMALL_OPTIONS = dict(
    hidden=96,
    dim=64,
    pred_dim=64,
    bottleneck=32,
    queue=64,
    decoder_width=64,
    decoder_depth=1,
    decoder_heads=2,
    num_classes=10,
)


def small_paper(method, **changes):
    "The paper's recipe with a small encoder and small heads, and data for it."
    r = recipe(method, 'paper')
    family = next(name for name in SMALL_ENCODERS if r.encoder.startswith(name))
    data = load('scenes', 'train', size=32, n=64)
    cls = method_class(method)
    accepted = set(inspect.signature(cls).parameters)
    if issubclass(cls, SelfDistillation):
        accepted |= set(inspect.signature(SelfDistillation).parameters)
    options = {name: value for name, value in SMALL_OPTIONS.items() if name in accepted}
    if method == 'maskfeat':
        options['target_options'] = dict(cell=4)
    if method == 'flip':
        options |= dict(text_encoder='text_nano', text_options=dict(own_words=True, act='gelu_tanh'))
    encoder_options = dict(r.encoder_options)
    small = r.but(data='scenes', **SMALL_ENCODERS[family]).but(
        encoder_options=encoder_options, method_options=options, **changes
    )
    if issubclass(cls, SelfDistillation):
        small = small.but(views_options=dict(local=2, local_size=16))
    return small, data


# --- distributions: each is (kind, number) of a parameter and of its layer's weight


def xavier(p, weight):
    return 'uniform', math.sqrt(6 / (p.shape[0] + p[0].numel()))


def xavier_qkv(p, weight):
    "moco-v3: queries, keys and values apart."
    return 'uniform', math.sqrt(6 / (p.shape[0] / 3 + p.shape[1]))


def torch_own(p, weight):
    "kaiming_uniform_(a=sqrt(5)), and its bias: 1 / sqrt(fan in)."
    return 'uniform', weight[0].numel() ** -0.5


def he_fan_out(p, weight):
    return 'normal', math.sqrt(2 / (p.shape[0] * p[0, 0].numel()))


def tensorflow(p, weight):
    return 'normal', p[0].numel() ** -0.5


def haiku(p, weight):
    return 'normal', 0.87962566 * p[0].numel() ** -0.5


def normal(std):
    return lambda p, weight: ('normal', std)


def constant(value):
    return lambda p, weight: ('constant', value)


SMALL_NORMAL, ZERO, ONE = normal(0.02), constant(0.0), constant(1.0)
NORMS = {r'norm\w*\.weight|ln_\w+\.weight': ONE, r'norm\w*\.bias|ln_\w+\.bias': ZERO}
MAE_PATCH = {r'patch_embed\.proj\.weight': xavier, r'patch_embed\.proj\.bias': torch_own}
XAVIER = {r'(?<!mask_)(?<!cls_)\bweight$': xavier, r'bias$': ZERO}
TOKENS = {r'cls_token|mask_token': SMALL_NORMAL}
TRUNCATED = {r'weight$': SMALL_NORMAL, r'bias$': ZERO}
TORCH_LINEAR = {r'weight$': torch_own, r'bias$': torch_own}
BATCH_NORM = {r'bn\d?\.weight|downsample\.1\.weight': ONE, r'bn\d?\.bias|downsample\.1\.bias': ZERO}
HEAD_NORM = {r'(^|\.)(1|4|7)\.weight$': ONE, r'(^|\.)(1|4|7)\.bias$': ZERO}
MAE = TOKENS | NORMS | MAE_PATCH | XAVIER
DECODER = TOKENS | NORMS | XAVIER
MOCOV3 = (
    {r'cls_token': normal(1e-6), r'qkv\.weight': xavier_qkv}
    | NORMS
    | {r'patch_embed\.proj\.weight': xavier}
    | XAVIER
)
DEIT = {r'cls_token|pos_embed': SMALL_NORMAL, r'patch_embed\.proj': torch_own} | NORMS | TRUNCATED
ZERO_LAST = {r'layer\d\.\d\.bn2\.weight': ZERO}  # of a basic block; the paper's bottleneck has bn3
TORCHVISION = BATCH_NORM | {r'weight$': he_fan_out}
DINO_HEAD = {r'original0': ONE, r'last_layer': torch_own} | TRUNCATED
PLAIN_HEAD = HEAD_NORM | TORCH_LINEAR

# method -> part -> the first pattern that is found in a parameter's name says its distribution
FORMULAS = {
    'mae': dict(encoder=MAE, decoder=DECODER),
    'supmae': dict(encoder=MAE, decoder=DECODER, classifier=HEAD_NORM | XAVIER),
    'occlusion': dict(encoder=MAE, decoder=DECODER, second_decoder=DECODER),
    'macrl': dict(encoder=MAE, decoder=DECODER, projector=PLAIN_HEAD),
    'cmae': dict(
        encoder=MAE, decoder=DECODER, feature_decoder=DECODER, projector=PLAIN_HEAD, predictor=PLAIN_HEAD
    ),
    'extrema': dict(
        encoder={r'gamma_': constant(0.1)} | MAE, projector=HEAD_NORM | XAVIER, predictor=HEAD_NORM | XAVIER
    ),
    'flip': dict(
        encoder=TOKENS | NORMS | XAVIER,
        text_encoder={r'token_embedding|positional_embedding': SMALL_NORMAL, r'in_proj_weight': xavier}
        | NORMS
        | XAVIER,
        image_head=XAVIER,
        text_head=XAVIER,
        scale={'log_scale': constant(math.log(1 / 0.07))},
    ),
    'maskfeat': dict(
        mask_token=TOKENS,
        encoder={
            r'cls_token|pos_embed': SMALL_NORMAL,
            r'patch_embed\.proj\.weight': SMALL_NORMAL,
            r'patch_embed\.proj\.bias': torch_own,
            r'^norm\.weight': ONE,
            r'^norm\.bias': ZERO,
            r'norm\d\.weight': ONE,
            r'bias$': constant(0.02),
            r'weight$': SMALL_NORMAL,
        },
        head=TRUNCATED,
    ),
    'mp3': dict(encoder=DEIT, head={r'0\.weight': ONE, r'1\.weight': normal(0.01), r'bias': ZERO}),
    'dino': dict(encoder=DEIT, projector=DINO_HEAD),
    'esvit': dict(
        encoder={r'relative_position_bias_table': SMALL_NORMAL, r'patch_embed\.proj': torch_own}
        | NORMS
        | TRUNCATED,
        projector=DINO_HEAD,
        dense=DINO_HEAD,
    ),
    'fcmae': dict(
        encoder={r'grn': ZERO, r'norm\.weight|stem\.1\.weight|downsample\.0\.weight': ONE} | TRUNCATED,
        decoder={r'mask_token': SMALL_NORMAL, r'grn': ZERO, r'norm\.weight': ONE} | TRUNCATED,
    ),
    'mocov3': dict(encoder=MOCOV3, projector=PLAIN_HEAD, predictor=PLAIN_HEAD),
    'sdssl': dict(encoder=MOCOV3, projector=PLAIN_HEAD, early_projectors=PLAIN_HEAD, predictors=PLAIN_HEAD),
    'simclr': dict(
        encoder=ZERO_LAST | BATCH_NORM | {r'weight$': tensorflow},
        projector=HEAD_NORM | {r'weight$': normal(0.01)},
    ),
    'byol': dict(
        encoder=BATCH_NORM | {r'weight$': haiku},
        projector=HEAD_NORM | {r'weight$': haiku, r'bias$': ZERO},
        predictor=HEAD_NORM | {r'weight$': haiku, r'bias$': ZERO},
    ),
    'moco': dict(encoder=TORCHVISION, projector=TORCH_LINEAR),
    'simsiam': dict(encoder=ZERO_LAST | TORCHVISION, projector=PLAIN_HEAD, predictor=PLAIN_HEAD),
    'momentum_projector': dict(encoder=ZERO_LAST | TORCHVISION, projector=PLAIN_HEAD),
}


def check(name, p, kind, number):
    "Mean, deviation and bounds of a drawn tensor, within five standard errors of the sample."
    p = p.detach().double()
    n = p.numel()
    if kind == 'constant':
        torch.testing.assert_close(
            p, torch.full_like(p, number), rtol=1e-6, atol=0, msg=f"{name}: not {number}"
        )
        return
    std = number if kind == 'normal' else number / math.sqrt(3)
    relative = math.sqrt(0.5 / n) if kind == 'normal' else math.sqrt(0.2 / n)
    measured = p.square().mean().sqrt().item()
    assert measured == pytest.approx(std, rel=5 * relative + 2e-3), f"{name}: {measured:.4g}, not {std:.4g}"
    assert abs(p.mean()) < 5 * std / math.sqrt(n), f"{name}: mean {p.mean():.3g}"
    if kind == 'uniform':
        assert p.abs().max() <= number * (1 + 1e-6), f"{name}: {p.abs().max():.4g} above {number:.4g}"


@pytest.mark.parametrize('method', method_names())
def test_every_parameter_starts_as_in_the_official_code(method):
    r, data = small_paper(method)
    assert r.init == 'paper'
    m = build(r, data)
    table = dict(FORMULAS[method])
    seen = set()
    for full, p in m.named_parameters():
        part, _, name = full.partition('.')
        if (
            part.startswith('momentum_')
            or part == 'target'
            or not p.requires_grad
            and name.endswith('pos_embed')
        ):
            continue
        rules = table[part]
        inner = name or part
        rule = next((draw for pattern, draw in rules.items() if re.search(pattern, inner)), None)
        assert rule is not None, f"no formula for {full}"
        weight = p
        if inner.endswith('bias') and rule is torch_own:
            weight = m.get_parameter(full.removesuffix('bias') + 'weight')
        check(full, p, *rule(p, weight))
        seen.add(part)
    assert seen == set(table), "a formula is for a part that isn't there"
    for name, copy in m.named_children():  # momentum copies start as their online part
        if name.startswith('momentum_') and copy is not None:
            online = m.get_submodule(name.removeprefix('momentum_')).state_dict()
            assert all(torch.equal(value, online[key]) for key, value in copy.state_dict().items()), name


def test_every_method_has_formulas():
    assert set(FORMULAS) == set(method_names())


def test_who_asks():
    """Every recipe for a GPU and of a paper; on a laptop all but the masked methods, which learn less from
    it in a minute. The same draws from the same seed."""
    for method in method_names():
        starts = {scale: recipe(method, scale).init for scale in SCALES}
        assert starts['gpu'] == starts['paper'] == 'paper', method
        masks = 'noise' in method_class(method).needs
        assert starts['laptop'] == starts['slow'] == ('default' if masks else 'paper'), method
    r, data = small_paper('mae')
    a, b = (build(r, data).state_dict() for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    other = build(r.but(init='default'), data)
    assert not torch.equal(other.encoder.blocks[0].attn.qkv.weight, a['encoder.blocks.0.attn.qkv.weight'])
    with pytest.raises(ValueError, match="There is no initialisation 'papper'. Did you mean 'paper'"):
        r.but(init='papper')


@pytest.mark.parametrize('method', ['mocov3', 'sdssl'])
def test_the_frozen_patch_projection_has_the_published_scale(method):
    "It keeps it for the whole run, and its bias is 0; PyTorch's own draw is another."
    r, data = small_paper(method, steps=2, batch_size=16, warmup=0)
    m = build(r, data)
    projection = m.encoder.patch_embed.proj
    assert not projection.weight.requires_grad
    published = math.sqrt(2 / (3 * 8 * 8 + 96))
    pretrain(m, data, r, quiet=True, device='cpu')
    assert projection.weight.std().item() == pytest.approx(published, rel=0.02)
    assert not projection.bias.any()
    default = build(r.but(init='default'), data).encoder.patch_embed.proj
    ratio = default.weight.std().item() / published
    assert ratio == pytest.approx(math.sqrt((192 + 96) / (2 * 3 * 192)), rel=0.02)
    assert default.bias.any()
    # at the paper's size: 16 x 16 patches, a width of 768
    assert math.sqrt((768 + 768) / (2 * 3 * 768)) == pytest.approx(0.58, abs=0.003)


def test_an_encoder_from_outside_is_never_drawn_anew():
    r, data = small_paper('mocov3')
    own = vit_nano(img_size=32, patch_size=8, positions='sincos')
    before = {key: value.clone() for key, value in own.state_dict().items()}
    m = build(r, data, encoder=own)
    assert m.encoder is own
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    by_hand = MoCoV3(own, hidden=32, dim=8)
    assert all(torch.equal(value, before[key]) for key, value in by_hand.encoder.state_dict().items())
    init_as_published(by_hand)  # until it is asked for
    assert not torch.equal(own.blocks[0].attn.qkv.weight, before['blocks.0.attn.qkv.weight'])
    with pytest.raises(ValueError, match="There is no part of the method 'encodr'"):
        init_as_published(by_hand, keep=('encodr',))


def test_a_family_of_which_the_paper_says_nothing_stays_as_built():
    vit = vit_nano(img_size=16, patch_size=8)
    before = vit.blocks[0].attn.qkv.weight.clone()
    m = init_as_published(SimCLR(vit, hidden=64, dim=64))
    assert torch.equal(vit.blocks[0].attn.qkv.weight, before)
    assert m.projector[0].weight.std().item() == pytest.approx(0.01, rel=0.05), "its head is the paper's"

    class Own(SimCLR):  # a method of one's own inherits; one that knows nothing changes nothing
        published_init = {}

    other = Own(encoder('resnet_nano'), hidden=32, dim=8)
    start = {key: value.clone() for key, value in other.state_dict().items()}
    assert all(torch.equal(v, start[k]) for k, v in init_as_published(other).state_dict().items())


def test_mocov3_on_a_resnet_and_with_a_convolutional_stem():
    resnet = init_as_published(MoCoV3(encoder('resnet_nano', img_size=32), hidden=32, dim=8)).encoder
    check('conv', resnet.layer3[0].conv1.weight, *he_fan_out(resnet.layer3[0].conv1.weight, None))
    stem = vit_nano(img_size=32, patch_size=8, stem='conv', positions='sincos')
    init_as_published(MoCoV3(stem, hidden=32, dim=8))
    for layer in stem.patch_embed.modules():
        if isinstance(layer, nn.Conv2d):
            check('stem', layer.weight, *torch_own(layer.weight, layer.weight))


@pytest.mark.parametrize('start', ['copy', 'random'])
def test_byol_s_target_starts_as_asked(start):
    m = BYOL(encoder('resnet_nano', img_size=32), hidden=64, dim=32, target=start)
    init_as_published(m)
    online, target = m.encoder.layer3[0].conv1.weight, m.momentum_encoder.layer3[0].conv1.weight
    assert torch.equal(online, target) is (start == 'copy')
    check('target', target, *haiku(target, None))
    head = m.momentum_projector[0]
    assert torch.equal(head.weight, m.projector[0].weight) is (start == 'copy')
    check('head', head.weight, *haiku(head.weight, None))
    assert not head.bias.any()


def test_the_untrained_twin_is_drawn_in_the_same_way():
    r, data = small_paper('mae')
    m = build(r, data)
    twin = random_encoder_like(m.encoder, seed=5)
    ours, theirs = m.encoder.blocks[0].attn.qkv.weight, twin.blocks[0].attn.qkv.weight
    assert not torch.equal(ours, theirs)
    check('twin', theirs, *xavier(theirs, None))
    plain = random_encoder_like(vit_nano(img_size=16, patch_size=8))
    check('plain', plain.blocks[0].attn.qkv.weight, 'normal', 0.02)


def test_the_method_of_the_encoder_is_the_function():
    vit = vit_nano(img_size=32, patch_size=8)
    torch.manual_seed(1)
    vit.init_mae()
    a = vit.blocks[0].mlp.fc1.weight.clone()
    torch.manual_seed(1)
    init_mae(vit)
    assert torch.equal(a, vit.blocks[0].mlp.fc1.weight)


def test_mocov3_on_a_resnet_has_the_official_commands():
    "CONFIG.md of facebookresearch/moco-v3: 100, 300 and 1000 epochs of ResNet-50, crops of 0.2 and more."
    short = recipe('mocov3', 'paper', **RESNET50)
    assert (short.encoder, short.epochs, short.batch_size, short.warmup) == ('resnet50', 100, 4096, 10)
    assert (short.optimizer, short.base_lr, short.weight_decay, short.decay_all) == ('lars', 0.6, 1e-6, False)
    assert short.optimizer_options == {} and short.momentum == 0.9
    assert short.method_options['temperature'] == 1.0 and short.method_options['momentum'] == 0.99
    assert short.views_options['scale'] == (0.2, 1.0)
    middle, long = (short.but(**RESNET50_LONGER[epochs]) for epochs in (300, 1000))
    assert (middle.epochs, middle.base_lr, middle.weight_decay) == (300, 0.3, 1e-6)
    assert (long.epochs, long.base_lr, long.weight_decay) == (1000, 0.3, 1.5e-6)
    assert long.method_options['momentum'] == 0.996 and middle.method_options['momentum'] == 0.99


def test_flip_s_gelu_is_flax_s():
    "flax.linen.gelu is the approximation by tanh; both towers of the paper's recipe have it."
    r, data = small_paper('flip')
    m = build(r, data)
    assert recipe('flip', 'paper').encoder_options['act_layer'] == 'gelu_tanh'
    assert recipe('flip', 'paper').method_options['text_options']['act'] == 'gelu_tanh'
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    for act in (m.encoder.blocks[0].mlp.act, m.text_encoder.transformer.resblocks[0].mlp.gelu):
        torch.testing.assert_close(act(x), tanh, rtol=1e-12, atol=1e-14)
    exact = build(r.but(encoder_options=dict(act_layer='gelu')), data).encoder.blocks[0].mlp.act
    assert (exact(x) - tanh).abs().max() > 1e-4
