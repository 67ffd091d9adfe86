"""How a run starts: from given weights, with trackers, on an encoder of timm."""

from pathlib import Path
import pytest
import torch
from accelerate.tracking import GeneralTracker
from helpers import equal
from torch import nn
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders import timm_encoder
from vit_ssl_lab.encoders.resnet import resnet_nano
from vit_ssl_lab.training import build, cli, pretrain, recipe
from vit_ssl_lab.training.loop import check_trackers, load_run
from vit_ssl_lab.weights import load_encoder, save

pytestmark = pytest.mark.unit

SMALL = dict(embed_dim=24, depth=2, num_heads=2, global_pool='token')


def small(method='mae', **changes):
    return recipe(
        method, 'laptop', data='digits', **dict(img_size=16, patch_size=4, steps=2, batch_size=8) | changes
    )


@pytest.fixture(scope='module')
def digits():
    return load('digits')


@pytest.fixture
def trained(digits, tmp_path):
    "A file with weights that no initialisation draws, and the encoder they are of."
    torch.manual_seed(5)
    encoder = build(small(encoder_options=SMALL), digits).encoder
    for p in encoder.parameters():
        p.data += 1.0
    return save(encoder, tmp_path / 'trained.safetensors'), encoder


@pytest.mark.parametrize('method', ['mae', 'byol', 'mocov3', 'dino'])
def test_the_encoder_and_its_momentum_copy_start_from_the_weights(method, digits, trained, capsys):
    file, encoder = trained
    options = SMALL | dict(stem='patchify', positions='sincos', class_token=True)
    r = small(
        method,
        encoder='vit_nano',
        encoder_options=options | dict(dynamic_img_size=method == 'dino'),
        init='paper',
    )
    if method == 'dino':
        r = r.but(views_options=dict(local_size=8))
    made = build(r, digits, weights=file)
    for network in (made.encoder, getattr(made, 'momentum_encoder', made.encoder)):
        assert equal(network.state_dict(), encoder.state_dict())
    assert f'{file.name} (timm layout): {len(encoder.state_dict())} weights used' in capsys.readouterr().out


def test_positions_are_resampled_to_the_recipe_s_size(digits, trained, capsys):
    file, encoder = trained
    made = build(small(img_size=32, encoder_options=SMALL), digits, weights=file)
    assert made.encoder.grid == (8, 8) and made.encoder.pos_embed.shape[1] == 65
    assert made.encoder.patch_embed.proj.weight.equal(encoder.patch_embed.proj.weight)
    assert 'resampled: pos_embed 4x4 -> 8x8' in capsys.readouterr().out


@pytest.mark.parametrize(
    'changes, sentence',
    [
        (
            dict(encoder_options=SMALL | dict(num_heads=4)),
            r'heads of its blocks: \[2, 2\] there, \[4, 4\] here',
        ),
        (dict(encoder_options=SMALL | dict(depth=3)), 'blocks.2.*missing there'),
        (dict(encoder_options=SMALL | dict(embed_dim=32)), r'\(1, 1, 24\) there, \(1, 1, 32\) here'),
        (
            dict(encoder_options=SMALL | dict(class_token=False, global_pool='avg')),
            r'pos_embed is \(1, 17, 24\) there, \(1, 16, 24\) here',
        ),
        (dict(patch_size=8, encoder_options=SMALL), 'patch_embed.proj.weight is'),
        (dict(encoder='resnet_nano', method='simclr', patch_size=None), 'a ViT there, a ResNet here'),
    ],
)
def test_weights_of_another_network_are_refused(changes, sentence, digits, trained):
    file, _ = trained
    changes = dict(changes)
    r = small(changes.pop('method', 'mae'), **changes)
    with pytest.raises(ValueError, match="isn't the network of the recipe's encoder .*" + sentence):
        build(r, digits, weights=file)


def test_weights_that_are_not_there_or_for_an_encoder_that_has_some(digits, trained):
    file, encoder = trained
    with pytest.raises(FileNotFoundError, match='no file, no folder and no timm name'):
        build(small(), digits, weights='nowhere.safetensors')
    with pytest.raises(ValueError, match='give one of the two'):
        build(small(), digits, encoder, weights=file)


def test_the_command_line_takes_weights(trained, tmp_path, capsys):
    file, encoder = trained
    options = [word for name, value in SMALL.items() for word in ('--set', f'encoder_options.{name}={value}')]
    words = [
        'mae',
        '--data',
        'digits',
        '--weights',
        str(file),
        '--out',
        str(tmp_path / 'run'),
        '--device',
        'cpu',
    ]
    words += [
        '--set',
        'img_size=16',
        '--set',
        'patch_size=4',
        '--set',
        'steps=1',
        '--set',
        'base_lr=1e-9',
        *options,
    ]
    cli.run(cli.parse(words))
    assert 'weights used' in capsys.readouterr().out
    weight = load_run(tmp_path / 'run').encoder.blocks[0].attn.qkv.weight
    torch.testing.assert_close(weight, encoder.blocks[0].attn.qkv.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'method, name', [('byol', 'test_efficientnet'), ('mae', 'vit_small_patch16_rope_224')]
)
def test_a_recipe_names_a_timm_network_and_its_run_comes_back(method, name, digits, tmp_path):
    is_vit = method == 'mae'
    options = dict(embed_dim=24, depth=1, num_heads=2) if is_vit else {}
    patch_size = 8 if is_vit else None
    r = small(method, encoder=f'timm:{name}', img_size=32, patch_size=patch_size, encoder_options=options)
    made = build(r, digits)
    pretrain(made, digits, r, out=tmp_path, quiet=True, device='cpu')
    again = load_run(tmp_path)
    assert type(again.encoder) is type(made.encoder) and equal(again.state_dict(), made.state_dict())


def test_a_timm_encoder_of_one_s_own_comes_back_or_is_asked_for(digits, tmp_path):
    own = timm_encoder('test_efficientnet', img_size=32, in_chans=1)
    r = small('simclr', img_size=32)
    made = build(r, digits, encoder=own)
    assert made.encoder is own
    pretrain(made, digits, r, out=tmp_path, quiet=True, device='cpu')
    again = load_run(
        tmp_path, method=build(r, digits, encoder=timm_encoder('test_efficientnet', 32, in_chans=1))
    )
    assert equal(again.state_dict(), made.state_dict())


def test_load_encoder_knows_every_timm_name():
    encoder, report = load_encoder('timm:test_efficientnet', img_size=64, pretrained=False)
    assert type(encoder).__name__ == 'EfficientNetEncoder' and encoder.img_size == (64, 64)
    assert report.missing == list(encoder.state_dict())
    rotary, _ = load_encoder(
        'vit_small_patch16_dinov3', 64, pretrained=False, embed_dim=48, depth=1, num_heads=2
    )
    assert rotary(torch.zeros(1, 3, 64, 64), torch.tensor([[0, 3]])).patches.shape == (1, 2, 48)


class Rows(GeneralTracker):
    name = 'rows'
    requires_logging_directory = False
    main_process_only = True

    def __init__(self):
        super().__init__()
        self.rows: list = []
        self.settings: dict = {}
        self.finished = 0

    @property
    def tracker(self):
        return self.rows

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **kwargs):
        self.rows.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize('has_folder', [False, True])
def test_a_tracker_of_one_s_own_gets_settings_and_rows(has_folder, digits, tmp_path):
    r = small(encoder_options=SMALL)
    tracker = Rows()
    history = pretrain(
        build(r, digits),
        digits,
        r,
        out=tmp_path if has_folder else None,
        trackers=tracker,
        quiet=True,
        device='cpu',
    )
    assert [(row['step'], row['loss']) for row in history.rows] == [
        (step, row['loss']) for step, row in tracker.rows
    ]
    assert tracker.settings['base_lr'] == r.base_lr and tracker.finished == 1


@pytest.mark.parametrize(
    'trackers, error, sentence',
    [
        (
            'comet_ml',
            ValueError,
            "The tracker 'comet_ml' is known, but its package isn't installed: pip install comet_ml",
        ),
        (['wandbb'], ValueError, "no tracker 'wandbb'. Did you mean 'wandb'"),
        ([nn.Linear(1, 1)], TypeError, 'an accelerate.tracking.GeneralTracker: got Linear'),
        ('tensorboard', ValueError, 'writes files: give out= a folder'),
    ],
)
def test_trackers_that_can_t_be_had(trackers, error, sentence):
    with pytest.raises(error, match=sentence):
        check_trackers(trackers, has_folder=trackers != 'tensorboard')


def test_a_resnet_has_no_heads_and_starts_from_its_own(digits, tmp_path):
    source = resnet_nano(img_size=16, in_chans=1, stem='imagenet', zero_init_last=False)
    file = save(source, Path(tmp_path) / 'resnet.safetensors')
    made = build(small('simclr', patch_size=None), digits, weights=file)
    assert equal(made.encoder.state_dict(), source.state_dict())
