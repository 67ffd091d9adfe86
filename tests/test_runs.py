"""What a run's folder promises: what was trained comes back as it was, or is refused; nobody else's
checkpoint is continued; one process at a time writes; and no bit may change unnoticed."""

import errno, functools, json, os, random, shutil, signal, sys
from pathlib import Path
import pytest
import torch
from torch import nn
from damage import RUN, checkpoint_files, die_at_write, flips, resumed_state, same_tensors, start
from helpers import equal, weights
from small_run import fork_server, small, whole
from two_processes import Group
from vit_ssl_lab import blueprint
from vit_ssl_lab.core import transfer_encoder
from vit_ssl_lab.data import load
from vit_ssl_lab.data.views import Policy, Views, views
from vit_ssl_lab.encoders.backbone import timm_encoder
from vit_ssl_lab.encoders.resnet import ResNet
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.methods.byol import BYOL
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.methods.simclr import SimCLR
from vit_ssl_lab.training import build, loop, pretrain, recipe
from vit_ssl_lab.training import checkpoints as ckpt
from vit_ssl_lab.training.build import method_names
from vit_ssl_lab.training.loop import load_run

DIGITS = load('digits')
GREY = dict(mean=DIGITS.mean, std=DIGITS.std)


def train(method, out, r=None, **options):
    "A run of a few steps in this process."
    return pretrain(method, DIGITS, r or small(steps=1), out=out, quiet=True, device='cpu', **options)


def mae(heads=2, cls=MAE, **options):
    "MAE as nobody's recipe has it."
    encoder = vit_nano(img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=1, num_heads=heads)
    options = dict(views=views('mae', size=8, **GREY)) | options
    return cls(encoder, 16, 1, 2, **options)


def store(out: Path, method: nn.Module, r, data) -> None:
    "A run's folder as it is after no step."
    ckpt.claim(out, loop.identity(r, data, method))
    run_id = ckpt.read_run(out)['id']
    optimizer = dict(values={}, groups=[])
    ckpt.save_checkpoint(
        out, 1, dict(method=method.state_dict()), dict(run=run_id, optimizer=optimizer, seconds=0.0)
    )


def assert_came_back(out: Path, method: nn.Module) -> None:
    "Every option and every tensor."
    back = load_run(out)
    assert type(back) is type(method)
    assert not blueprint.differences(blueprint.fingerprint(method), blueprint.fingerprint(back))
    assert equal(weights(method), weights(back))


# --- what was trained comes back


def six_heads():
    method = mae(heads=6, mask_ratio=0.5, norm_pix=True)
    assert method.encoder.blocks[0].attn.num_heads == 6
    return method


def set_later():
    method = mae()
    method.mask_ratio = 0.4
    method.views.policies = [Policy(scale=(0.9, 1.0))]
    return method


def own_resnet():
    encoder = ResNet(
        layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), img_size=8, in_chans=1, stem="small", drop_path_rate=0.1
    )
    policies = [Policy(crop='center'), Policy(flip=0.3)]
    return SimCLR(encoder, hidden=8, dim=4, temperature=0.3, views=Views(8, *GREY.values(), policies))


def of_timm():
    sizes = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=1, num_heads=3)
    encoder = ViT.from_timm(
        'vit_tiny_patch16_224', **sizes, norm_layer=functools.partial(nn.LayerNorm, eps=1e-4)
    )
    return MAE(encoder, 16, 1, 2, views=views('mae', size=8, **GREY))


def any_timm_network():
    encoder = timm_encoder('test_efficientnet', 32, in_chans=1, drop_rate=0.2)
    return BYOL(encoder, hidden=8, dim=4, momentum=0.9, views=views('byol', size=32, **GREY))


@pytest.mark.parametrize('make', [six_heads, set_later, own_resnet, of_timm, any_timm_network])
def test_a_method_that_no_recipe_describes_comes_back(make, tmp_path):
    "The recipe of the run is MAE's with three quarters hidden and two heads, whatever is trained."
    method = make()
    train(method, tmp_path / 'run')
    assert_came_back(tmp_path / 'run', method)
    train(make(), tmp_path / 'run')  # and it is the same run


@pytest.mark.parametrize('name', method_names())
def test_every_method_comes_back_from_its_recipe_and_from_its_notes(name, tmp_path):
    data = load('scenes', n=16, split='train') if name == 'flip' else DIGITS
    size = {} if name == 'flip' else dict(data='digits')
    r = recipe(name, 'laptop', **size)
    method = build(r, data)
    store(tmp_path, method, r, data)
    assert_came_back(tmp_path, method)
    again = loop.from_notes(ckpt.read_run(tmp_path), ())
    assert not blueprint.differences(blueprint.fingerprint(method), blueprint.fingerprint(again))


@pytest.mark.parametrize(
    'other,says',
    [
        (lambda: mae(mask_ratio=0.5), 'mask_ratio 0.5 there, 0.75 here|mask_ratio 0.75 there, 0.5 here'),
        (lambda: mae(norm_pix=False), 'norm_pix'),
        (lambda: mae(heads=6), 'num_heads 2 there, 6 here'),
        (lambda: mae(views=views('mae', size=8, mean=(0.1,), std=DIGITS.std)), 'views.mean'),
        (lambda: mae(views=views('mae', size=8, scale=(0.9, 1.0), **GREY)), 'views.policies.0.scale'),
        (lambda: mae().requires_grad_(False), 'which of its tensors learn'),
        (own_resnet, 'class vit_ssl_lab.methods.mae:MAE there, vit_ssl_lab.methods.simclr:SimCLR here'),
    ],
)
def test_another_method_is_neither_resumed_nor_loaded(other, says, tmp_path):
    store(tmp_path, mae(), small(steps=1), DIGITS)
    with pytest.raises(ValueError, match=f"belongs to another run .*({says})"):
        train(other(), tmp_path)
    with pytest.raises(ValueError, match=f"isn't built like the one that was trained .*({says})"):
        load_run(tmp_path, method=other())


class MyMAE(MAE):
    "A subclass that lives in a test."

    def __init__(self, *args, weight=1.0, **kw):
        super().__init__(*args, **kw)
        self.weight = weight


class Foreign(nn.Module):
    "A method that inherits from nothing of ours."

    needs = ()

    def __init__(self, encoder, power=2):
        super().__init__()
        self.encoder, self.views, self.power = encoder, nn.Identity(), power

    def forward(self, images):
        return dict(loss=self.encoder(images.flatten(1) / 255).abs().pow(self.power).mean())

    def after_step(self, progress): ...


@pytest.mark.parametrize(
    'make,other',
    [
        (lambda: mae(cls=MyMAE, weight=3.0), lambda: mae(cls=MyMAE)),
        (lambda: Foreign(nn.Linear(64, 4), 3), lambda: Foreign(nn.Linear(64, 4))),
        (lambda: Foreign(nn.Sequential(nn.Linear(64, 4), nn.GELU())), lambda: Foreign(nn.Linear(64, 4))),
    ],
)
def test_a_class_of_ones_own_is_given(make, other, tmp_path):
    method = make()
    train(method, tmp_path)
    with pytest.raises(
        ValueError, match=r"can't be built from the folder alone .*load_run\(out, method=my_method\)"
    ):
        load_run(tmp_path)
    assert equal(weights(load_run(tmp_path, method=make())), weights(method))
    with pytest.raises(ValueError, match="isn't built like the one that was trained"):
        load_run(tmp_path, method=other())


def test_a_package_of_ones_own_is_imported_when_trusted(tmp_path, monkeypatch):
    package = tmp_path / 'my_lab_of_a_test'
    package.mkdir()
    code = (
        "from pathlib import Path\n"
        "Path(__file__).with_name('was_imported').touch()\n"
        "from vit_ssl_lab.methods.mae import MAE\n"
        "class HalfMAE(MAE):\n"
        "    def __init__(self, encoder, **kw):\n"
        "        super().__init__(encoder, 16, 1, 2, mask_ratio=0.5, **kw)\n"
    )
    (package / '__init__.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from my_lab_of_a_test import HalfMAE

    encoder = vit_nano(img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=1, num_heads=2)
    train(HalfMAE(encoder, views=views('mae', size=8, **GREY)), tmp_path / 'run')
    monkeypatch.delitem(sys.modules, 'my_lab_of_a_test')
    (package / 'was_imported').unlink()
    with pytest.raises(ValueError, match="give trust='my_lab_of_a_test'"):
        load_run(tmp_path / 'run')
    assert not (package / 'was_imported').exists()
    assert load_run(tmp_path / 'run', trust='my_lab_of_a_test').mask_ratio == 0.5


@pytest.mark.parametrize(
    'note',
    [
        {'$': 'new', 'class': 'os:system', 'arguments': {'command': 'touch {mark}'}},
        {'$': 'new', 'class': 'vit_ssl_lab.core:os.system', 'arguments': {'command': 'touch {mark}'}},
        {'$': 'new', 'class': 'vit_ssl_lab.weights:load_encoder', 'arguments': {'source': '{mark}'}},
        {'$': 'partial', 'of': {'$': 'class', 'of': 'os:system'}, 'args': ['touch {mark}'], 'keywords': {}},
        {'$': 'made', 'by': 'subprocess:getoutput', 'name': 'test_vit', 'options': {}},
        {'$': 'made', 'by': 'timm:create_model', 'name': 'test_vit', 'options': {}},
        {'$': 'from_timm', 'class': 'vit_ssl_lab.encoders.vit:ViT', 'name': 'hf-hub:a/b', 'options': {}},
        {
            '$': 'from_timm',
            'class': 'vit_ssl_lab.encoders.vit:ViT',
            'name': 'local-dir:{mark}',
            'options': {},
        },
    ],
)
def test_a_hostile_folder_executes_nothing(note, tmp_path):
    "The notes of a run are replaced, and sealed anew."
    mark = tmp_path / 'mark'
    store(tmp_path / 'run', six_heads(), small(steps=1), DIGITS)
    run = ckpt.read_run(tmp_path / 'run')
    note = json.loads(json.dumps(note).replace('{mark}', str(mark)))
    run['method']['built']['arguments']['encoder'] = note
    (tmp_path / 'run' / 'run.json').write_bytes(ckpt.sealed(run))
    with pytest.raises(ValueError, match="can't be built from the folder alone"):
        load_run(tmp_path / 'run')
    assert not mark.exists()


def test_timm_options_that_read_files_are_left_out(monkeypatch):
    note = blueprint.describe(of_timm().encoder)
    note['options'] |= dict(checkpoint_path='/nowhere/evil.pth', pretrained=True)
    assert blueprint.rebuild(note).blocks[0].attn.num_heads == 3


def test_the_encoder_that_is_evaluated_and_the_averaged_one(tmp_path, capsys):
    r = recipe('dino', 'laptop', data='digits')
    method = build(r, DIGITS)
    with torch.no_grad():
        for p in transfer_encoder(method).parameters():
            p.add_(1)
    store(tmp_path / 'dino', method, r, DIGITS)
    encoder = load_run(tmp_path / 'dino', part='encoder')
    assert equal(weights(encoder), weights(method.momentum_encoder))
    assert "DINO, step 1 of" in (said := capsys.readouterr().out)
    assert said.endswith("its momentum_encoder\n")
    with pytest.raises(ValueError, match="no averaged encoder"):
        load_run(tmp_path / 'dino', part='ema')
    _, h = whole(tmp_path / 'mae', steps=3, ema=0.5)
    assert equal(weights(load_run(tmp_path / 'mae', part='ema', quiet=True)), weights(h.ema))
    assert not capsys.readouterr().out


# --- whose checkpoints are they?


def test_checkpoints_without_a_run_are_not_continued(tmp_path):
    whole(tmp_path, steps=3)
    (tmp_path / 'run.json').unlink()
    with pytest.raises(ValueError, match="holds checkpoints and no run.json.*resume=False to remove them"):
        whole(tmp_path, steps=3)
    assert train(build(small(steps=2), DIGITS), tmp_path, small(steps=2), resume=False).finished
    assert ckpt.checkpoints(tmp_path) == [2]


def test_a_checkpoint_of_another_run_is_not_continued(tmp_path):
    "Same recipe, same shapes; another seed, say, whose checkpoint was copied into the folder."
    whole(tmp_path / 'a', steps=3)
    whole(tmp_path / 'b', steps=6)
    newest = ckpt.checkpoint_folder(tmp_path / 'b', 6)
    shutil.copytree(newest, ckpt.checkpoint_folder(tmp_path / 'a', 6))
    for read in (lambda: whole(tmp_path / 'a', steps=3), lambda: load_run(tmp_path / 'a')):
        with pytest.raises(ValueError, match="is of another run than its run.json"):
            read()


def test_stray_names_and_half_copies_are_no_checkpoints(tmp_path):
    whole(tmp_path, steps=3)
    folder = tmp_path / 'checkpoints'
    for name in (
        'step-00000003 (copy)',
        'step-3',
        'step-old',
        'step-00000009',
        'step-０００００００９',
        '.step-1',
    ):
        (folder / name).mkdir()
    shutil.copy(folder / 'step-00000003' / 'method.safetensors', folder / 'step-00000009')
    (folder / 'step-00000006').write_text('a file')
    assert ckpt.checkpoints(tmp_path) == [3]
    m, h = train_to_six(tmp_path)
    assert h.finished
    assert ckpt.checkpoints(tmp_path) == [3, 6]
    assert (folder / 'step-00000003 (copy)').exists(), "what isn't ours stays"
    os.rename(folder / 'step-00000006', folder / 'step-00000007')
    with pytest.raises(ValueError, match="is of step 6, not of the step in its name"):
        load_run(tmp_path)


def train_to_six(out):
    r = small(steps=6)
    method = build(r, DIGITS)
    return method, train(method, out, r, resume='extend')


def test_folders_from_before_there_were_checksums(tmp_path):
    "They are read, with a warning: that they can't be checked."
    m, _ = whole(tmp_path, steps=3)
    run = ckpt.read_run(tmp_path)
    old = {name: run[name] for name in ('recipe', 'data', 'classes')}
    del old['recipe']['optimizer_options'], old['recipe']['weight_decay_end']  # fields that are newer
    (tmp_path / 'run.json').write_text(json.dumps(old))
    path = ckpt.checkpoint_folder(tmp_path, 3) / 'state.json'
    state = json.loads(path.read_text())
    path.write_text(json.dumps({name: state[name] for name in ('step', 'optimizer', 'seconds', 'files')}))
    with pytest.warns(UserWarning, match="was written before"):
        assert equal(weights(load_run(tmp_path)), weights(m))
    with pytest.warns(UserWarning, match="was written before"):
        assert whole(tmp_path, steps=3)[1].finished


# --- longer, or with another rate


def test_a_run_is_extended(tmp_path):
    with pytest.raises(ValueError, match="steps 3 there, 6 here.: give resume='extend'"):
        whole(tmp_path, steps=3)
        whole(tmp_path, steps=6)
    r = small(steps=9, base_lr=1e-3, weight_decay=0.3)
    straight = build(r, DIGITS)
    shutil.copytree(tmp_path, tmp_path / 'copy')
    train(straight, tmp_path / 'copy', r, resume='extend')

    def crash(method, step):
        raise KeyboardInterrupt

    often = r.but(probe_every=5)
    with pytest.raises(KeyboardInterrupt):
        train(build(r, DIGITS), tmp_path, often, resume='extend', probe=crash)
    assert ckpt.checkpoints(tmp_path) == [3]
    again = build(r, DIGITS)
    h = train(again, tmp_path, r)  # it is that run now
    assert equal(weights(straight), weights(again)), "extended in two parts as in one"
    assert [row['step'] for row in h.rows] == list(range(1, 10))
    assert h.rows[-1]['lr'] < 1e-3
    run = ckpt.read_run(tmp_path)
    assert (run['recipe']['steps'], [b['until'] for b in run['before']]) == (9, [3])
    groups = ckpt.load_checkpoint(tmp_path)[1]['optimizer']['groups']
    assert {group['weight_decay'] for group in groups} == {0.0, 0.3}


@pytest.mark.parametrize(
    'changes,says',
    [
        (dict(steps=2), "has made 3 steps, and the new recipe ends after 2"),
        (dict(steps=6, batch_size=32), "batch_size 64 there, 32 here.: resume='extend' may change steps"),
        (dict(steps=6, seed=1), "seed 0 there, 1 here"),
    ],
)
def test_what_an_extension_may_not_change(tmp_path, changes, says):
    whole(tmp_path, steps=3)
    before = (tmp_path / 'run.json').read_bytes()
    r = small(**changes)
    with pytest.raises(ValueError, match=says):
        train(build(r, DIGITS), tmp_path, r, resume='extend')
    assert (tmp_path / 'run.json').read_bytes() == before
    with pytest.raises(ValueError, match="resume is True, False or 'extend': got 'longer'"):
        train(build(r, DIGITS), tmp_path, r, resume='longer')


# --- one writer


def hold(out, ready):
    "Train, say so at the first step, and never end."
    import time
    from vit_ssl_lab.training import loop

    def update(run, step):
        os.fork() or time.sleep(600)  # a worker process that outlives its parent doesn't keep the lock
        ready.set()
        time.sleep(600)

    loop.update = update
    whole(out, steps=3)


@pytest.mark.processes
@pytest.mark.skipif(os.name != 'posix', reason="SIGKILL and fork are POSIX")
def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    context = fork_server('small_run')
    ready = context.Event()
    first = context.Process(target=hold, args=(tmp_path, ready))
    first.start()
    assert ready.wait(60)
    try:
        with pytest.raises(ValueError, match=f"is in use: process {first.pid} on .* trains in it. Wait"):
            whole(tmp_path, steps=3)
        with pytest.raises(ValueError, match="is in use"):
            train(build(small(steps=3), DIGITS), tmp_path, small(steps=3), resume=False)
    finally:
        first.kill()
        first.join()
    assert whole(tmp_path, steps=3)[1].finished


def test_the_same_process_may_run_again(tmp_path):
    def crash(method, step):
        with pytest.raises(ValueError, match="another call in this very process trains in it"):
            whole(tmp_path, steps=3)
        raise KeyboardInterrupt

    for _attempt in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(build(small(steps=3), DIGITS), tmp_path, small(steps=3), probe=crash)
    assert whole(tmp_path, steps=3)[1].finished


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, number):
    def acquire(self, **kw):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ckpt.FileLock, 'acquire', acquire)
    with pytest.warns(UserWarning, match="knows no locks"):
        assert whole(tmp_path, steps=3)[1].finished


def error_of_a_rank(out, kind):
    "The sentence that a process of several ends with."
    torch.set_num_threads(1)
    if kind == 'disk' and os.environ['RANK'] == '0':
        true = ckpt.write_file

        def write_file(path, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        ckpt.write_file = write_file
    try:
        whole(out, steps=3)
    except (OSError, ValueError) as e:
        return str(e)
    finally:
        if kind == 'disk' and os.environ['RANK'] == '0':
            ckpt.write_file = true


@pytest.mark.processes
def test_all_processes_of_a_run_end_with_the_same_sentence(tmp_path):
    "The first one holds the lock and writes; the others don't wait for it in vain."
    group = Group(2, tmp_path)
    try:
        with ckpt.lock(tmp_path / 'locked'):
            locked = group(error_of_a_rank, tmp_path / 'locked', 'lock')
        full = group(error_of_a_rank, tmp_path / 'full', 'disk')
        assert group(error_of_a_rank, tmp_path / 'full', 'nothing') == [None, None]
    finally:
        group.close()
    for said, sentence in ((locked, "is in use: process"), (full, "the disk is full")):
        assert said[0] == said[1]
        assert sentence in said[0]


# --- places


def test_links_names_and_moves(tmp_path):
    "A folder behind a link, with a name in any script, moved elsewhere while it rests."
    real = tmp_path / 'диск 1'
    real.mkdir()
    link = tmp_path / 'связь'
    link.symlink_to(real, target_is_directory=True)
    out = link / 'прогон – 運行'
    m, _ = whole(out, steps=3)
    assert equal(weights(load_run(out)), weights(m))
    shutil.move(real / out.name, tmp_path / 'moved')
    assert whole(tmp_path / 'moved', steps=3)[1].finished
    straight, _ = whole(tmp_path / 'straight', steps=3)
    extended, h = train_to_six(tmp_path / 'moved')
    assert equal(weights(extended), weights(train_to_six(tmp_path / 'straight')[0]))


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize('what', ['run.lock', 'run.json', 'log.jsonl', 'state.json'])
def test_a_folder_that_can_t_be_written(tmp_path, monkeypatch, what, number):
    "One sentence, whichever file it is, and nothing is lost."
    whole(tmp_path, steps=3)
    shutil.rmtree(ckpt.checkpoint_folder(tmp_path, 3))
    (tmp_path / 'run.lock').unlink()
    files = {p.name for p in tmp_path.rglob('*')}
    true = os.open, open

    def refuse(path, flags, true):
        name = Path(os.fsdecode(path)).name if isinstance(path, (str, Path)) else ''
        if what in name and flags:
            raise OSError(number, os.strerror(number), str(path))

    def os_open(path, flags, *args, **kw):
        refuse(path, flags & (os.O_WRONLY | os.O_RDWR), os)
        return true[0](path, flags, *args, **kw)

    def io_open(path, mode='r', *args, **kw):
        refuse(path, set(mode) & set('wa+'), open)
        return true[1](path, mode, *args, **kw)

    monkeypatch.setattr(os, 'open', os_open)
    monkeypatch.setattr('builtins.open', io_open)
    monkeypatch.setattr('io.open', io_open)
    with pytest.raises(OSError, match="Could not write .*Make room or give another out"):
        whole(tmp_path, steps=3)
    monkeypatch.undo()
    assert {p.name for p in tmp_path.rglob('*')} - {'log.csv', 'run.lock'} <= files
    assert whole(tmp_path, steps=3)[1].finished


# --- damage: `python tests/damage.py` makes a thousand


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A run with all that a run can have."
    out = tmp_path_factory.mktemp('finished') / 'run'
    whole(out, **dict(RUN, steps=6))
    return out


def test_no_flipped_bit_is_accepted(finished):
    found = flips(finished, dict(RUN, steps=6), checkpoint_files(finished), 50, random.Random(1))
    assert {outcome for _, outcome in found} <= {'refused', 'same'}, found
    assert len({name for name, _ in found}) == 5


def test_a_changed_value_is_refused_whatever_it_is(finished):
    "Each number of state.json by itself: Adam's betas, a rate, the step, seconds."
    path = ckpt.checkpoint_folder(finished, 6) / 'state.json'
    text = path.read_text()
    state = json.loads(text)
    state['optimizer']['groups'][0]['betas'] = [0.8, 0.95]
    changed = [
        json.dumps(state),
        text.replace('"step": 6', '"step": 5'),
        text.replace('"sha256"', '"sha-256"'),
    ]
    try:
        for bad in changed:
            assert bad != text
            path.write_text(bad)
            with pytest.raises(ValueError, match="is damaged .state.json"):
                resumed_state(finished, dict(RUN, steps=6))
        path.write_text(json.dumps(json.loads(text), indent=4))  # other white space is no change
        resumed_state(finished, dict(RUN, steps=6))
    finally:
        path.write_text(text)


def test_a_damaged_log_blocks_nothing_and_is_said(finished, tmp_path):
    found = flips(finished, dict(RUN, steps=6), ['log.jsonl'], 40, random.Random(2))
    assert {outcome for _, outcome in found} == {'same'}, found
    out = tmp_path / 'run'
    shutil.copytree(finished, out)
    rows = (out / 'log.jsonl').read_bytes().split(b'\n')
    bad = [
        rows[0].replace(b'"lr"', b'"1r"'),
        rows[1].replace(b'{', b'\xff'),
        b'[1]',
        b'{"step": "x"}',
        rows[2],
    ]
    (out / 'log.jsonl').write_bytes(b'\n'.join(bad + [rows[3][:20]]))
    with pytest.warns(UserWarning, match="damaged in 4 of 5 lines .1, 2, 3, ...*the run goes on"):
        _, h = whole(out, **dict(RUN, steps=6))
    assert [row['step'] for row in h.rows] == [3]
    assert 'finished' in repr(h)


@pytest.mark.processes
@pytest.mark.skipif(os.name != 'posix', reason="SIGKILL and fork servers are POSIX")
@pytest.mark.parametrize('count,where', [(1, 'inside'), (3, 'before'), (9, 'after'), (12, 'inside')])
def test_killed_around_a_write(finished, tmp_path, count, where):
    context = fork_server('damage')
    changes = dict(RUN, steps=6)
    assert start(context, tmp_path, die_at_write, count, where, changes=changes) == -signal.SIGKILL
    assert start(context, tmp_path, changes=changes) == 0
    assert same_tensors(finished, tmp_path)
    assert not [p for p in tmp_path.rglob('.*')], "half-written files are cleared away"
