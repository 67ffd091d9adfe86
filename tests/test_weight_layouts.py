"""Checkpoints of other libraries and of the official codes. Names are listed here independently of the
package, networks are other people's (torchvision, timm, lightly) or written down again, and both are run."""

import math
import re

import lightly.models.resnet
import pytest
import timm
import torch
import torchvision
from helpers import close, seeded
from lightly.models.modules import MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.weight_layouts import detect_layout, networks_in, pick_network
from vit_ssl_lab.weights import load_encoder, load_method


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    "Every parameter and every running statistic random, so that nothing swapped or forgotten can hide."
    g = seeded(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=g) * 0.2
                value.copy_(drawn.abs() + 0.5 if name.endswith('running_var') else drawn)
    return model.eval()


def features(resnet: nn.Module, x: torch.Tensor) -> torch.Tensor:
    "What torchvision's ResNet gives to its classifier."
    body = nn.Sequential(*list(resnet.children())[:-1])
    return body(x).flatten(1)


def behind(prefix: str, model: nn.Module, skip: str = 'fc.') -> dict:
    return {
        f'{prefix}{name}': value for name, value in model.state_dict().items() if not name.startswith(skip)
    }


HEAD = {'0.weight': torch.ones(4, 3), '0.bias': torch.ones(4), '2.weight': torch.ones(2, 4)}


def head(prefix: str) -> dict:
    return {f'{prefix}.{name}': value for name, value in HEAD.items()}


# where each library puts the encoder that its own evaluation reads, the other one, and what is no encoder;
# main_lincls.py of MoCo, MoCo v3 and SimSiam, main_linear.py of solo-learn, MMPretrain's models/selfsup
RESNET_FILES = {
    'MoCo v1': ('module.encoder_q.', 'module.encoder_k.', ['module.encoder_q.fc', 'module.queue']),
    'MoCo v2': ('module.encoder_q.', 'module.encoder_k.', ['module.encoder_q.fc', 'module.encoder_k.fc']),
    'MoCo v3': (
        'module.base_encoder.',
        'module.momentum_encoder.',
        ['module.base_encoder.fc', 'module.predictor'],
    ),
    'SimSiam': ('module.encoder.', None, ['module.encoder.fc', 'module.predictor']),
    'solo-learn': ('backbone.', 'momentum_backbone.', ['projector', 'classifier', 'momentum_projector']),
    'solo-learn before 1.0.3': ('encoder.', 'momentum_encoder.', ['projector', 'predictor', 'classifier']),
    'MMPretrain, SimCLR': ('backbone.', None, ['neck.bn0', 'head.predictor']),
    'MMPretrain, MoCo': ('backbone.', 'encoder_k.module.0.', ['neck.mlp', 'encoder_k.module.1.mlp', 'queue']),
    'MMPretrain, BYOL': ('backbone.', 'target_net.module.0.', ['neck.fc0', 'target_net.module.1.fc0']),
    'MMPretrain, MoCo v3': ('backbone.', 'momentum_encoder.module.0.', ['neck.fc0']),
    'DINO': ('teacher.module.backbone.', 'student.module.backbone.', ['teacher.module.head.mlp']),
    'torchvision, BYOL': ('', None, ['fc']),
}


LARGER = ['resnet50', 'resnext50_32x4d', 'wide_resnet50_2']  # the names are the same for all sizes


@pytest.mark.parametrize(
    'writer, arch', [(w, 'resnet18') for w in RESNET_FILES] + [('torchvision, BYOL', a) for a in LARGER]
)
def test_residual_networks(tmp_path, writer, arch):
    prefix, momentum, others = RESNET_FILES[writer]
    theirs = shaken(torchvision.models.get_model(arch))
    state = behind(prefix, theirs)
    for name in others:
        state |= {'module.queue': torch.ones(4, 8)} if name.endswith('queue') else head(name)
    if momentum:
        state |= behind(momentum, shaken(torchvision.models.get_model(arch), seed=1))
    content = {'state_dict': state, 'epoch': 1}
    if writer == 'DINO':
        content = {}
        for net in ('student', 'teacher'):
            part = {k.removeprefix(f'{net}.'): v for k, v in state.items() if k.startswith(net)}
            content[net] = part
    torch.save(content, tmp_path / 'x.pth.tar')
    ours, report = load_encoder(tmp_path / 'x.pth.tar')
    x = torch.randn(2, 3, 64, 64)
    close(ours(x).pooled, features(theirs, x))
    assert not report.missing
    assert set(report.used) == set(behind('', theirs))
    assert len(report.unexpected) == len(state) - len(report.used)
    if momentum:
        other = momentum.replace('module.', '', 1) if momentum.startswith('module.') else momentum
        other = re.sub(r'^student\.module\.', 'student.', other).rstrip('.')
        assert report.others == [other]
        taken, again = load_encoder(tmp_path / 'x.pth.tar', network=other)
        assert again.network == other
        assert not torch.equal(taken.conv1.weight, ours.conv1.weight)


@pytest.mark.parametrize('kind', ['torchvision', "lightly's own"])
def test_lightly_numbers_the_layers(tmp_path, kind):
    "examples/pytorch: `nn.Sequential(*list(resnet.children())[:-1])` as `backbone`."
    small = kind == "lightly's own"
    theirs = lightly.models.resnet.ResNetGenerator('resnet-18') if small else torchvision.models.resnet18()
    shaken(theirs)
    children = list(theirs.children())[:-1]
    cut = nn.Sequential(*children)
    state = {f'backbone.{name}': value for name, value in cut.state_dict().items()}
    state |= {f'backbone_momentum.{name}': value + 1 for name, value in cut.state_dict().items()}
    state |= head('projection_head.layers')
    torch.save(state, tmp_path / 'x.pth')
    ours, report = load_encoder(tmp_path / 'x.pth')
    assert report.layout == 'sequential'
    assert report.others == ['backbone_momentum']
    assert not report.missing
    x = torch.randn(2, 3, 32, 32)
    if not small:
        close(ours(x).pooled, cut(x).flatten(1))
        return
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name.replace('downsample', 'shortcut')]), name


def test_solo_learn_on_cifar_pads_its_stem_by_two(tmp_path):
    "solo/methods/base.py."
    theirs = torchvision.models.resnet18()
    theirs.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
    theirs.maxpool = nn.Identity()
    shaken(theirs)
    state = behind('backbone.', theirs) | head('projector')
    torch.save({'state_dict': state | {'classifier.weight': torch.ones(10, 512)}}, tmp_path / 'x.ckpt')
    ours, report = load_encoder(tmp_path / 'x.ckpt')
    x = torch.randn(2, 3, 32, 32)
    close(ours(x).pooled, features(theirs, x))
    assert report.assumed == ['img_size=32', 'conv1.padding=2, as solo-learn has it']


def test_lightly_masked_vision_transformers(tmp_path):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    theirs = shaken(MaskedVisionTransformerTIMM(vit=vit))
    state = {f'backbone.{name}': value for name, value in theirs.state_dict().items()}
    torch.save(state | head('decoder.mlp'), tmp_path / 'x.pth')
    ours, report = load_encoder(tmp_path / 'x.pth', num_heads=3)
    assert report.network == 'backbone.vit'
    x = torch.randn(2, 3, 32, 32)
    close(ours(x).pooled, theirs.vit(x))


# --- MoCo v3


def mocov3_positions(side: int, width: int) -> torch.Tensor:
    "vits.py: rows and columns by `torch.meshgrid(grid_w, grid_h)`, whose first index runs over the first."
    table = torch.zeros(1, 1 + side * side, width)
    quarter = width // 4
    for i in range(side):
        for j in range(side):
            for k in range(quarter):
                omega = 10000 ** (-k / quarter)
                numbers = (math.sin(i * omega), math.cos(i * omega), math.sin(j * omega), math.cos(j * omega))
                for part, number in enumerate(numbers):
                    table[0, 1 + i * side + j, part * quarter + k] = number
    return table


def mocov3_vit(**options) -> VisionTransformer:
    "vits.py: vit_small, of two blocks and on small pictures."
    size = dict(img_size=32, patch_size=8, embed_dim=384, depth=2, num_heads=12, num_classes=0) | options
    model = shaken(VisionTransformer(**size))
    side = size['img_size'] // size['patch_size']
    model.pos_embed.data = mocov3_positions(side, 384)
    return model


@pytest.mark.parametrize('form', ['training', 'for DeiT'])
def test_moco_v3_s_small_vit_has_twelve_heads(tmp_path, form):
    theirs = mocov3_vit()
    state = theirs.state_dict()
    if form == 'training':
        state = behind('module.base_encoder.', theirs) | head('module.base_encoder.head')
        state |= behind('module.momentum_encoder.', theirs) | head('module.predictor')
        torch.save({'epoch': 300, 'arch': 'vit_small', 'state_dict': state}, tmp_path / 'x.pth.tar')
    else:  # convert_to_deit.py
        torch.save({'model': state}, tmp_path / 'x.pth.tar')
    ours, report = load_encoder(tmp_path / 'x.pth.tar')
    x = torch.randn(2, 3, 32, 32)
    close(ours(x).pooled, theirs(x))
    assert not report.assumed
    assert not ours.pos_embed.requires_grad
    six, report = load_encoder(tmp_path / 'x.pth.tar', num_heads=6, strict=False)
    assert (six(x).pooled - theirs(x)).abs().max() > 1e-3  # the number of heads matters
    with pytest.raises(ValueError, match='says num_heads=12, and you say num_heads=6'):
        load_encoder(tmp_path / 'x.pth.tar', num_heads=6)


def test_everybody_else_s_small_vit_has_six_heads(tmp_path):
    theirs = shaken(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=384, depth=1, num_heads=6, num_classes=0)
    )
    torch.save(theirs.state_dict(), tmp_path / 'x.pth')
    ours, report = load_encoder(tmp_path / 'x.pth')
    assert report.assumed == ['num_heads=6']
    x = torch.randn(2, 3, 32, 32)
    close(ours(x).pooled, theirs(x))


class MoCoStem(nn.Module):
    "vits.py: ConvStem."

    def __init__(self, img_size, patch_size, in_chans=3, embed_dim=384, **kw):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.grid_size = (img_size // patch_size,) * 2
        layers, width = [], in_chans
        for out in (embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim):
            layers += [nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        layers.append(nn.Conv2d(width, embed_dim, 1))
        self.proj = nn.Sequential(*layers)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def test_moco_v3_s_convolutional_stem(tmp_path):
    theirs = mocov3_vit(img_size=64, patch_size=16, embed_layer=MoCoStem)
    state = behind('module.base_encoder.', theirs) | head('module.base_encoder.head')
    assert 'module.base_encoder.patch_embed.proj.12.bias' in state
    torch.save({'state_dict': state}, tmp_path / 'x.pth.tar')
    ours, report = load_encoder(tmp_path / 'x.pth.tar')
    assert report.layout == 'mocov3'
    assert not report.missing
    x = torch.randn(2, 3, 64, 64)
    close(ours(x).pooled, theirs(x))


# --- MMPretrain

MMPRETRAIN = {  # timm's name -> MMPretrain's, of a VisionTransformer
    'cls_token': 'cls_token',
    'pos_embed': 'pos_embed',
    'patch_embed.proj': 'patch_embed.projection',
    'norm': 'ln1',
    'blocks.{i}.norm1': 'layers.{i}.ln1',
    'blocks.{i}.attn.qkv': 'layers.{i}.attn.qkv',
    'blocks.{i}.attn.proj': 'layers.{i}.attn.proj',
    'blocks.{i}.norm2': 'layers.{i}.ln2',
    'blocks.{i}.mlp.fc1': 'layers.{i}.ffn.layers.0.0',
    'blocks.{i}.mlp.fc2': 'layers.{i}.ffn.layers.1',
}
MMPRETRAIN_DECODER = {  # this workbook's name -> that of MAEPretrainDecoder, behind "neck."
    'mask_token': 'mask_token',
    'pos_embed': 'decoder_pos_embed',
    'embed': 'decoder_embed',
    'norm': 'ln1',
    'head': 'decoder_pred',
    **{k: 'decoder_blocks' + v.removeprefix('layers') for k, v in MMPRETRAIN.items() if '{i}' in k},
}


def spelled(state: dict, table: dict, prefix: str) -> dict:
    "A state dict with the names of a table."
    out = {}
    for name, value in state.items():
        number = (re.search(r'blocks\.(\d+)\.', name) or ['', ''])[1]
        plain = name.replace(f'blocks.{number}.', 'blocks.{i}.')
        module, _, kind = plain.rpartition('.')
        theirs = table[plain] if plain in table else f'{table[module]}.{kind}'
        out[prefix + theirs.replace('{i}', number)] = value
    return out


def test_mmpretrain_s_vision_transformers(tmp_path):
    theirs = shaken(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    )
    state = spelled(theirs.state_dict(), MMPRETRAIN, 'backbone.')
    torch.save({'meta': {'epoch': 1}, 'state_dict': state | head('head.layers.head')}, tmp_path / 'x.pth')
    ours, report = load_encoder(tmp_path / 'x.pth', num_heads=3)
    assert report.layout == 'mmpretrain'
    assert not report.missing
    assert len(report.unexpected) == len(HEAD)
    x = torch.randn(2, 3, 32, 32)
    close(ours(x).pooled, theirs(x))


def test_mmpretrain_s_masked_autoencoder(tmp_path):
    encoder = vit_nano(img_size=32, patch_size=8, embed_dim=48, depth=2, positions='sincos')
    theirs = shaken(MAE(encoder, decoder_width=32, decoder_depth=2, decoder_heads=2))
    state = spelled(theirs.encoder.state_dict(), MMPRETRAIN, 'backbone.')
    state |= spelled(theirs.decoder.state_dict(), MMPRETRAIN_DECODER, 'neck.')
    torch.save({'state_dict': state}, tmp_path / 'x.pth')
    ours, report = load_method(tmp_path / 'x.pth', num_heads=3, decoder_heads=2, norm_pix=theirs.norm_pix)
    assert not report.missing
    assert not report.unexpected
    x, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    assert torch.equal(ours(x, noise=noise)['loss'], theirs(x, noise=noise)['loss'])


# --- choosing


def test_a_network_that_is_not_there():
    state = behind('encoder_q.', torchvision.models.resnet18())
    with pytest.raises(ValueError, match="no network 'teacher' in this file; there are: encoder_q") as e:
        pick_network(state, 'teacher')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'name', ['vit_tiny_patch16_224', 'convnextv2_atto', 'swin_tiny_patch4_window7_224', 'resnet18']
)
def test_a_plain_state_dict_has_one_network(name):
    names = list(timm.create_model(name, num_classes=0).state_dict())
    assert detect_layout(names) == 'timm'
    assert networks_in(dict.fromkeys(names)) == []
