"Data sets by name, where they are looked for, what damaged files do, and the truths of scenes."

import gzip, hashlib, os, pickle, socket
from pathlib import Path
from helpers import equal, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.datasets as tv
from PIL import Image
from vit_ssl_lab.data import DataError, Dataset, Difficulty, Scenes, builtin, load, scenes
from vit_ssl_lab.data.builtin import FASHION_MNIST_CLASSES, digits
from vit_ssl_lab.data.dataset import statistics
from vit_ssl_lab.data.download import cache_dir, downloading
from vit_ssl_lab.data.folders import decode
from vit_ssl_lab.data.photographs import PHOTOGRAPHS, atlas, photographs, region, uniform


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    "A machine without data and without a network; returns an empty folder."
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('VIT_SSL_LAB_DATA', raising=False)
    monkeypatch.setattr(builtin, 'DEBIAN_FOLDER', tmp_path / 'no-debian')

    def refuse(*a, **k):
        raise OSError("no route to the network")

    monkeypatch.setattr('urllib.request.urlopen', refuse)
    builtin._fashion_mnist.cache_clear()
    scenes._dataset.cache_clear()
    yield tmp_path / 'root'
    builtin._fashion_mnist.cache_clear()
    scenes._dataset.cache_clear()


def idx(a: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, a.ndim])
        + b''.join(int(n).to_bytes(4, 'big') for n in a.shape)
        + a.astype(np.uint8).tobytes()
    )


def write_fashion(folder: Path, monkeypatch, packed=True, n=30):
    "A small Fashion-MNIST of the true layout, with its own checksums."
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    md5 = {}
    for part in ('train', 't10k'):
        for name, a in (
            (f'{part}-images-idx3-ubyte', rng.integers(0, 256, (n, 28, 28))),
            (f'{part}-labels-idx1-ubyte', np.arange(n) % 10),
        ):
            (folder / (name + '.gz' * packed)).write_bytes(gzip.compress(idx(a)) if packed else idx(a))
            md5[name] = hashlib.md5(idx(a)).hexdigest()
    monkeypatch.setattr(builtin, 'FASHION_MNIST_MD5', md5)


# --- in memory


def test_batches_cover_each_picture_once_and_follow_the_generator():
    d = digits('test')

    def run(seed):
        return [b[2] for b in d.batches(50, seeded(seed), drop_last=False)]

    assert sorted(torch.cat(run(0)).tolist()) == list(range(len(d)))
    assert torch.equal(torch.cat(run(0)), torch.cat(run(0)))
    assert not torch.equal(torch.cat(run(0)), torch.cat(run(1)))
    for images, labels, index in d.batches(50):
        assert torch.equal(images, d.images[index])
        assert torch.equal(labels, d.labels[index])
        assert len(index) == 50


def test_subset_is_balanced_and_keeps_the_truths_in_step():
    d = load('scenes', n=300).subset(40, seed=3)
    assert len(d) == 40
    assert d.labels.bincount(minlength=10).tolist() == [4] * 10
    assert len(d.truths['caption']) == 40
    for label, caption in zip(d.labels.tolist(), d.truths['caption']):
        assert d.classes[label] in caption


def test_statistics_agree_with_torch():
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8, generator=seeded(1))
    x = images.double() / 255
    mean, std = statistics(images)
    assert np.allclose(mean, x.mean((0, 2, 3)), atol=1e-4)
    assert np.allclose(std, x.std((0, 2, 3), correction=0), atol=1e-4)


def test_digits_are_scikit_learns_and_both_splits_hold_each_class():
    from sklearn.datasets import load_digits

    train = digits('train')
    test = digits('test')
    real = load_digits()
    assert len(train) + len(test) == 1797
    for d in (train, test):
        assert d.labels.bincount(minlength=10).min() > 0.95 * len(d) / 10

    def key(images, labels):
        return sorted((bytes(x), int(y)) for x, y in zip(images, labels))

    ours = key(torch.cat([train.images, test.images]).numpy(), torch.cat([train.labels, test.labels]))
    assert ours == key((real.images * (255 / 16)).round().astype(np.uint8), real.target)


# --- where sets are looked for


@pytest.mark.parametrize('where', ['root', 'environment', 'cache', 'debian'])
@pytest.mark.parametrize('packed', [True, False])
def test_fashion_mnist_is_found_in_each_place(nowhere, monkeypatch, where, packed):
    folder = {
        'root': nowhere / 'FashionMNIST' / 'raw',
        'environment': nowhere / 'env',
        'cache': cache_dir() / 'fashion-mnist',
        'debian': nowhere / 'debian',
    }[where]
    if where == 'environment':
        monkeypatch.setenv('VIT_SSL_LAB_DATA', str(folder))
    if where == 'debian':
        monkeypatch.setattr(builtin, 'DEBIAN_FOLDER', folder)
    write_fashion(folder, monkeypatch, packed)
    d = load('fashion-mnist', root=nowhere if where == 'root' else None)
    assert d.images.shape == (30, 1, 28, 28)
    assert d.labels.tolist() == [i % 10 for i in range(30)]
    assert d.classes == FASHION_MNIST_CLASSES


def test_a_damaged_copy_is_named_and_the_next_place_is_used(nowhere, monkeypatch):
    write_fashion(nowhere, monkeypatch)
    write_fashion(cache_dir(), monkeypatch)
    whole = (nowhere / 'train-images-idx3-ubyte.gz').read_bytes()
    (nowhere / 'train-images-idx3-ubyte.gz').write_bytes(whole[: len(whole) // 2])
    d = load('fashion-mnist', root=nowhere)
    assert len(d) == 30
    assert 'train-images-idx3-ubyte.gz is damaged' in d.note


@pytest.mark.parametrize('name', ['fashion-mnist', 'cifar10', 'cifar100', 'stl10', 'imagenette'])
def test_what_can_not_be_had_says_so_and_leaves_nothing(nowhere, name):
    with pytest.raises(DataError) as e:
        load(name, root=nowhere)
    said = str(e.value)
    assert name in said
    assert str(nowhere) in said
    assert 'root=' in said
    assert "'digits'" in said
    assert '\n' not in said
    assert ('dataset-fashion-mnist' in said) == (name == 'fashion-mnist')
    assert not nowhere.exists()
    assert not cache_dir().exists()
    assert socket.getdefaulttimeout() is None


def test_an_interrupted_download_leaves_nothing_half_written(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'mine.txt').write_text('stays')
    with pytest.raises(KeyboardInterrupt):
        with downloading(tmp_path / 'data') as temp:
            (temp / 'part').write_bytes(b'x')
            raise KeyboardInterrupt
    assert os.listdir(tmp_path / 'data') == ['mine.txt']
    with downloading(tmp_path / 'data') as temp:
        (temp / 'whole').write_bytes(b'x')
    assert sorted(os.listdir(tmp_path / 'data')) == ['mine.txt', 'whole']


def test_a_file_where_the_folder_should_be_is_a_clear_error(nowhere):
    nowhere.write_text('a file')
    with pytest.raises(DataError, match="can't be had"):
        load('cifar10', root=nowhere)


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda: load('cifar'), "Did you mean 'cifar10'"),
        (lambda: load('digits', 'val'), 'train, test'),
        (lambda: load('scenes', dificulty='easy'), "Did you mean 'difficulty'"),
        (lambda: load('digits', n=3), 'no options'),
        (lambda: load('photos', n=0), 'n of 1 or more'),
        (lambda: load('scenes', n=0), '1 or more'),
        (lambda: load('scenes', difficulty='eassy'), "Did you mean 'easy'"),
    ],
)
def test_names_and_options_that_do_not_exist(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- torchvision's layouts, small


def small_cifar(folder: Path, coarse=False):
    base = folder / ('cifar-100-python' if coarse else 'cifar-10-batches-py')
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key = 'fine_labels' if coarse else 'labels'
    names = ['train', 'test'] if coarse else [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
    for name in names:
        (base / name).write_bytes(
            pickle.dumps({'data': rng.integers(0, 256, (4, 3072), dtype=np.uint8), key: [0, 1, 1, 0]})
        )
    meta = {'fine_label_names': ['apple', 'bear']} if coarse else {'label_names': ['plane', 'car']}
    (base / ('meta' if coarse else 'batches.meta')).write_bytes(pickle.dumps(meta))
    return base


@pytest.mark.parametrize('name, kind', [('cifar10', tv.CIFAR10), ('cifar100', tv.CIFAR100)])
def test_cifar_layout(nowhere, monkeypatch, name, kind):
    base = small_cifar(nowhere, name == 'cifar100')
    monkeypatch.setattr(
        tv.CIFAR10, '_check_integrity', lambda self: (Path(self.root) / self.base_folder).exists()
    )
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda *a: True)
    train = load(name, root=nowhere)
    test = load(name, 'test', root=nowhere)
    assert train.images.shape == ((4 if name == 'cifar100' else 20), 3, 32, 32)
    assert test.images.shape == (4, 3, 32, 32)
    assert test.labels.tolist() == [0, 1, 1, 0]
    assert len(train.classes) == 2
    stored = pickle.loads((base / ('test' if name == 'cifar100' else 'test_batch')).read_bytes())['data']
    assert np.array_equal(test.images.flatten(1).numpy(), stored)  # rows are channels, rows, columns


def test_a_download_goes_to_the_first_place_whole(nowhere, monkeypatch):
    monkeypatch.setattr(
        tv.CIFAR10, '_check_integrity', lambda self: (Path(self.root) / self.base_folder).exists()
    )
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda *a: True)
    monkeypatch.setattr(tv.CIFAR10, 'download', lambda self: small_cifar(Path(self.root)))
    assert len(load('cifar10', root=nowhere)) == 20
    assert os.listdir(nowhere) == ['cifar-10-batches-py']


def test_damaged_cifar_is_refused_before_it_is_unpickled(nowhere):
    small_cifar(nowhere)  # torchvision's checksums are in force, and these are not its files
    with pytest.raises(DataError, match='cifar10'):
        load('cifar10', root=nowhere)


def test_stl10_layout(nowhere, monkeypatch):
    base = nowhere / 'stl10_binary'
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)  # stored column by column
    for part in ('train', 'test', 'unlabeled'):
        a.tofile(base / f'{part}_X.bin')
    for part in ('train', 'test'):
        np.array([1, 2, 10], np.uint8).tofile(base / f'{part}_y.bin')
    (base / 'class_names.txt').write_text('\n'.join(map(str, range(10))))
    monkeypatch.setattr(
        tv.STL10, '_check_integrity', lambda self: (Path(self.root) / self.base_folder).exists()
    )
    d = load('stl10', 'test', root=nowhere)
    assert np.array_equal(d.images.numpy(), a.transpose(0, 1, 3, 2))
    assert d.labels.tolist() == [0, 1, 9]
    assert len(d.classes) == 10
    assert load('stl10', 'unlabeled', root=nowhere).labels.tolist() == [-1] * 3


def test_imagenette_layout(nowhere):
    for split in ('train', 'val'):
        for wnid in ('n01440764', 'n02102040'):
            (nowhere / 'imagenette2-160' / split / wnid).mkdir(parents=True)
            for i in range(2):
                Image.new('RGB', (200, 160), (40 * i, 90, 9)).save(
                    nowhere / 'imagenette2-160' / split / wnid / f'{i}.JPEG'
                )
    d = load('imagenette', 'test', root=nowhere, size=64)
    assert d.classes == ['tench', 'English springer']
    assert len(d) == 4
    assert next(d.batches(4))[0].shape == (4, 3, 64, 64)


# --- folders


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (('cat', 5), ('dog', 4)):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (50 + 9 * i, 80, 3), dtype=np.uint8)).save(
                tmp_path / 'train' / name / f'{i}.jpg', quality=95
            )
    Image.new('L', (70, 70), 99).save(tmp_path / 'train' / 'dog' / 'grey.png')
    Image.new('RGBA', (60, 90)).save(tmp_path / 'train' / 'dog' / 'glass.png')
    (tmp_path / 'train' / 'cat' / 'notes.md').write_text('not a picture, and does not look like one')
    (tmp_path / 'nothing').mkdir()
    return tmp_path


def test_empty_and_corrupt_files_are_counted(tree):
    (tree / 'train' / 'cat' / 'empty.jpg').touch()
    (tree / 'train' / 'dog' / 'text.png').write_text('no')
    with pytest.warns(UserWarning, match='2 of 13 files are empty or corrupt'):
        d = load(f'folder:{tree}', size=32)
    assert len(d) == 11
    assert '2 of 13' in d.note
    assert {Path(f).name for f in d.skipped} == {'empty.jpg', 'text.png'}
    assert d.labels.bincount().tolist() == [5, 6]
    assert '2 skipped' in repr(d)


def test_a_file_cut_short_is_replaced_counted_and_told(tree):
    path = tree / 'train' / 'cat' / '4.jpg'
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # its header is fine
    d = load(f'folder:{tree}', size=32)
    with pytest.warns(UserWarning, match=r'1 of 11 pictures .* 4\.jpg'):
        batches = list(d.batches(4, drop_last=False))
    assert [len(b[0]) for b in batches] == [4, 4, 3]
    assert d.skipped == [str(path)]
    assert all(d.files[i] != str(path) for b in batches for i in b[2].tolist())
    with pytest.warns(UserWarning):
        assert len(d.memory()) == 10


def test_workers_and_batch_size_change_nothing(tree):
    d = load(f'folder:{tree}', size=24)

    def run(workers, size):
        d.workers = workers
        b = list(d.batches(size, seeded(5), drop_last=False))
        return torch.cat([x[0] for x in b]), torch.cat([x[2] for x in b])

    a, i = run(0, 4)
    b, j = run(2, 4)
    c, k = run(0, 11)
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    assert torch.equal(i, j)
    assert torch.equal(i, k)


def test_the_centre_crop_is_where_it_should_be(tmp_path):
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    Image.fromarray(ramp).save(tmp_path / 'r.png')
    x = decode(tmp_path / 'r.png', 50, margin=1.0)[0].float()
    assert abs(float(x[25].mean()) - 99.5) < 1
    assert abs(float(x[25, -1] - x[25, 0]) - 98) < 2


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda t: load(f'folder:{t}/no'), 'is no folder'),
        (lambda t: load(f'folder:{t}', 'test'), 'has no split'),
        (lambda t: load(f'folder:{t}/nothing'), 'is empty'),
        (lambda t: load(f'folder:{t}', crop='middle'), 'crop'),
    ],
)
def test_folders_that_can_not_be_read(tree, make, words):
    with pytest.raises((DataError, ValueError), match=words) as e:
        make(tree)
    assert '\n' not in str(e.value)


# --- photographs and random numbers


def test_regions_of_train_and_test_share_no_pixel():
    for size in ((300, 200), (200, 300), (512, 512)):
        numbers = Image.fromarray(np.arange(size[0] * size[1], dtype=np.int32).reshape(size[1], size[0]))
        a, b = (set(np.asarray(region(numbers, s)).ravel().tolist()) for s in ('train', 'test'))
        assert a
        assert b
        assert not a & b


def test_crops_are_pixels_of_the_atlas():
    book = atlas('test', 24)
    z = torch.zeros(3)
    which = torch.tensor([0, 7, 15])
    x = book.crops(which, z, z, z)
    for k, w in enumerate(which.tolist()):
        start, h, width = book.table[w, 0].tolist()
        rows = (
            book.pixels[start : start + h * width]
            .view(h, width)[:24, :24]
            .contiguous()
            .view(torch.uint8)
            .view(24, 24, 4)[..., :3]
        )
        assert torch.equal(x[k], rows.permute(2, 0, 1))
    one = torch.ones(3)
    # the far corner is inside too
    assert torch.equal(book.crops(which, one, one, one), book.crops(which, one * 0.999, one, one))


def test_every_photograph_ships():
    assert len(photographs()) == len(PHOTOGRAPHS) == 16


def test_uniform_is_uniform_and_a_function():
    i = torch.arange(200_000)
    u = uniform(i, 1, 'x')
    assert 0 <= float(u.min())
    assert float(u.max()) < 1
    assert torch.equal(u[5:9], uniform(i[5:9], 1, 'x'))
    counts = torch.histc(u, 50)
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 100  # chi-square, 49 degrees of freedom: p of 1e-5
    pairs = torch.stack([u[:-1] * 10, u[1:] * 10]).long()
    cells = torch.bincount(pairs[0] * 10 + pairs[1], minlength=100)
    assert float(((cells - 2000.0) ** 2 / 2000).sum()) < 180


# --- scenes


@pytest.mark.parametrize('difficulty', ['easy', 'medium', 'hard'])
@pytest.mark.parametrize('objects', [1, 2])
def test_a_scene_depends_on_its_index_alone(difficulty, objects):
    s = Scenes('train', 32, difficulty, seed=4, objects=objects)
    whole = s.batch(torch.arange(40))
    some = Scenes('train', 32, difficulty, seed=4, objects=objects).batch(torch.tensor([31, 2, 17]))
    assert torch.equal(some.images, whole.images[[31, 2, 17]])
    assert torch.equal(some.masks, whole.masks[[31, 2, 17]])
    other = Scenes('train', 32, difficulty, seed=5, objects=objects).batch(torch.tensor([31, 2, 17]))
    assert not torch.equal(other.images, some.images)


def test_size_changes_only_the_resolution():
    small, large = (Scenes('test', s, 'easy').batch(torch.arange(60)) for s in (32, 96))
    assert equal(small.params, large.params)
    shrunk = F.avg_pool2d(large.masks.float(), 3)
    assert (shrunk - small.masks.float()).abs().mean() < 12  # of 255


@pytest.mark.parametrize('objects', [1, 2])
def test_masks_say_which_pixels_the_garment_changes(objects):
    s = Scenes('test', 48, 'medium', objects=objects)
    params = s.params(torch.arange(50))
    other_tints = params._replace(colour=1 - params.colour)
    a, b = s.render(params), s.render(other_tints)  # all else equal
    changed = (a.images.int() - b.images.int()).abs().amax(1) > 2
    covered = a.masks.int().sum(1)
    assert not (changed & (covered == 0)).any()
    assert (a.masks.int().sum(1) <= 255).all()


def test_boxes_and_tints_are_true():
    s = Scenes('train', 48, 'hard')
    b = s.batch(torch.arange(80))
    for mask, (x0, y0, x1, y1) in zip(b.masks[:, 0] > 127, b.boxes[:, 0].tolist()):
        if not mask.any():
            continue
        assert mask.any(0).nonzero().squeeze(1)[[0, -1]].tolist() == [x0, x1 - 1]
        assert mask.any(1).nonzero().squeeze(1)[[0, -1]].tolist() == [y0, y1 - 1]
    solid = b.masks[:, 0] == 255
    for name, channel in (('red', 0), ('green', 1), ('blue', 2)):
        mine = b.params.tint[:, 0] == s.tints.index(name)
        colour = torch.stack(
            [(b.images[:, c].float() * solid)[mine].sum() / solid[mine].sum() for c in range(3)]
        )
        assert colour.argmax() == channel


def test_train_and_test_use_other_garments_and_the_first_pass_uses_each_once():
    train, test = Scenes('train'), Scenes('test')
    index = torch.arange(len(test.labels))
    assert len(test.params(index).garment.unique()) == len(index)
    a, b = (set(map(bytes, s.garments.flatten(1).numpy())) for s in (test, train))
    assert len(a & b) < 5  # Fashion-MNIST itself holds a picture or two twice


def test_captions():
    s = Scenes('train', objects=2)
    params = s.params(torch.arange(200))
    for text, labels, tints, back in zip(
        s.captions(params), params.label.tolist(), params.tint.tolist(), params.background.tolist()
    ):
        assert text.endswith(f' on {s.backgrounds[back]}')
        assert ' and ' in text
        assert 'a orange' not in text
        for c, t in zip(labels, tints):
            assert f'{s.tints[t]} {s.classes[c]}' in text
    assert 'trouser ' not in ' '.join(s.captions(params))


def test_pairs_correspond():
    p = Scenes('train', 48, 'medium').pair(torch.arange(40), zoom=(0.7, 0.9))
    assert p.valid.float().mean() > 0.4
    grid = (p.flow + 0.5) * 2 / 48 - 1

    def error(x, y):
        return float((((x.float() - y.float()).abs().mean(1)) * p.valid).sum() / p.valid.sum())

    back = F.grid_sample(p.second.float(), grid, align_corners=False)
    assert error(back, p.first) < 0.25 * error(p.second, p.first)
    wrong = F.grid_sample(p.second.float(), grid.flip(0), align_corners=False)  # other pictures' warps
    assert error(back, p.first) < 0.25 * error(wrong, p.first)
    alone, among = (Scenes('train', 48, 'medium').pair(i) for i in (torch.tensor([7]), torch.arange(9)))
    assert torch.equal(alone.second[0], among.second[7])


def test_clips_move_as_they_say():
    s = Scenes('train', 48, 'medium')
    c = s.clip(torch.arange(12), frames=6)
    assert c.images.shape == (12, 6, 3, 48, 48)
    assert c.motion.abs().max() <= 0.04 * 48 + 1e-4
    assert c.motion.abs().mean() > 0.2
    middle = (c.boxes[..., :2] + c.boxes[..., 2:]).float() / 2
    inside = ((c.boxes[..., :2] > 0) & (c.boxes[..., 2:] < 48)).all(-1).all(1).all(1)
    assert inside.any()
    assert ((middle.diff(dim=1) - c.motion)[inside].abs() <= 1.5).all()
    still = s.clip(torch.arange(3), frames=3, speed=0.0, pan=0.0)
    assert torch.equal(still.images[:, 0], still.images[:, 2])
    assert not still.camera.any()
    panned = s.clip(torch.arange(12), frames=4, speed=0.0, pan=0.03)
    checked = 0
    for i in range(12):  # the background, shifted back, is the earlier background
        dx, dy = panned.camera[i, 0].tolist()
        a = panned.images[i, 0].float()
        b = panned.images[i, 1].float()
        free = (panned.masks[i, 0, 0] == 0) & (torch.roll(panned.masks[i, 1, 0], (-dy, -dx), (0, 1)) == 0)
        free[:8] = free[-8:] = False
        free[:, :8] = free[:, -8:] = False
        if max(abs(dx), abs(dy)) > 7 or not free.any():
            continue
        checked += bool(dx or dy)
        # its contrast is about the crop's own mean colour, which changes a little
        assert ((a - torch.roll(b, (-dy, -dx), (1, 2))).abs().mean(0)[free]).mean() < 6
    assert checked >= 3


def test_digits_stand_in_and_the_set_says_so(nowhere):
    d = load('scenes', root=nowhere, n=20)
    assert 'digits stand in' in d.note
    assert 'digits stand in' in repr(d)
    assert d.classes == [str(i) for i in range(10)]
    assert (d.truths['mask'] > 127).any()


def test_a_scenes_set_is_made_once_and_can_not_be_spoilt():
    a, b = load('scenes', n=50), load('scenes', n=50)
    assert a.images.data_ptr() == b.images.data_ptr()
    a.truths.pop('mask')
    assert 'mask' in load('scenes', n=50).truths
    assert a.source.split == 'train'
    assert torch.equal(a.source.batch(torch.tensor([9])).images[0], a.images[9])


def test_own_difficulty():
    d = load(
        'scenes', 'test', n=10, difficulty=Difficulty(height=(0.3, 0.31), place=0.0, tilt=0.0, flip=False)
    )
    middle = (d.truths['box'][..., :2] + d.truths['box'][..., 2:]).float() / 2
    assert (middle - 24).abs().max() < 5
    assert isinstance(d, Dataset)
