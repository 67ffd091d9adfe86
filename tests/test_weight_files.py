"""Files and folders that mean harm, are something else, or are not whole: one sentence each, nothing else
happens."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from vit_ssl_lab.encoders import encoder as build_encoder
from vit_ssl_lab.encoders.resnet import resnet18, resnet50, resnet_nano
from vit_ssl_lab.encoders.swin import swin_nano
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.methods.dino import DINO
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.weight_files import TIMM_ARGUMENTS, open_file
from vit_ssl_lab.weights import load_encoder, load_method, read_checkpoint, save

SIZE = dict(img_size=16, patch_size=4)


def timm_folder(path: Path, **changes) -> Path:
    "A good folder in timm's layout, with another config.json."
    save(vit_nano(**SIZE), path)
    config = json.loads((path / 'config.json').read_text())
    (path / 'config.json').write_text(json.dumps(config | changes))
    return path


@pytest.fixture
def no_way_out(monkeypatch):
    "Whatever would open a connection or unpickle without `weights_only` is an error."

    def refuse(*a, **k):
        raise AssertionError('reached the network')

    plain = torch.load

    def careful(*a, **k):
        assert k.get('weights_only') is True, 'unpickled'
        return plain(*a, **k)

    monkeypatch.setattr('socket.socket.connect', refuse)
    monkeypatch.setattr('huggingface_hub.hf_hub_download', refuse)
    monkeypatch.setattr('huggingface_hub.snapshot_download', refuse)
    monkeypatch.setattr(torch, 'load', careful)


ARCHITECTURES = [
    'hf-hub:me/evil',
    'hf_hub:me/evil',
    'local-dir:/tmp/evil',
    'timm/vit_tiny_patch16_224',
    '../vit_tiny_patch16_224',
    'vit_tiny_patch16_224.augreg_in21k ',
    'https://example.com/x.pth',
    'no_such_network',
    'eva02_tiny_patch14_224',
    '',
    7,
    None,
    ['vit_tiny_patch16_224'],
]


@pytest.mark.parametrize('name', ARCHITECTURES, ids=str)
def test_an_architecture_is_a_name_never_an_address(tmp_path, no_way_out, name):
    folder = timm_folder(tmp_path / 'm', architecture=name)
    for strict in (True, False):
        with pytest.raises(ValueError, match='names the architecture') as e:
            load_encoder(folder, strict=strict)
        assert '\n' not in str(e.value)


DANGEROUS = [
    'checkpoint_path',
    'pretrained',
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'cache_dir',
    'block_fn',
]
DANGEROUS += [
    'features_only',
    'scriptable',
    'exportable',
    'no_jit',
    'pretrained_strict',
    'embed_layer',
    'url',
]


@pytest.mark.parametrize('name', DANGEROUS)
def test_arguments_of_unknown_names_never_reach_timm(tmp_path, no_way_out, monkeypatch, name):
    trap = tmp_path / 'trap.pth'
    torch.save({'x': 1}, trap)
    arguments = json.loads((timm_folder(tmp_path / 'm') / 'config.json').read_text())['model_args']
    folder = timm_folder(tmp_path / 'm', model_args=arguments | {name: str(trap)})
    with pytest.raises(ValueError, match=f'has the arguments {name}'):
        load_encoder(folder)
    given = []
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *a, **k: given.append(k) or create(*a, **k))
    _, report = load_encoder(folder, strict=False)
    assert report.tolerated == [f'left out of config.json: {name}']
    allowed = set(TIMM_ARGUMENTS) | {'pretrained', 'num_classes'}
    assert given and all(set(k) <= allowed for k in given)
    assert not any(k.get('pretrained') for k in given)


WRONG = [
    ('depth', 10**9),
    ('depth', -1),
    ('depth', True),
    ('depth', '12'),
    ('embed_dim', 10**9),
    ('img_size', 0),
    ('img_size', [16, 16, 16]),
    ('mlp_ratio', 'nan'),
    ('mlp_ratio', 1e30),
    ('qkv_bias', 'yes'),
    ('global_pool', '__import__("os")'),
    ('act_layer', {'a': 1}),
    ('act_layer', 'os.system'),
    ('num_heads', None),
]


@pytest.mark.parametrize('name, value', WRONG, ids=str)
def test_a_value_of_another_kind_is_refused(tmp_path, name, value):
    arguments = json.loads((timm_folder(tmp_path / 'm') / 'config.json').read_text())['model_args']
    folder = timm_folder(tmp_path / 'm', model_args=arguments | {name: value})
    for strict in (True, False):
        with pytest.raises(ValueError, match=f'says {name} = .*, which should be') as e:
            load_encoder(folder, strict=strict)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('value', [7, 'x', [], {'a': 'b'}, None, 'NaN'], ids=str)
def test_metadata_inside_a_file_is_not_trusted_either(tmp_path, value):
    "An architecture in the metadata of a file is no way around config.json."
    state = vit_nano(**SIZE).state_dict()
    stated = dict(architecture='hf-hub:me/evil', model_args=dict(checkpoint_path='x'), num_heads=3)
    save_file(state, tmp_path / 'x.safetensors', dict(vit_ssl_lab=json.dumps(stated)))
    assert 'architecture' not in read_checkpoint(tmp_path / 'x.safetensors').metadata
    assert load_encoder(tmp_path / 'x.safetensors')[0].width == 96
    save_file(state, tmp_path / 'y.safetensors', dict(vit_ssl_lab=json.dumps(dict(num_heads=value))))
    if value == 7:
        with pytest.raises(ValueError, match="num_heads=7 heads don't divide a width of 96"):
            load_encoder(tmp_path / 'y.safetensors')
        return
    with pytest.raises(ValueError, match='says num_heads = '):
        load_encoder(tmp_path / 'y.safetensors')


@pytest.mark.parametrize(
    'text', ['<html>404</html>', '[1]', '"x"', '{"a": ', '[' * 100_000, '\x00\xff'], ids=range(6)
)
def test_a_config_that_is_none(tmp_path, text):
    folder = timm_folder(tmp_path / 'm')
    (folder / 'config.json').write_text(text)
    with pytest.raises(ValueError, match='config.json of m is') as e:
        load_encoder(folder)
    assert '\n' not in str(e.value)


def test_input_channels_of_a_folder_are_read(tmp_path):
    grey = vit_nano(in_chans=1, **SIZE).eval()
    again, report = load_encoder(save(grey, tmp_path / 'm'))
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(again(x).pooled, grey(x).pooled)
    assert not report.missing


# --- what a file is

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 343261615\n'
OTHER_THINGS = {
    'page': (b'\n  <!DOCTYPE html>\n<html><title>404</title></html>', 'is a web page'),
    'page with a mark': (b'\xef\xbb\xbf<HTML><body>Sign in</body>', 'is a web page'),
    'XML': (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'is a web page'),
    'pointer': (POINTER, r'is a git-LFS pointer of 82 bytes \(for 343,261,615 bytes\)'),
    'answer': (b'{"error": "Repository not found"}', 'is a text that starts with'),
    'sentence': (b'Entry not found\n', 'is a text that starts with'),
    'gzip': (b'\x1f\x8b\x08\x00' + bytes(40), r'is compressed \(gzip\)'),
    'xz': (b'\xfd7zXZ\x00' + bytes(40), r'is compressed \(xz\)'),
    'Keras': (b'\x89HDF\r\n\x1a\n' + bytes(40), 'is an HDF5 file'),
    'nothing': (b'', 'is empty'),
    'noise': (bytes(range(128, 256)) * 9, 'is cut off or no checkpoint at all'),
}


@pytest.mark.parametrize('thing', OTHER_THINGS)
@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors', 'pytorch_model.bin'])
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, thing, name):
    content, message = OTHER_THINGS[thing]
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=message) as e:
            load_encoder(source)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('form', ['safetensors', 'zip', 'old'])
def test_every_cut_is_noticed(tmp_path, form):
    model = vit_nano(img_size=8, patch_size=4, embed_dim=24, depth=1)
    path = tmp_path / ('x.safetensors' if form == 'safetensors' else 'x.pth')
    if form == 'safetensors':
        save(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=form == 'zip')
    data = path.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError) as e:
            open_file(path)
        assert '\n' not in str(e.value)
    path.write_bytes(data)
    assert open_file(path)[0]


# --- parts, and several files


def split(state: dict, folder: Path, ending: str) -> dict:
    "Three parts and their index, as transformers and diffusers write them."
    names = list(state)
    stem = 'model' if ending == 'safetensors' else 'pytorch_model'
    places = {}
    for number in range(3):
        file = f'{stem}-0000{number + 1}-of-00003.{ending}'
        part = {name: state[name].clone() for name in names[number::3]}
        if ending == 'safetensors':
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = dict(metadata=dict(total_size=1), weight_map=places)
    (folder / f'{stem}.{ending}.index.json').write_text(json.dumps(index))
    return index


@pytest.mark.parametrize('ending', ['safetensors', 'bin'])
def test_parts_are_read_whole_or_refused(tmp_path, ending):
    model = vit_nano(**SIZE).eval()
    index = split(model.state_dict(), tmp_path, ending)
    ours, report = load_encoder(tmp_path, num_heads=3)
    assert not report.missing
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours(x).pooled, model(x).pooled)
    index_file = next(tmp_path.glob('*.index.json'))
    parts = sorted(set(index['weight_map'].values()))
    with pytest.raises(ValueError, match='is one of 3 parts of a model'):
        load_encoder(tmp_path / parts[0], num_heads=3)
    places = index['weight_map']
    for bad, message in [
        (dict(places, extra=parts[0]), 'lack 1 of its'),
        (dict(places, extra='../evil.pth'), 'is no file of weights in the same folder'),
        (dict(places, extra=str(tmp_path / 'evil.pth')), 'is no file of weights in the same folder'),
        (dict(places, extra=f'{parts[0]}x'), 'is no file of weights'),
        (dict(places, extra=5), 'has no weight_map'),
        ({}, 'has no weight_map'),
        ('all', 'has no weight_map'),
    ]:
        index_file.write_text(json.dumps(dict(weight_map=bad)))
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path, num_heads=3)
    index_file.write_text(json.dumps(index))
    (tmp_path / parts[1]).unlink()
    with pytest.raises(ValueError, match='lacks 1 of the 3 files'):
        load_encoder(tmp_path, num_heads=3)
    index_file.unlink()
    with pytest.raises(ValueError, match='parts of one model without the index'):
        load_encoder(tmp_path, num_heads=3)


@pytest.mark.parametrize('others', [['pytorch_model.bin'], ['b.pth'], ['a.pt', 'z.ckpt']])
def test_two_files_of_weights_are_one_too_many(tmp_path, others):
    save(vit_nano(**SIZE), tmp_path / 'model.safetensors')
    for name in others:
        torch.save(vit_nano(**SIZE).state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=f'holds {1 + len(others)} files of weights'):
        load_encoder(tmp_path)
    _, report = load_encoder(tmp_path, strict=False)
    assert 'model.safetensors' in report.tolerated[0]


def test_what_a_trainer_leaves_is_no_weight_file(tmp_path):
    save(vit_nano(**SIZE), tmp_path / 'model.safetensors')
    for name in ('optimizer.pt', 'scheduler.pt', 'training_args.bin', 'rng_state_0.pth', '.hidden.pth'):
        (tmp_path / name).write_bytes(b'x')
    assert load_encoder(tmp_path)[0].width == 96


# --- tensors


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('norm.weight', None, r'lacks 1 weights of this network \(norm.weight\)'),
        ('blocks.2.attn.qkv.weight', None, 'lacks 1 weights'),
        ('norm.bias', lambda w: w * float('nan'), r'norm.bias \(not finite\)'),
        ('blocks.0.mlp.fc1.weight', lambda w: w / 0, r'fc1.weight \(not finite\)'),
        ('blocks.0.mlp.fc2.weight', lambda w: w.to(torch.int8), r'fc2.weight \(int8\)'),
        ('cls_token', lambda w: w.bool(), r'cls_token \(bool\)'),
        ('pos_embed', lambda w: w.to(torch.complex64), r'pos_embed \(complex64\)'),
    ],
)
def test_a_tensor_that_is_no_weight_is_an_error_unless_asked_for(tmp_path, name, change, message):
    state = vit_nano(**SIZE).state_dict()
    value = state.pop(name)
    if change is not None:
        state[name] = change(value)
    torch.save(state, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=message) as e:
        load_encoder(tmp_path / 'x.pth', num_heads=3)
    assert '\n' not in str(e.value)
    _, report = load_encoder(tmp_path / 'x.pth', num_heads=3, strict=False)
    assert len(report.tolerated) == 1
    assert 'tolerated' in repr(report)


def test_a_new_classifier_may_be_missing(tmp_path):
    save(vit_nano(**SIZE), tmp_path / 'x.safetensors')
    encoder, report = load_encoder(tmp_path / 'x.safetensors', num_classes=10)
    assert report.missing == ['head.weight', 'head.bias']
    assert encoder.num_classes == 10


def test_half_precision_is_welcome(tmp_path):
    state = {name: value.half() for name, value in vit_nano(**SIZE).state_dict().items()}
    save_file(state, tmp_path / 'x.safetensors')
    encoder, _ = load_encoder(tmp_path / 'x.safetensors', num_heads=3)
    assert encoder.norm.weight.dtype == torch.float32


def test_heads_that_contradict_the_file(tmp_path):
    folder = timm_folder(tmp_path / 'm')
    for source in (folder, save(vit_nano(**SIZE), tmp_path / 'x.safetensors')):
        with pytest.raises(ValueError, match='says num_heads=3, and you say num_heads=6|num_heads'):
            load_encoder(source, num_heads=6)
        assert load_encoder(source, num_heads=6, strict=False)[0].blocks[0].attn.num_heads == 6
        with pytest.raises(ValueError):
            load_encoder(source, num_heads=7, strict=False)


# --- out: every encoder, and of a method the one that is evaluated


@pytest.mark.parametrize('name', ['vit_nano', 'resnet_nano', 'convnextv2_yocto', 'swin_nano'])
@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_every_encoder_goes_out_and_in(tmp_path, name, ending):
    ours = build_encoder(name, img_size=32).eval()
    again, report = load_encoder(save(ours, tmp_path / f'x{ending}'))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x).pooled, ours(x).pooled)
    assert (report.missing, report.unexpected, report.assumed) == ([], [], [])
    assert again.img_size == ours.img_size


def swin_like_timm():
    return swin_nano(norm_layer=torch.nn.LayerNorm)


@pytest.mark.parametrize('make', [lambda: resnet18(64), lambda: resnet50(64), swin_like_timm], ids='abc')
def test_folders_are_read_by_timm(tmp_path, make):
    ours = make().eval()
    save(ours, tmp_path / 'm')
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    again, report = load_encoder(tmp_path / 'm')
    x = torch.randn(2, 3, *ours.img_size)
    expected = ours(x).pooled
    torch.testing.assert_close(theirs(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again(x).pooled, expected, rtol=1e-4, atol=1e-5)
    assert not report.missing


@pytest.mark.parametrize('eps', [1e-5, 1e-6])
def test_the_eps_of_a_swin_is_kept(tmp_path, eps):
    ours = swin_nano(norm_layer=partial(torch.nn.LayerNorm, eps=eps)).eval()
    again, _ = load_encoder(save(ours, tmp_path / 'x.safetensors'))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x).pooled, ours(x).pooled)
    if eps == 1e-6:
        with pytest.raises(ValueError, match="can't describe LayerNorm's eps of 1e-06 in a Swin"):
            save(ours, tmp_path / 'm')


def test_of_a_method_the_evaluated_encoder_is_saved_and_named(tmp_path):
    dino = DINO(vit_nano(img_size=32, patch_size=4, dynamic_img_size=True), dim=16, hidden=16)
    with torch.no_grad():
        dino.momentum_encoder.cls_token.add_(1)
    teacher, report = load_encoder(save(dino, tmp_path / 'x.safetensors'))
    assert torch.equal(teacher.cls_token, dino.momentum_encoder.cls_token)
    assert report.network == 'DINO, momentum_encoder'
    student, report = load_encoder(save(dino.encoder, tmp_path / 'x.safetensors'))
    assert torch.equal(student.cls_token, dino.encoder.cls_token)
    torch.save(dino.state_dict(), tmp_path / 'run.pth')
    encoder, report = load_encoder(tmp_path / 'run.pth', num_heads=3)
    assert torch.equal(encoder.cls_token, dino.momentum_encoder.cls_token)
    assert (report.network, report.others) == ('momentum_encoder', ['encoder'])
    simclr = SimCLR(resnet_nano())
    _, report = load_encoder(save(simclr, tmp_path / 'y.pth'))
    assert report.network == 'SimCLR, encoder'


def test_an_encoder_of_another_kind_is_saved_as_a_file(tmp_path):
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    save(linear, tmp_path / 'x.safetensors')
    assert set(open_file(tmp_path / 'x.safetensors')[0]) == {'1.weight', '1.bias'}
    with pytest.raises(ValueError, match="can't describe a Sequential"):
        save(linear, tmp_path / 'x')


def test_other_wrapping_is_undone(tmp_path):
    theirs = VisionTransformer(img_size=16, patch_size=4, embed_dim=48, depth=1, num_heads=3, num_classes=0)
    state = {f'module._orig_mod.{name}': value for name, value in theirs.state_dict().items()}
    torch.save({'model': state}, tmp_path / 'x.pth')
    assert not load_encoder(tmp_path / 'x.pth', num_heads=3)[1].missing


@pytest.mark.processes
def test_a_hostile_folder_makes_no_file_and_no_connection(tmp_path):
    "In a process of its own: whatever is opened or connected to is printed."
    folder = timm_folder(tmp_path / 'm', architecture='hf-hub:me/evil')
    code = (
        "import sys\n"
        "from vit_ssl_lab.weights import load_encoder\n"
        "seen = []\n"
        "watched = ('socket.connect', 'socket.getaddrinfo', 'os.mkdir', 'subprocess.Popen', 'os.system')\n"
        "sys.addaudithook(lambda name, args: seen.append(name) if name in watched else None)\n"
        "try: load_encoder(sys.argv[1])\n"
        "except ValueError as e: print(e)\n"
        "print('seen', seen)\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code, folder], capture_output=True, text=True, env=os.environ
    )
    assert 'never an address' in done.stdout, done.stderr
    assert 'seen []' in done.stdout


def test_load_method_has_the_same_gate(tmp_path):
    (tmp_path / 'x.pth').write_bytes(POINTER)
    with pytest.raises(ValueError, match='git-LFS pointer'):
        load_method(tmp_path / 'x.pth')
