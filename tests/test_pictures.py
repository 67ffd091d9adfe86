"Files of every kind become the right 8-bit pixels, and a folder says honestly what it holds."

import warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from helpers import seeded
from PIL import Image, ImageOps
from vit_ssl_lab.data import DataError, load
from vit_ssl_lab.data.folders import find_split, hold_out
from vit_ssl_lab.data.operations import check_unit_range, normalize, to_float
from vit_ssl_lab.data.pictures import decode, inspect, to_8_bits
from vit_ssl_lab.data.views import PRESETS, Policy, Views, views

RAMP = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)  # every value, dark to bright


def whole(path, channels=3, size=(24, 32), **options):
    "The whole picture, not resized."
    return decode(path, size, margin=1.0, channels=channels, **options)


def save_deep(path: Path, kind: str, values: np.ndarray = RAMP):
    "The ramp, as deep as `kind` says."
    if kind == 'uint16':
        Image.fromarray(values.astype(np.uint16) * 257).save(path)
    elif kind == 'int32':
        Image.fromarray(values.astype(np.int32) * 257).save(path)
    else:
        Image.fromarray((values / 255).astype(np.float32)).save(path)


# --- depth


@pytest.mark.parametrize(
    'kind, suffix', [('uint16', 'png'), ('uint16', 'tif'), ('int32', 'tif'), ('float', 'tiff')]
)
@pytest.mark.parametrize('channels', [1, 3])
def test_deep_pictures_come_back_neither_white_nor_black(tmp_path, kind, suffix, channels):
    path = tmp_path / f'deep.{suffix}'
    save_deep(path, kind)
    assert inspect(path) == (kind, 1)
    x = whole(path, channels)
    assert x.shape == (channels, 24, 32)
    assert (x.int() - torch.from_numpy(RAMP).int()).abs().max() <= 1


@pytest.mark.parametrize('high', [255, 65_535, 2**31 - 1])
def test_integers_are_scaled_by_the_least_depth_that_holds_them(high):
    values = np.array([0, high // 2, high], np.int64)
    assert to_8_bits(values).tolist() == [0, 127, 255] or to_8_bits(values).tolist() == [0, 128, 255]


def test_a_16_bit_pgm_of_4095_levels_is_not_dark(tmp_path):
    values = np.linspace(0, 4095, 24 * 32).reshape(24, 32).astype('>u2')
    (tmp_path / 'x.pgm').write_bytes(b'P5 32 24 4095\n' + values.tobytes())
    assert (whole(tmp_path / 'x.pgm', 1)[0].int() - torch.from_numpy(RAMP).int()).abs().max() <= 1


def test_a_folder_has_one_range_for_all_and_says_it_once(tmp_path):
    for split, factor in (('train', 1.0), ('test', 0.3)):  # the test pictures are darker, and must stay so
        (tmp_path / split / 'a').mkdir(parents=True)
        for i in range(3):
            values = (RAMP * factor * 100).astype(np.int32)
            Image.fromarray(values).save(tmp_path / split / 'a' / f'{i}.tif')
    with pytest.warns(UserWarning, match='3 of 3 pictures have int32 pixels: 0 is black, 65,535 is white'):
        train = load(f'folder:{tmp_path}', size=(24, 32), margin=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load(f'folder:{tmp_path}', size=(24, 32), margin=1.0)
        test = load(f'folder:{tmp_path}', 'test', size=(24, 32), margin=1.0)
    light = [next(d.batches(3, shuffle=False))[0].float().mean() for d in (train, test)]
    assert light[1] / light[0] == pytest.approx(0.3, abs=0.02)
    assert 'int32' in train.note


def test_twelve_bits_in_sixteen_are_noticed_and_can_be_stretched(tmp_path):
    for i in range(2):
        Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / f'{i}.png')
    with pytest.warns(UserWarning, match=r'none of 2 has a value above 4,080: value_range=\(0, 4080\)'):
        dark = load(f'folder:{tmp_path}', size=(24, 32), margin=1.0)
    bright = load(f'folder:{tmp_path}', size=(24, 32), margin=1.0, value_range=(0, 4080))
    assert next(dark.batches(2))[0].max() == 16
    assert next(bright.batches(2))[0].max() == 255


@pytest.mark.parametrize('value_range', [(1, 0), (0,), 5, ('a', 'b'), (0, 0)])
def test_what_is_no_range_is_refused(tmp_path, value_range):
    Image.fromarray(RAMP).save(tmp_path / '0.png')
    with pytest.raises(ValueError, match='value_range is'):
        load(f'folder:{tmp_path}', value_range=value_range)


def test_negative_heights_need_a_range(tmp_path):
    np.save(tmp_path / 'x.npy', np.linspace(-400, 8800, 24 * 32).reshape(24, 32))
    with pytest.raises(ValueError, match='say which values are black and white'):
        load(f'folder:{tmp_path}')
    d = load(f'folder:{tmp_path}', value_range=(-400, 8800), channels=1, size=(24, 32), margin=1.0)
    assert (next(d.batches(1))[0][0, 0].int() - torch.from_numpy(RAMP).int()).abs().max() <= 1


# --- orientation, transparency, palettes, suffixes


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / 'x.png', exif=tag)
    with Image.open(tmp_path / 'x.png') as stored:
        upright = np.array(ImageOps.exif_transpose(stored))
    x = whole(tmp_path / 'x.png', 1, size=upright.shape)
    assert np.array_equal(x[0].numpy(), upright)
    assert (upright.shape == (32, 24)) == (orientation >= 5)


def test_a_large_jpeg_that_was_held_upright_is_turned_and_cut_in_the_middle(tmp_path):
    picture = np.zeros((400, 800, 3), np.uint8)
    picture[:, :400] = 255  # the left half; after the turn the upper half
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / 'x.jpg', exif=tag, quality=95)
    x = decode(tmp_path / 'x.jpg', (64, 32), margin=1.0)
    assert x.shape == (3, 64, 32)
    assert x[:, :30].min() > 250
    assert x[:, 34:].max() < 5


def test_transparency_is_white_whatever_lies_under_it(tmp_path):
    for mode, colour in (('RGBA', (9, 200, 9, 0)), ('LA', (9, 0))):
        Image.new(mode, (32, 24), colour).save(tmp_path / f'{mode}.png')
        assert whole(tmp_path / f'{mode}.png').min() == 255
        assert whole(tmp_path / f'{mode}.png', 1).min() == 255
    drawing = Image.new('P', (32, 24), 1)
    drawing.putpalette([0, 0, 0, 255, 0, 0])
    drawing.save(tmp_path / 'palette.png')
    assert whole(tmp_path / 'palette.png')[:, 0, 0].tolist() == [255, 0, 0]
    drawing.save(tmp_path / 'glass.png', transparency=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert whole(tmp_path / 'glass.png').min() == 255


def test_cmyk_animations_and_wrong_suffixes_are_read(tmp_path):
    red = Image.new('RGB', (32, 24), (250, 20, 20))
    red.convert('CMYK').save(tmp_path / 'print.jpg', quality=95)
    red.save(tmp_path / 'moving.gif', save_all=True, append_images=[Image.new('RGB', (32, 24))] * 3)
    red.save(tmp_path / 'png_inside.jpg', format='PNG')
    for name in ('print.jpg', 'moving.gif', 'png_inside.jpg'):
        x = whole(tmp_path / name).float().mean((1, 2))
        assert (x - torch.tensor([250.0, 20, 20])).abs().max() < 12, name
    assert len(load(f'folder:{tmp_path}', size=16)) == 3


def test_what_is_no_picture_is_left_out(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / 'good.png')
    (tmp_path / '._good.png').write_bytes(b'\0\5\x16\7 Mac OS X')
    (tmp_path / '.DS_Store').write_bytes(b'\0\0\0\1Bud1')
    (tmp_path / '.thumbs').mkdir()
    Image.fromarray(RAMP).save(tmp_path / '.thumbs' / 'small.png')
    (tmp_path / 'notes.txt').write_text('no')
    (tmp_path / 'empty.jpg').touch()
    with pytest.warns(UserWarning, match='1 of 2 files are empty or corrupt and were skipped: empty.jpg'):
        d = load(f'folder:{tmp_path}', size=16)
    assert [Path(f).name for f in d.files] == ['good.png']
    (tmp_path / 'broken.npy').write_bytes(b'\x93NUMPY\1\0')
    assert inspect(tmp_path / 'broken.npy') == ('', 0)
    np.save(tmp_path / 'objects.npy', np.array([{}]), allow_pickle=True)
    assert inspect(tmp_path / 'objects.npy') == ('', 0)  # nothing is unpickled


# --- bands


def save_stack(path, bands, side=24, seed=0, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 60_000, (bands, side, side + 8)).astype(dtype)
    if path.suffix == '.npy':
        np.save(path, values)
    else:
        tifffile = pytest.importorskip('tifffile')
        tifffile.imwrite(path, values, photometric='minisblack', planarconfig='separate')
    return values


@pytest.mark.parametrize('bands', [2, 4, 6, 13])
@pytest.mark.parametrize('suffix', ['.npy', '.tif'])
def test_stacks_of_bands_keep_their_bands(tmp_path, bands, suffix):
    stacks = [save_stack(tmp_path / f'{i}{suffix}', bands, seed=i) for i in range(3)]
    options = {'channels': bands} if suffix == '.tif' else {}  # a TIFF of pages may be a stack or an album
    d = load(f'folder:{tmp_path}', size=(24, 32), margin=1.0, **options)
    x = next(d.batches(3, shuffle=False))[0]
    expected = np.stack(stacks) / 65_535 * 255
    assert x.shape == (3, bands, 24, 32)
    assert np.abs(x.numpy() - expected).max() <= 1
    mean = x.double().mean((0, 2, 3)) / 255
    assert torch.allclose(torch.tensor(d.mean, dtype=torch.float64), mean, atol=0.01)
    assert f'{bands} channels' in repr(d)


def test_bands_last_is_the_same_as_bands_first(tmp_path):
    values = save_stack(tmp_path / 'first.npy', 6)
    np.save(tmp_path / 'last.npy', np.moveaxis(values, 0, 2))
    a, b = (whole(tmp_path / f'{name}.npy', 6) for name in ('first', 'last'))
    assert torch.equal(a, b)


def test_bands_that_do_not_fit_are_named(tmp_path):
    save_stack(tmp_path / '0.npy', 6)
    d = load(f'folder:{tmp_path}', size=16, channels=4, mean=(0.5,) * 4, std=(0.2,) * 4)
    with pytest.raises(DataError, match='has 6 bands, not 4: give channels=6'):
        next(d.batches(1))
    with pytest.raises(ValueError, match='one value for each of the 4 channels'):
        load(f'folder:{tmp_path}', channels=4, mean=(0.5,) * 3, std=(0.2,) * 3)


def test_grey_folders_are_grey(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / '0.png')
    Image.fromarray(RAMP).convert('RGB').save(tmp_path / '1.png')
    d = load(f'folder:{tmp_path}', size=(24, 32), margin=1.0, channels=1)
    x = next(d.batches(2, shuffle=False))[0]
    assert x.shape == (2, 1, 24, 32)
    assert torch.equal(x[0, 0], torch.from_numpy(RAMP))
    assert (x[1].int() - x[0].int()).abs().max() <= 1
    assert len(d.mean) == len(d.std) == 1


# --- splits and classes


def small_tree(top: Path, splits: dict):
    "split ('' for none) -> class ('' for none) -> how many pictures."
    for split, classes in splits.items():
        for name, count in classes.items():
            base = top / split / name
            base.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(np.full((20, 30), len(name) + i, np.uint8)).save(base / f'{i}.png')
    return top


def test_classes_are_those_of_all_splits(tmp_path):
    top = small_tree(
        tmp_path, {'train': {'ant': 2, 'bee': 2, 'cat': 2}, 'val': {'bee': 2, 'cat': 1, 'dog': 1}}
    )
    train, test = load(f'folder:{top}', size=16), load(f'folder:{top}', 'test', size=16)
    assert train.classes == test.classes == ['ant', 'bee', 'cat', 'dog']
    assert [test.classes[i] for i in test.labels] == ['bee', 'bee', 'cat', 'dog']
    assert load(f'folder:{top}', 'val', size=16).files == test.files


@pytest.mark.parametrize('split', ['test', 'val', 'trian', 'Test', 'ant', ''])
def test_a_tree_without_splits_has_only_train(tmp_path, split):
    top = small_tree(tmp_path, {'': {'ant': 3, 'bee': 3}})
    assert len(load(f'folder:{top}', size=16)) == 6
    with pytest.raises(DataError, match='has no split .*held_out=0.2') as e:
        load(f'folder:{top}', split, size=16)
    assert "'train' is all of it" in str(e.value)


def test_a_tree_with_splits_names_them(tmp_path):
    top = small_tree(tmp_path, {'train': {'ant': 3}, 'val': {'ant': 1}, 'extra': {'ant': 2}})
    with pytest.raises(DataError, match="has no split 'trian': .* has train, val"):
        load(f'folder:{top}', 'trian')
    assert len(load(f'folder:{top}', 'extra', size=16)) == 2
    assert find_split(top, 'test', 'x', held_out=0.5).base == top / 'val'  # a folder goes before a share


@pytest.mark.parametrize('layout', ['', 'train'])
def test_a_held_out_share_is_the_same_every_time_and_of_each_class(tmp_path, layout):
    top = small_tree(tmp_path, {layout: {'ant': 20, 'bee': 10}})
    parts = {split: load(f'folder:{top}', split, held_out=0.2, size=16) for split in ('train', 'test')}
    assert parts['test'].labels.bincount().tolist() == [4, 2]
    assert parts['train'].labels.bincount().tolist() == [16, 8]
    assert not set(parts['train'].files) & set(parts['test'].files)
    assert load(f'folder:{top}', 'test', held_out=0.2, size=16).files == parts['test'].files
    with pytest.raises(ValueError, match='held_out is a share'):
        load(f'folder:{top}', held_out=3)


@pytest.mark.parametrize('share', [0.01, 0.5, 0.99])
def test_both_parts_hold_each_class_of_two_or_more(share):
    labels = torch.tensor([0] * 2 + [1] * 50 + [2])
    held = hold_out([f'{i}.png' for i in range(53)], labels, share)
    for label in (0, 1):
        assert 0 < int(held[labels == label].sum()) < int((labels == label).sum())


def test_a_flat_folder_needs_no_labels(tmp_path):
    top = small_tree(tmp_path, {'': {'': 256}})
    d = load(f'folder:{top}', size=16, workers=0)
    assert len(d) == 256
    assert d.classes == []
    assert d.labels.unique().tolist() == [-1]
    split = small_tree(tmp_path / 'tree', {'train': {'': 3}, 'test': {'': 2}})
    assert len(load(f'folder:{split}', 'test', size=16)) == 2
    assert len(load(f'folder:{split}/train', 'test', held_out=0.34, size=16)) == 1


def test_labels_can_be_left_away_and_loose_pictures_are_told(tmp_path):
    top = small_tree(tmp_path, {'': {'ant': 3, 'bee': 2, '': 4}})
    with pytest.warns(UserWarning, match='4 pictures lie beside the class folders and were left out'):
        assert len(load(f'folder:{top}', size=16)) == 5
    d = load(f'folder:{top}', size=16, labelled=False)
    assert len(d) == 9
    assert d.classes == []


# --- options, order


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(size=0), 'size is the crop'),
        (dict(size=(3, 4, 5)), 'size is the crop'),
        (dict(size=2.5), 'size is the crop'),
        (dict(margin=0.5), 'margin must be 1 or more'),
        (dict(channels=0), 'channels is 3'),
        (dict(workers=-1), 'workers must be 0 or more'),
        (dict(crop='left'), 'crop'),
        (dict(sise=3), "Did you mean 'size'"),
    ],
)
def test_a_wrong_option_is_no_fault_of_the_files(tmp_path, options, words):
    Image.fromarray(RAMP).save(tmp_path / '0.png')
    with pytest.raises(ValueError, match=words) as e:
        load(f'folder:{tmp_path}', **options)
    assert 'remove' not in str(e.value)


def test_oblong_crops(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / '0.png')
    for size in ((48, 16), (16, 48)):
        d = load(f'folder:{tmp_path}', size=size)
        assert next(d.batches(1))[0].shape == (1, 3, *size)
        assert d.memory().images.shape == (1, 3, *size)


def test_passes_in_order_are_equal_and_shuffled_ones_are_not(tmp_path):
    for i in range(6):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / f'{i}.png')
    d = load(f'folder:{tmp_path}', size=16)
    assert d.crop == 'random'

    def run(**how):
        return torch.cat([images for images, _, _ in d.batches(4, drop_last=False, **how)])

    assert torch.equal(run(shuffle=False), run(shuffle=False))
    assert not torch.equal(run(generator=seeded(0)), run(generator=seeded(1)))
    assert torch.equal(run(generator=seeded(0)), run(generator=seeded(0)))


# --- ranges of tensors


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: torch.randn(4, 3, 8, 8), 'look normalised already'),
        (lambda: torch.rand(4, 3, 8, 8) * 255, '0..255 as uint8'),
        (lambda: torch.full((4, 3, 8, 8), float('nan')), 'not finite'),
        (lambda: torch.rand(4, 8, 8, 3), 'move the axes'),
        (lambda: torch.rand(4, 8, 8), 'shape'),
    ],
)
@pytest.mark.parametrize('use', [to_float, lambda x: views('mae', 8, (0.5,) * 3, (0.2,) * 3)(x)])
def test_floats_that_are_no_pixels_get_one_sentence(make, words, use):
    with pytest.raises(ValueError, match=words) as e:
        use(make())
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool])
def test_integers_other_than_bytes_are_refused(dtype):
    x = torch.ones(2, 3, 8, 8, dtype=dtype)
    for use in (to_float, lambda x: normalize(x, (0.5,) * 3, (0.2,) * 3)):
        with pytest.raises(TypeError, match='convert them first'):
            use(x)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_become_float32(dtype):
    x = torch.rand(2, 3, 8, 8)
    out = views('mae', 8, (0.5,) * 3, (0.2,) * 3, generator=seeded(0))(x.to(dtype))
    assert out.dtype == torch.float32
    same = views('mae', 8, (0.5,) * 3, (0.2,) * 3, generator=seeded(0))(x)
    assert torch.allclose(out, same, atol=0.05)


def test_an_overshoot_of_an_interpolation_passes():
    check_unit_range(torch.tensor([-0.05, 1.05]))


def test_a_grey_picture_is_not_normalised_into_colour():
    with pytest.raises(ValueError, match='1 channels are normalised'):
        normalize(torch.rand(2, 1, 8, 8), (0.5,) * 3, (0.2,) * 3)


# --- views of bands


@pytest.mark.parametrize('bands', [1, 2, 4, 6, 13])
@pytest.mark.parametrize('preset', sorted(PRESETS))
def test_every_preset_works_on_bands(bands, preset):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        made = views(preset, 32, (0.5,) * bands, (0.25,) * bands, generator=seeded(0))
    out = made(torch.randint(0, 256, (3, bands, 40, 40), dtype=torch.uint8))
    out = out if isinstance(out, list) else [out]
    for view in out:
        assert view.shape[:2] == (3, bands)
        assert view.isfinite().all()


def test_brightness_of_bands_changes_and_hue_is_left_out_and_told():
    policy = Policy(crop='center', flip=0.0, jitter=(0.0, 0.0, 0.9, 0.5), jitter_p=1.0, grey=1.0)
    with pytest.warns(UserWarning, match='7 bands have no hue, saturation or grey'):
        made = Views(8, (0.0,) * 7, (1.0,) * 7, [policy], generator=seeded(0))
    x = torch.rand(2, 7, 8, 8)
    assert torch.allclose(made(x)[0], x, atol=1e-6)
    bright = Views(
        8, (0.0,) * 7, (1.0,) * 7, [Policy(crop='center', flip=0.0, jitter=(0.5, 0.5, 0, 0), jitter_p=1.0)]
    )
    assert (bright(x)[0] - x).abs().max() > 0.05
