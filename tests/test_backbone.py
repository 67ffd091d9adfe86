"""Any timm network is an encoder: it trains a step in SimCLR; where its tokens can be dropped also in MAE,
equal to attention in which hidden tokens are masked; where they can't, the reason is the right one."""

import copy
import pickle
import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from vit_ssl_lab.components.masking import gather_tokens, random_masking
from vit_ssl_lab.encoders import backbone, encoder, timm_encoder
from vit_ssl_lab.encoders.convnextv2 import ConvNeXtV2
from vit_ssl_lab.encoders.resnet import ResNet
from vit_ssl_lab.encoders.swin import Swin
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.evaluation.features import random_encoder_like
from vit_ssl_lab.methods.byol import BYOL
from vit_ssl_lab.methods.dino import DINO
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.methods.maskfeat import MaskFeat
from vit_ssl_lab.methods.moco import MoCo
from vit_ssl_lab.methods.mocov3 import MoCoV3
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.methods.simsiam import SimSiam
from vit_ssl_lab.data.views import views

pytestmark = pytest.mark.unit

TOKENS = dict(img_size=64, embed_dim=48, depth=2, num_heads=2)
STAGES = dict(img_size=64, embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)
MAP = 'convolutions, pooling or windows make its last map'
BIASES = 'biases between all pairs of places'
NEIGHBOURS = 'convolutions inside it need the neighbours'

NETWORKS = [  # timm's name, options that make it small, why no patch can be left out ('': it can)
    ('test_vit', dict(img_size=64), ''),
    ('test_vit4', dict(img_size=64), ''),
    ('deit_tiny_patch16_224', dict(img_size=64, depth=2), ''),
    ('deit_tiny_distilled_patch16_224', dict(img_size=64, depth=2), ''),
    ('deit3_small_patch16_224', TOKENS, ''),
    ('vit_base_patch16_siglip_224', TOKENS, ''),
    ('vit_base_patch32_clip_224', TOKENS, ''),
    ('vit_small_patch14_reg4_dinov2', TOKENS | dict(img_size=56), ''),
    ('vit_small_patch16_dinov3', TOKENS, ''),
    ('vit_small_plus_patch16_dinov3', TOKENS, ''),
    ('eva02_tiny_patch14_224', TOKENS | dict(img_size=56), ''),
    ('eva_giant_patch14_224', TOKENS | dict(img_size=56), ''),
    ('vit_small_patch16_rope_224', TOKENS, ''),
    ('vit_small_patch16_rope_mixed_ape_224', TOKENS, ''),
    ('vit_pe_core_tiny_patch16_384', TOKENS, ''),
    ('naflexvit_base_patch16_gap', TOKENS, ''),
    ('naflexvit_base_patch16_map', TOKENS, ''),
    ('cait_xxs24_224', TOKENS, ''),
    ('test_convnext', dict(img_size=64), ''),
    ('test_efficientnet', dict(img_size=64), MAP),
    ('test_byobnet', dict(img_size=64), MAP),
    ('test_nfnet', dict(img_size=64), MAP),
    ('test_mambaout', dict(img_size=64), MAP),
    ('test_resnet', dict(img_size=64), 'its convolutions need every place'),
    ('mobilenetv4_conv_small_050', dict(img_size=64), MAP),
    ('mobilenetv3_small_050', dict(img_size=64), MAP),
    ('regnetx_002', dict(img_size=64), MAP),
    ('resnetv2_18', dict(img_size=64), MAP),
    ('convnext_atto_ols', dict(img_size=64), MAP),
    ('swin_tiny_patch4_window7_224', STAGES, 'its windows need every place'),
    ('swinv2_tiny_window8_256', STAGES, MAP),
    ('coatnet_0_rw_224', dict(img_size=64, embed_dim=(32,) * 4, depths=(1,) * 4, stem_width=16), MAP),
    ('hiera_tiny_224', dict(img_size=64, embed_dim=16, stages=(1, 1, 1, 1)), NEIGHBOURS),
    ('beit_base_patch16_224', TOKENS, BIASES),
    ('vit_relpos_small_patch16_224', TOKENS, BIASES),
    ('xcit_nano_12_p16_224', dict(img_size=64, depth=2), NEIGHBOURS),
    ('vit_tiny_r_s16_p8_224', dict(img_size=64, depth=2), 'its stem HybridEmbed'),
    ('mixer_s32_224', dict(img_size=64), 'matrices of a fixed size'),
    ('poolformer_s12', dict(img_size=64), MAP),
    ('pvt_v2_b0', dict(img_size=64), MAP),
]
NAMES = [name for name, _, _ in NETWORKS]


def make(name):
    options = dict(zip(NAMES, [options for _, options, _ in NETWORKS]))[name]
    torch.manual_seed(0)
    return timm_encoder(name, **options).eval()


def pictures(encoder, n=4, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, *encoder.img_size), dtype=torch.uint8, generator=generator)


def trains(method, images):
    "One step of SGD: a finite loss, and a gradient for every weight that is trained."
    method.train()
    weights = [p for p in method.parameters() if p.requires_grad]
    loss = method(method.views(images))['loss']
    loss.backward()
    assert loss.isfinite()
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    torch.optim.SGD(weights, lr=0.01).step()


@pytest.mark.parametrize('name, reason', [(name, reason) for name, _, reason in NETWORKS])
def test_a_timm_network_trains_in_simclr_and_masks_or_says_why_not(name, reason):
    e = make(name)
    x = torch.randn(2, 3, *e.img_size)
    features = e(x)
    rows, columns = features.grid
    assert features.pooled.shape == (2, e.width) and features.patches.shape == (2, rows * columns, e.width)
    assert (rows, columns) == e.grid
    why = getattr(e, 'needs_every_place', '')
    assert reason in why and bool(reason) == bool(why)
    if reason:
        keep = torch.zeros(2, 1, dtype=torch.int64)
        with pytest.raises(ValueError, match="MAE leaves patches out, and .* can't: .*" + reason):
            MAE(e)
        with pytest.raises(ValueError, match='leave patches out|leaves patches out'):
            e(x, keep)
    else:
        trains(MAE(copy.deepcopy(e), decoder_width=32, decoder_depth=1, decoder_heads=2), pictures(e))
    trains(SimCLR(e, hidden=16, dim=8), pictures(e))


@pytest.mark.parametrize('name', [name for name, _, reason in NETWORKS])
def test_weights_names_and_outputs_are_timm_s(name):
    e = make(name)
    options = dict(NETWORKS[NAMES.index(name)][1])
    theirs = backbone.create_network(name, **options).eval()
    assert list(theirs.state_dict()) == list(e.state_dict())
    theirs.load_state_dict(e.state_dict())
    x = torch.randn(2, 3, *e.img_size)
    features = e(x)
    head = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    if head.shape == (2, e.width):
        torch.testing.assert_close(features.pooled, head, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(features.pooled, features.patches.mean(1))
    has_norm = 'hiera' not in name
    (places,) = theirs.forward_intermediates(x, indices=1, norm=has_norm, intermediates_only=True)
    if places.shape[1] == e.width and 'nfnet' not in name:  # else a last convolution follows
        torch.testing.assert_close(features.patches, places.flatten(2).mT, rtol=1e-4, atol=1e-4)


WITH_MASK = ('deit_tiny_distilled_patch16_224', 'vit_small_patch16_dinov3', 'eva02_tiny_patch14_224') + (
    'vit_small_patch16_rope_mixed_ape_224',
    'vit_pe_core_tiny_patch16_384',
    'naflexvit_base_patch16_gap',
    'test_vit',
)


@pytest.mark.parametrize('name', WITH_MASK)
def test_visible_tokens_equal_full_attention_in_which_hidden_keys_are_masked(name):
    e = make(name)
    x = torch.randn(3, 3, *e.img_size)
    count = e.grid[0] * e.grid[1]
    keep = torch.stack([torch.randperm(count)[:5] for _ in range(3)])
    num_prefix = e.tokens(x).shape[1] - count
    is_visible = torch.zeros(3, count, dtype=torch.bool).scatter(1, keep, torch.ones(3, 5, dtype=torch.bool))
    is_visible = torch.cat([torch.ones(3, num_prefix, dtype=torch.bool), is_visible], 1)
    hidden_keys = torch.zeros(3, 1, 1, num_prefix + count).masked_fill(~is_visible[:, None, None], -1e9)
    tokens = e.forward_features(
        x, attn_mask=hidden_keys
    )  # all of them; the visible ones see visible ones only
    visible = gather_tokens(tokens[:, num_prefix:], keep)
    torch.testing.assert_close(e(x, keep).patches, visible, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(
        e.tokens(x, keep)[:, :num_prefix], tokens[:, :num_prefix], rtol=1e-4, atol=2e-5
    )


def test_cait_with_dropped_tokens_is_cait_on_a_set_of_fewer_tokens():
    e = make('cait_xxs24_224')
    theirs = timm.create_model('cait_xxs24_224', num_classes=0, **TOKENS).eval()
    theirs.load_state_dict(e.state_dict())
    x = torch.randn(2, 3, 64, 64)
    keep = torch.tensor([[3, 1, 9], [0, 15, 2]])
    embedded = theirs.patch_embed(x) + theirs.pos_embed
    theirs.pos_embed = nn.Parameter(torch.zeros(1, 1, 48))
    theirs.patch_embed = nn.Identity()  # so that timm's own forward pass starts from given tokens
    tokens = theirs.forward_features(gather_tokens(embedded, keep))
    torch.testing.assert_close(e(x, keep).patches, tokens[:, 1:])
    torch.testing.assert_close(e(x, keep).pooled, tokens[:, 0])


@pytest.mark.parametrize(
    'name', ['vit_small_patch16_dinov3', 'cait_xxs24_224', 'deit_tiny_distilled_patch16_224']
)
def test_maskable_encoders_do_not_see_what_is_hidden_and_keep_the_rest(name):
    e = make(name)
    count = e.grid[0] * e.grid[1]
    mask = random_masking(4, e.grid, 0.5, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, *e.img_size)
    token = torch.randn(e.width)
    side = e.img_size[0] // e.grid[0]
    hidden = mask.mask.view(4, 1, *e.grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    changed = x + 7 * hidden
    torch.testing.assert_close(e.masked(changed, mask, token).patches, e.masked(x, mask, token).patches)
    nothing = type(mask)(torch.arange(count).expand(4, count), torch.zeros(4, count))
    torch.testing.assert_close(e.masked(x, nothing, token).patches, e(x).patches, rtol=1e-4, atol=1e-5)
    trains(MaskFeat(e, target='pixels'), pictures(e))


@pytest.mark.parametrize('method', [BYOL, MoCo, SimSiam, MoCoV3])
@pytest.mark.parametrize('name', ['test_efficientnet', 'vit_small_patch16_dinov3', 'pvt_v2_b0'])
def test_methods_that_compare_views_take_them(method, name):
    e = make(name)
    options = dict(dim=8) if method is SimSiam else dict(hidden=16, dim=8)
    if method is MoCo:
        options |= dict(queue=8)
    trains(method(e, **options), pictures(e))


@pytest.mark.parametrize('name', ['test_efficientnet', 'vit_small_patch16_dinov3', 'regnetx_002'])
def test_dino_shows_them_crops_of_several_sizes(name):
    options = dict(NETWORKS[NAMES.index(name)][1])
    if 'vit' in name:
        options |= dict(dynamic_img_size=True)
    e = timm_encoder(name, **options)
    crops = views('dino', 64, (0.5,) * 3, (0.5,) * 3, local=2, local_size=32)
    dino = DINO(e, views=crops, dim=16, hidden=16, bottleneck=8, norm_last=False)
    trains(dino, pictures(e))
    assert e.eval()(torch.randn(1, 3, 32, 32)).grid == (e.grid[0] // 2, e.grid[1] // 2)


def test_a_crop_that_does_not_fit_is_refused_when_dino_is_built():
    e = make('vit_small_patch16_rope_224')
    crops = views('dino', 64, (0.5,) * 3, (0.5,) * 3, local=2, local_size=32)
    with pytest.raises(
        ValueError, match='made for 64 x 64 pixels, can.t take pictures of 32 x 32.*dynamic_img_size'
    ):
        DINO(e, views=crops, dim=16, hidden=16, bottleneck=8)


def test_the_workbook_s_own_classes_are_taken_where_there_are_any():
    kinds = {'test_vit': ViT, 'test_resnet': ResNet, 'test_convnext': ConvNeXtV2}
    for name, kind in kinds.items():
        assert type(make(name)) is kind
    assert type(make('swin_tiny_patch4_window7_224')) is Swin
    assert type(make('swinv2_tiny_window8_256')).__mro__[1] is backbone.TimmEncoder


def test_a_subclass_of_a_timm_network_keeps_what_it_does_differently():
    class Doubled(VisionTransformer):
        def forward_features(self, x, attn_mask=None, is_causal=False):
            return 2 * super().forward_features(x, attn_mask, is_causal)

    network = Doubled(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0).eval()
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match='not Doubled'):
        ViT.from_timm(network)
    torch.testing.assert_close(timm_encoder(network)(x).pooled, network(x))


def test_a_copy_and_a_pickled_encoder_are_the_same():
    e = make('vit_small_patch16_dinov3')
    x = torch.randn(2, 3, 64, 64)
    keep = torch.tensor([[0, 1], [5, 3]])
    for other in (copy.deepcopy(e), pickle.loads(pickle.dumps(e))):
        assert type(other) is type(e)
        assert other(x, keep).pooled.equal(e(x, keep).pooled)


def test_only_weights_that_no_output_reaches_are_frozen():
    e = timm_encoder('mobilenetv4_conv_small_050', img_size=64)
    assert e.unused == ['conv_head.weight', 'norm_head.weight', 'norm_head.bias'] and e.width == 480
    assert [name for name, p in e.named_parameters() if not p.requires_grad] == e.unused
    with_head = timm_encoder(timm.create_model('test_efficientnet'), img_size=64)
    assert with_head.unused == ['classifier.weight', 'classifier.bias']


def test_recomputation_gives_the_same_gradient():
    for name in ('vit_small_patch16_dinov3', 'cait_xxs24_224', 'naflexvit_base_patch16_gap'):
        e = make(name)
        x = torch.randn(2, 3, 64, 64)
        keep = torch.tensor([[0, 1, 4], [5, 3, 2]])
        grads = []
        for enable in (False, True):
            e.set_grad_checkpointing(enable)
            weight = e.blocks[0].mlp.fc1.weight
            grads.append(torch.autograd.grad(e(x, keep).pooled.square().sum(), weight)[0])
        torch.testing.assert_close(*grads)


def test_grey_and_wide_pictures_and_another_size():
    e = timm_encoder('test_efficientnet', img_size=(64, 96), in_chans=1)
    assert e(torch.randn(2, 1, 64, 96)).grid == e.grid == (2, 3)
    e = timm_encoder('vit_small_patch16_dinov3', **TOKENS | dict(img_size=(32, 64), in_chans=5)).eval()
    assert e(torch.randn(2, 5, 32, 64), torch.tensor([[0], [7]])).grid == (2, 4)
    assert e.set_img_size((64, 64)).grid == (4, 4)
    assert e(torch.randn(2, 5, 64, 64), torch.tensor([[0], [15]])).patches.shape == (2, 1, 48)
    trains(
        SimCLR(timm_encoder('test_efficientnet', img_size=64, in_chans=1), hidden=8, dim=8), pictures(e, 4, 1)
    )


def test_under_autocast_the_kept_patches_are_still_those_of_the_whole():
    e = make('vit_small_patch16_dinov3')
    x = torch.randn(2, 3, 64, 64)
    everything = torch.arange(16).expand(2, 16)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(e(x, everything).patches, e(x).patches, rtol=0.05, atol=0.05)


def test_eval_mode_never_drops_a_token_and_training_neither():
    with pytest.raises(ValueError, match='build it with patch_drop_rate=0'):
        timm_encoder('vit_small_patch16_dinov3', **TOKENS, patch_drop_rate=0.5)
    with pytest.raises(ValueError, match='build it with patch_drop_rate=0'):
        vit_nano(patch_drop_rate=0.5)
    with pytest.raises(ValueError, match='build it with patch_drop_rate=0'):
        ViT.from_timm('test_vit', patch_drop_rate=0.5)


def test_a_random_encoder_like_it_has_other_weights_and_the_same_frozen_ones():
    for name in ('test_efficientnet', 'vit_small_patch16_dinov3', 'naflexvit_base_patch16_gap'):
        e = make(name)
        fresh = random_encoder_like(e, seed=3)
        x = torch.randn(2, 3, *e.img_size)
        assert fresh(x).pooled.isfinite().all() and not torch.allclose(fresh(x).pooled, e(x).pooled)


def test_our_attributes_hide_nothing_of_timm_s():
    kinds = [backbone.TimmEncoder, backbone.TokenEncoder, backbone.MaskableEncoder]
    ours = {name for kind in kinds for name in vars(kind) if not name.startswith('__')}
    ours -= {
        'forward',
        'img_size',
    }  # what an encoder answers; pixels as a pair, which timm stores and never reads
    for name in NAMES:
        e = make(name)
        if isinstance(e, backbone.TimmEncoder):
            hidden = [attribute for attribute in ours if hasattr(e.timm_class, attribute)]
            assert not hidden, (name, hidden)


@pytest.mark.parametrize(
    'call, sentence',
    [
        (lambda: timm_encoder('regnety_04'), "timm has no network 'regnety_04'. Did you mean 'regnety_0"),
        (lambda: timm_encoder('hf-hub:timm/some'), 'timm has no network'),
        (lambda: timm_encoder('test_vit', checkpoint_path='x.pth'), 'takes no checkpoint_path'),
        (lambda: timm_encoder('test_efficientnet', features_only=True), 'takes no features_only'),
        (lambda: timm_encoder('test_efficientnet', patch_size=8), "takes no argument 'patch_size'"),
        (lambda: timm_encoder('mixer_s32_224', num_blocks=2), "sets 'num_blocks' itself"),
        (lambda: timm_encoder(nn.Linear(2, 2)), 'Linear lacks them'),
        (lambda: timm_encoder('efficientformer_l1', img_size=64), "can't be built for pictures of 64 x 64"),
        (lambda: encoder('timm:test_vit', img_size=33), 'does not divide|divisible'),
    ],
)
def test_what_can_t_be_made_is_said(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_nothing_is_said_of_pictures_that_fit():
    network = Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, use_rot_pos_emb=True, num_classes=0
    )
    e = timm_encoder(network)
    keep = torch.tensor([[0]])
    with pytest.raises(ValueError, match='float pictures'):
        e(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match='indices from 0 to 15'):
        e(torch.zeros(1, 3, 32, 32), keep + 16)
    with pytest.raises(ValueError, match="can't take pictures of 24 x 24"):
        e(torch.zeros(1, 3, 24, 24))
    assert e(torch.zeros(1, 3, 32, 32), keep).grid == (4, 4)
