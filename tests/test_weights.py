"""Loading other people's weights: randomly initialised models of timm and transformers go in
and come back."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

from helpers import close, seeded
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from vit_ssl_lab import weights
from vit_ssl_lab.components.positions import resample_positions
from vit_ssl_lab.encoders.convnextv2 import convnextv2_yocto
from vit_ssl_lab.encoders.resnet import resnet_nano
from vit_ssl_lab.encoders.swin import swin_nano
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.weights import load_encoder, load_method, push_to_hub, save

TINY = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
)
DECODER = dict(
    decoder_hidden_size=32,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=128,
)


def shaken(model, seed=0):
    "Every parameter random, so that no swapped or forgotten weight can hide."
    g = seeded(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    return model.eval()


def pictures(size=32, channels=3):
    return torch.randn(2, channels, size, size, generator=seeded(1))


def our_mae(**kw):
    return shaken(
        MAE(
            vit_nano(img_size=32, patch_size=8, embed_dim=48, depth=2, positions='sincos'),
            decoder_width=32,
            decoder_depth=2,
            decoder_heads=2,
            **kw,
        )
    )


# --- in


@pytest.mark.parametrize('kind', ['folder', 'memory'])
def test_transformers_mae_comes_in(tmp_path, kind):
    theirs = shaken(ViTMAEForPreTraining(ViTMAEConfig(**TINY, **DECODER, norm_pix_loss=True, mask_ratio=0.6)))
    if kind == 'folder':
        theirs.save_pretrained(tmp_path)
    else:  # the names that it has in memory, with its configuration beside
        theirs.config.save_pretrained(tmp_path)
        torch.save(theirs.state_dict(), tmp_path / 'pytorch_model.bin')
    ours, report = load_method(tmp_path)
    assert not report.missing
    assert not report.unexpected
    assert not report.assumed
    assert report.layout == 'transformers'
    assert ours.mask_ratio == 0.6
    assert ours.norm_pix
    assert not ours.encoder.pos_embed.requires_grad
    x = pictures()
    noise = torch.rand(2, 16)
    out = theirs(x, noise=noise)
    mine = ours(x, noise=noise)['loss']
    close(mine, out.loss)
    mine.backward()
    out.loss.backward()
    close(ours.encoder.blocks[1].mlp.fc1.weight.grad, theirs.vit.layers[1].mlp.fc1.weight.grad)
    encoder, report = load_encoder(tmp_path)
    assert report.unexpected
    assert all(k.startswith('decoder.') for k in report.unexpected)
    theirs.config.mask_ratio = theirs.vit.config.mask_ratio = 0.0
    close(encoder.tokens(x), theirs.vit(x, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state)


@pytest.mark.parametrize('cls', [ViTModel, ViTForImageClassification])
def test_transformers_vit_comes_in(tmp_path, cls):
    theirs = shaken(cls(ViTConfig(**TINY, num_labels=5)))
    theirs.save_pretrained(tmp_path)
    ours, report = load_encoder(tmp_path)
    x = pictures()
    hidden = theirs(x).last_hidden_state if cls is ViTModel else theirs.vit(x).last_hidden_state
    close(ours.tokens(x), hidden)
    # pooler or classifier
    assert not report.missing
    assert len(report.unexpected) == 2
    if cls is ViTForImageClassification:
        with_head, report = load_encoder(tmp_path, num_classes=5)
        close(with_head.head(with_head(x).pooled), theirs(x).logits)
        assert not report.unexpected


VARIANTS = {
    'plain': {},
    'grey': dict(in_chans=1),
    'mean': dict(global_pool='avg'),
    'registers': dict(reg_tokens=4, no_embed_class=True),
    'layer scale': dict(init_values=0.1),
    'no qkv bias': dict(qkv_bias=False),
    'qk norm': dict(qk_norm=True),
    'pre-norm': dict(pre_norm=True),
    'no class token': dict(class_token=False, global_pool='avg'),
    'mlp ratio': dict(mlp_ratio=3),
}


@pytest.mark.parametrize('wrap', ['.safetensors', 'bare .pth', 'training .pth'])
@pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS.keys())
def test_timm_files_come_in(tmp_path, variant, wrap):
    theirs = shaken(
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0, **variant
        )
    )
    state = theirs.state_dict()
    if wrap == '.safetensors':
        path = tmp_path / 'x.safetensors'
        weights.save_file(state, path)
    else:
        path = tmp_path / 'x.pth'
        torch.save(
            state
            if wrap == 'bare .pth'
            else {
                'epoch': 3,
                'state_dict': {f'module.{k}': v for k, v in state.items()},
                'args': argparse.Namespace(lr=1e-3),
            },
            path,
        )
    ours, report = load_encoder(path, num_heads=3)
    assert not report.missing
    assert not report.unexpected
    assert set(report.used) == set(state)
    x = pictures(channels=variant.get('in_chans', 3))
    assert torch.equal(ours(x).pooled, theirs(x))


def test_official_mae_files_come_in(tmp_path):
    ours = our_mae()
    full = weights.state_dict_as(ours, 'mae')
    assert {
        'mask_token',
        'decoder_pos_embed',
        'decoder_embed.weight',
        'decoder_blocks.1.attn.qkv.bias',
        'decoder_norm.bias',
        'decoder_pred.weight',
        'blocks.0.norm1.weight',
    } <= set(full)
    torch.save(
        {
            'model': full,
            'optimizer': {'state': {}},
            'epoch': 9,
            'args': argparse.Namespace(norm_pix_loss=False, mask_ratio=0.5, input_size=32),
        },
        tmp_path / 'full.pth',
    )
    again, report = load_method(tmp_path / 'full.pth', num_heads=3, decoder_heads=2)
    assert not report.missing
    assert not report.unexpected
    assert again.norm_pix is False
    assert again.mask_ratio == 0.5
    x = pictures()
    noise = torch.rand(2, 16)
    ours.norm_pix, ours.mask_ratio = False, 0.5
    assert torch.equal(again(x, noise=noise)['loss'], ours(x, noise=noise)['loss'])
    torch.save(
        {'model': {k: v for k, v in full.items() if 'decoder' not in k and k != 'mask_token'}},
        tmp_path / 'encoder.pth',
    )
    encoder, report = load_encoder(tmp_path / 'encoder.pth', num_heads=3)
    assert torch.equal(encoder(x).pooled, ours.encoder(x).pooled)
    with pytest.raises(ValueError, match='without a decoder'):
        load_method(tmp_path / 'encoder.pth', num_heads=3)


def test_own_training_state_comes_in(tmp_path):
    ours = our_mae()
    torch.save(ours.state_dict(), tmp_path / 'x.pth')
    again, report = load_method(tmp_path / 'x.pth', num_heads=3, decoder_heads=2)
    assert report.layout == 'vit_ssl_lab'
    assert not report.missing
    x = pictures()
    noise = torch.rand(2, 16)
    assert torch.equal(again(x, noise=noise)['loss'], ours(x, noise=noise)['loss'])


# --- another picture size


def test_positions_are_resampled_as_timm_does(tmp_path):
    size = dict(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0)
    theirs = shaken(VisionTransformer(**size))
    torch.save(theirs.state_dict(), tmp_path / 'x.pth')
    ours, report = load_encoder(tmp_path / 'x.pth', img_size=(48, 64), num_heads=3)
    assert report.resampled == ['pos_embed 4x4 -> 6x8']
    assert ours.grid == (6, 8)
    expected = resample_positions(theirs.pos_embed, (4, 4), (6, 8))
    theirs.set_input_size((48, 64))
    close(theirs.pos_embed, expected)
    x = torch.randn(2, 3, 48, 64)
    close(ours(x).pooled, theirs(x))


def test_a_grid_that_is_not_square(tmp_path):
    theirs = shaken(ViT(img_size=(16, 48), patch_size=8, embed_dim=48, depth=1, num_heads=3))
    torch.save(theirs.state_dict(), tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='old_size'):
        load_encoder(tmp_path / 'x.pth', num_heads=3)
    ours, report = load_encoder(tmp_path / 'x.pth', num_heads=3, old_size=(16, 48))
    x = torch.randn(1, 3, 16, 48)
    assert torch.equal(ours(x).pooled, theirs(x).pooled)
    assert not report.resampled
    ours, report = load_encoder(save(theirs, tmp_path / 'y.safetensors'), img_size=(32, 32))
    assert report.resampled == ['pos_embed 2x6 -> 4x4']


# --- out


def test_mae_goes_out_to_transformers(tmp_path):
    ours = our_mae(mask_ratio=0.5, norm_pix=False)
    save(ours, tmp_path / 'x', 'transformers')
    theirs, info = ViTMAEForPreTraining.from_pretrained(tmp_path / 'x', output_loading_info=True)
    assert not info['missing_keys']
    assert not info['unexpected_keys']
    assert not info['mismatched_keys']
    x = pictures()
    noise = torch.rand(2, 16)
    out = theirs.eval()(x, noise=noise)
    mine = ours(x, noise=noise)
    close(mine['loss'], out.loss)
    model, info = ViTMAEModel.from_pretrained(tmp_path / 'x', output_loading_info=True)
    assert not info['missing_keys']
    keep = torch.argsort(noise, 1)[:, :8]
    close(model.eval()(x, noise=noise).last_hidden_state, ours.encoder.tokens(x, keep))


def test_encoder_goes_out_to_transformers_and_timm(tmp_path):
    ours = shaken(vit_nano(img_size=32, patch_size=8))
    x = pictures()
    save(ours, tmp_path / 'hf', 'transformers')
    theirs, info = ViTModel.from_pretrained(
        tmp_path / 'hf', add_pooling_layer=False, output_loading_info=True
    )
    assert not info['missing_keys']
    assert not info['unexpected_keys']
    close(theirs.eval()(x).last_hidden_state, ours.tokens(x))
    save(ours, tmp_path / 'timm')
    assert torch.equal(
        timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()(x), ours(x).pooled
    )
    for source in ('hf', 'timm'):
        again, report = load_encoder(tmp_path / source)
        close(again(x).pooled, ours(x).pooled)
        assert not report.missing
        assert not report.unexpected
        assert not report.assumed
    larger, report = load_encoder(tmp_path / 'timm', img_size=64)
    assert larger.grid == (8, 8)
    assert report.resampled == ['pos_embed 4x4 -> 8x8']


@pytest.mark.parametrize('stem', ['patchify', 'conv'])
@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_own_files_need_no_hints(tmp_path, stem, name):
    ours = shaken(
        ViT(
            img_size=(32, 48), patch_size=8, embed_dim=96, depth=2, num_heads=6, stem=stem, positions='sincos'
        )
    )
    again, report = load_encoder(save(ours, tmp_path / name))
    x = torch.randn(2, 3, 32, 48)
    assert torch.equal(again(x).pooled, ours(x).pooled)
    assert not report.missing
    assert not report.assumed
    assert not again.pos_embed.requires_grad
    plain = ViT(img_size=(32, 48), patch_size=8, embed_dim=96, depth=2, num_heads=6, stem=stem)
    state, _ = weights.open_file(tmp_path / name)
    plain.load_state_dict(state, strict=True)


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_mae_layout_round_trip(tmp_path, name):
    ours = our_mae(mask_ratio=0.5, norm_pix=False)
    again, report = load_method(save(ours, tmp_path / name, 'mae'))
    assert not report.missing
    assert not report.unexpected
    assert not report.assumed
    assert again.norm_pix is False
    x = pictures()
    noise = torch.rand(2, 16)
    assert torch.equal(again(x, noise=noise)['loss'], ours(x, noise=noise)['loss'])


# --- names and the Hub, without a network


def test_timm_name_downloads_through_timm(monkeypatch):
    source = shaken(timm.create_model('vit_tiny_patch16_224', depth=12))
    asked = []
    monkeypatch.setattr(
        'timm.models._builder.load_state_dict_from_hf',
        lambda repo, *a, **k: asked.append(repo) or dict(source.state_dict()),
    )
    ours, report = load_encoder('timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k', img_size=96)
    assert asked
    assert asked[0].startswith('timm/vit_tiny_patch16_224')
    assert ours.grid == (6, 6)
    assert torch.equal(ours.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert report.resampled
    assert not report.missing
    plain, report = load_encoder('vit_tiny_patch16_224', pretrained=False)
    assert not report.used
    assert report.missing


def test_no_network_is_one_sentence(monkeypatch):
    def fail(*a, **k):
        raise RuntimeError('no route to host')

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', fail)
    monkeypatch.setattr('huggingface_hub.snapshot_download', fail)
    with pytest.raises(ConnectionError, match='pretrained=False'):
        load_encoder('timm:vit_tiny_patch16_224')
    with pytest.raises(ConnectionError, match="Could not fetch 'me/x'"):
        load_method('hf:me/x')


def test_hub_folder_and_upload(monkeypatch, tmp_path):
    ours = our_mae()
    seen = {}

    def upload(self, repo_id, folder_path, commit_message):
        seen[repo_id] = tmp_path / repo_id.replace('/', '-')
        Path(folder_path).rename(seen[repo_id])
        return f'address of {repo_id}'

    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', lambda self, repo_id, private, exist_ok: None)
    monkeypatch.setattr('huggingface_hub.HfApi.upload_folder', upload)
    monkeypatch.setattr(
        'huggingface_hub.snapshot_download', lambda repo_id, allow_patterns: str(seen[repo_id])
    )
    x = pictures()
    noise = torch.rand(2, 16)
    for layout in ('transformers', 'mae'):
        assert push_to_hub(ours, f'me/{layout}', layout) == f'address of me/{layout}'
        again, report = load_method(f'hf:me/{layout}')
        close(again(x, noise=noise)['loss'], ours(x, noise=noise)['loss'])
    push_to_hub(ours, 'me/timm')
    assert torch.equal(load_encoder('hf:me/timm')[0](x).pooled, ours.encoder(x).pooled)
    assert 'library_name: timm' in (seen['me/timm'] / 'README.md').read_text()

    def refuse(self, *a, **k):
        raise RuntimeError('401')

    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', refuse)
    with pytest.raises(ConnectionError, match='logged in'):
        push_to_hub(ours, 'me/x')


# --- what must not work


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('form', ['torch', 'old torch', 'plain pickle'])
def test_a_pickle_never_executes(tmp_path, form):
    path = tmp_path / 'evil.pth'
    target = tmp_path / 'executed'
    content = {'model': vit_nano().state_dict(), 'x': Trap(target)}
    if form == 'plain pickle':
        path.write_bytes(pickle.dumps({'x': Trap(target)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == 'torch')
    for load in (load_encoder, load_method):
        with pytest.raises(ValueError, match='stays closed') as e:
            load(path)
        assert '\n' not in str(e.value)
    assert not target.exists()
    pickle.loads(pickle.dumps(Trap(target)))  # the trap works, where it is opened carelessly
    assert target.exists()


def test_a_pickle_in_a_folder_never_executes(tmp_path):
    folder = tmp_path / 'm'
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps({'model_type': 'vit_mae'}))
    torch.save({'x': Trap(tmp_path / 'executed')}, folder / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='stays closed'):
        load_method(folder)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.99])
def test_truncated_file_is_one_sentence(tmp_path, name, share):
    data = save(vit_nano(img_size=16), tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match='cut off') as e:
        load_encoder(tmp_path / name)
    assert '\n' not in str(e.value)


def test_wrong_shape_layout_and_source(tmp_path):
    save(vit_nano(img_size=16), tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match='is .* there and .* here'):
        load_encoder(tmp_path / 'x.safetensors', embed_dim=192)
    torch.save({'features.0.weight': torch.zeros(3)}, tmp_path / 'r.pth')
    with pytest.raises(ValueError, match='no layout known'):
        load_encoder(tmp_path / 'r.pth')
    torch.save([1, 2], tmp_path / 'l.pth')
    with pytest.raises(ValueError, match='holds a list'):
        load_encoder(tmp_path / 'l.pth')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='holds no weights'):
        load_encoder(tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='no timm name'):
        load_encoder(tmp_path / 'nothing.pth')
    with pytest.raises(ValueError, match='Did you mean'):
        load_encoder('timm:vit_smal_patch16_224')
    with pytest.raises(ValueError, match="no layout 'hf'"):
        save(vit_nano(), tmp_path / 'y', 'hf')


@pytest.mark.parametrize(
    'layout, name',
    [('timm', 'x.pth'), ('timm', 'x.safetensors'), ('timm', 'x'), ('transformers', 'x'), ('mae', 'x.pth')],
)
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, layout, name):
    ours = our_mae()
    path = save(ours, tmp_path / name, layout)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}

    def full(state, temp, *a):
        Path(temp).write_bytes(b'half')
        raise (
            weights.SafetensorError(
                'Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'
            )
            if name != 'x.pth'
            else RuntimeError('PytorchStreamWriter failed writing file data: file write failed')
        )

    monkeypatch.setattr(weights, 'save_file', full)
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='nothing was left half-written') as e:
        save(shaken(our_mae(), 7), path, layout)
    assert '\n' not in str(e.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


@pytest.mark.processes
def test_a_disk_that_is_really_full(tmp_path):
    "The system refuses to let the file grow beyond 64 kB, in the middle of writing."
    pytest.importorskip('resource')
    code = (
        "import resource, signal, sys\n"
        "from vit_ssl_lab.weights import save\n"
        "from vit_ssl_lab.encoders.vit import vit_nano\n"
        "model = vit_nano()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "for name in sys.argv[1:]:\n"
        "    try: save(model, name); print('saved')\n"
        "    except OSError as e: print(e)\n"
    )
    out = subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'x.pth', tmp_path / 'x.safetensors'],
        capture_output=True,
        text=True,
    )
    assert out.stdout.count('nothing was left half-written') == 2, out.stdout + out.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'bad',
    [
        dict(reg_tokens=2),
        dict(stem='conv'),
        dict(positions='none'),
        dict(init_values=0.1),
        dict(global_pool='avg'),
    ],
)
def test_what_transformers_has_no_place_for(tmp_path, bad):
    with pytest.raises(ValueError, match="no place for this encoder"):
        save(vit_nano(**bad), tmp_path / 'x', 'transformers')
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    'make, kind',
    [
        (resnet_nano, 'ResNet'),
        (swin_nano, 'Swin'),
        (convnextv2_yocto, 'ConvNeXt'),
        (lambda: SimCLR(resnet_nano()), 'ResNet'),
    ],
)
@pytest.mark.parametrize('name, layout', [('x.pth', 'mae'), ('x', 'transformers')])
def test_only_vision_transformers_go_out_to_transformers_and_mae(tmp_path, make, kind, name, layout):
    with pytest.raises(ValueError, match=f"A {kind} goes out in timm's layout") as e:
        save(make(), tmp_path / name, layout)
    assert '\n' not in str(e.value)
    assert not list(tmp_path.iterdir())
