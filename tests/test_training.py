"""Training: schedules and groups against the published code's formulas, and every way in which a run can go
wrong."""

import importlib, json, math, re, sys
from pathlib import Path
from helpers import differing, equal, weights
import numpy as np
import pytest, torch
from PIL import Image
from torch import nn
from small_run import SMALL, small, whole
from vit_ssl_lab.data import load
from vit_ssl_lab.encoders import encoder
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training import checkpoints as ckpt, cli, loop
from vit_ssl_lab.training.optim import layer_of, lr_at, make_optimizer, param_groups, set_lr
from vit_ssl_lab.training.build import method_names
from vit_ssl_lab.recipe import Recipe, make_schedule


# --- the schedule and the groups


@pytest.mark.parametrize(
    'epochs,warmup,per_epoch,min_lr', [(800, 40, 312, 0.0), (7, 2, 13, 1e-6), (3, 0, 5, 0.0)]
)
def test_schedule_is_mae_s(epochs, warmup, per_epoch, min_lr):
    "util/lr_sched.py works with fractional epochs, ours with steps."

    def official(epoch, lr):
        if epoch < warmup:
            return lr * epoch / warmup
        return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))

    total = epochs * per_epoch
    for step in range(0, total, max(1, total // 997)):
        assert lr_at(step, total, warmup * per_epoch, 2.4e-3, min_lr) == pytest.approx(
            official(step / per_epoch, 2.4e-3), abs=1e-12, rel=1e-10
        )
    if warmup:
        assert lr_at(0, total, warmup * per_epoch, 2.4e-3, min_lr) == 0.0


def test_schedule_is_timm_s():
    from timm.scheduler import CosineLRScheduler

    o = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    s = CosineLRScheduler(
        o, t_initial=90, lr_min=0.01, warmup_t=10, warmup_lr_init=0.0, warmup_prefix=True, t_in_epochs=False
    )
    for step in range(100):
        s.step_update(step)
        assert o.param_groups[0]['lr'] == pytest.approx(lr_at(step, 100, 10, 0.3, 0.01), abs=1e-12)


def test_steps_are_torch_s():
    "MoCo v1: a tenth at each milestone, against torch's MultiStepLR; and none of them is a constant rate."
    o = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.03)
    s = torch.optim.lr_scheduler.MultiStepLR(o, milestones=[12, 16])
    for step in range(20):
        assert lr_at(step, 20, 0, 0.03, schedule='step', milestones=(12, 16)) == pytest.approx(
            o.param_groups[0]['lr'], rel=1e-12
        )
        o.step()
        s.step()
    assert {lr_at(i, 20, 0, 0.03, schedule='step') for i in range(20)} == {0.03}
    assert lr_at(1, 20, 2, 0.03, schedule='step') == 0.015


def test_milestones_in_every_unit():
    epochs = Recipe('moco', epochs=200, batch_size=256, warmup=0, schedule='step', milestones=(120, 160))
    assert make_schedule(epochs, 1_281_167).milestones == (120 * 5004, 160 * 5004)
    assert make_schedule(Recipe('moco', steps=10, schedule='step', milestones=(0.5, 8)), 999).milestones == (
        5,
        8,
    )
    assert Recipe.from_json(epochs.to_json()) == epochs
    for bad in ((8, 4), (4, 4), (4, 10)):
        with pytest.raises(ValueError, match="must grow and lie inside the run of 10 steps"):
            make_schedule(Recipe('moco', steps=10, schedule='step', milestones=bad), 999)


def test_decay_everywhere_is_plain_torch_s():
    """MoCo's and SimSiam's SGD: one group, weight decay on norms and biases too; two steps equal torch's own
    over model.parameters()."""

    def steps(make):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        o = make(model)
        for _ in range(2):
            model(torch.randn(9, 6)).square().sum().backward()
            o.step()
            o.zero_grad()
        return weights(model)

    ours = steps(lambda m: make_optimizer('sgd', param_groups(m, 0.1, decay_all=True), lr=0.05))
    theirs = steps(lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1))
    spared = steps(lambda m: make_optimizer('sgd', param_groups(m, 0.1), lr=0.05))
    for k in ours:
        torch.testing.assert_close(ours[k], theirs[k])
    assert not torch.allclose(ours['1.weight'], spared['1.weight'])


def test_parts_with_their_own_rate():
    "The longest prefix counts, layer decay multiplies, a prefix ends at a dot, what is frozen stays out."
    model = nn.ModuleDict(
        dict(
            encoder=nn.ModuleDict(
                dict(blocks=nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), norm=nn.LayerNorm(2))
            ),
            predictor=nn.Linear(2, 2),
            predictor2=nn.Linear(2, 2),
        )
    )
    model.predictor.bias.requires_grad_(False)
    groups = param_groups(
        model,
        0.1,
        layer_decay=0.5,
        lr_factors={'encoder': 0.1, 'encoder.blocks.1': 2.0},
        constant_lr=('predictor',),
    )
    o = make_optimizer('adamw', groups, lr=0.4)
    set_lr(o, 0.2)
    rate = {id(p): g['lr'] for g in o.param_groups for p in g['params']}
    rate = {n: rate.get(id(p)) for n, p in model.named_parameters()}
    assert rate['encoder.blocks.0.weight'] == pytest.approx(0.2 * 0.25 * 0.1)
    assert rate['encoder.blocks.1.bias'] == pytest.approx(0.2 * 0.5 * 2)
    assert rate['encoder.norm.weight'] == pytest.approx(0.2 * 0.1)
    assert rate['predictor2.weight'] == 0.2
    assert rate['predictor.weight'] == 0.4
    assert rate['predictor.bias'] is None
    set_lr(o, 0.0)
    assert {g['lr'] for g in o.param_groups} == {0.0, 0.4}


def test_a_run_with_a_constant_part(tmp_path):
    """In the loop: the rate of the log is the others'; the part moves in the first step, where the rate of
    the rest is 0; resumed, the same numbers."""
    r = dict(
        constant_lr=('decoder.head',),
        lr_factors={'encoder': 0.5},
        decay_all=True,
        schedule='step',
        milestones=(3,),
        warmup=1,
    )
    start = weights(build(small(steps=1, **{**r, 'milestones': ()}), load('digits')))
    m, _ = whole(steps=1, **{**r, 'milestones': ()})
    moved = {k for k, v in weights(m).items() if not torch.equal(v, start[k])}
    assert moved == {'decoder.head.weight', 'decoder.head.bias'}
    once, h = whole(tmp_path, steps=6, **r)
    assert [row['lr'] for row in h.rows] == pytest.approx([0.0, 0.002, 0.002, 0.0002, 0.0002, 0.0002])
    ckpt.remove_checkpoint(ckpt.checkpoint_folder(tmp_path, 6))
    assert equal(weights(once), weights(whole(tmp_path, steps=6, **r)[0]))


@pytest.mark.parametrize(
    'changes,message',
    [
        (dict(schedule='stairs'), "no schedule 'stairs'"),
        (dict(milestones=(3,)), "give schedule='step'"),
        (dict(milestones=3, schedule='step'), "milestones of the recipe is a tuple"),
        (dict(constant_lr='predictor'), r"constant_lr of the recipe is a tuple, such as \('predictor',\)"),
        (dict(lr_factors={'encoder': -1}), "0 or more"),
        (dict(sync_bn='always'), "value of sync_bn"),
    ],
)
def test_fields_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe('mae', steps=9, **changes)


@pytest.mark.parametrize('options', [dict(constant_lr=('decoder.heat',)), dict(lr_factors={'encodr': 0.1})])
def test_a_part_that_is_not_there(options):
    with pytest.raises(
        ValueError,
        match="There is no parameter or part with the name .* Did you mean '(decoder.head|encoder)'",
    ):
        whole(steps=1, **options)


def scales_of(method: str) -> list[str]:
    "The scales at which a method's own notebook has a recipe."
    return list(importlib.import_module(f'vit_ssl_lab.methods.{method}').RECIPES)


def test_papers_of_two_views():
    "The figures as published, against the sheets of the papers."
    r = {m: recipe(m, 'paper') for m in method_names() if 'paper' in scales_of(m)}
    lr = {'simclr': 4.8, 'byol': 3.2, 'moco': 0.03, 'simsiam': 0.1, 'mocov3': 2.4e-3}
    for m, value in lr.items():
        assert r[m].lr == pytest.approx(value), m
    assert {m: (r[m].optimizer, r[m].batch_size, r[m].epochs) for m in lr} == dict(
        simclr=('lars', 4096, 100),
        byol=('lars', 4096, 1000),
        moco=('sgd', 256, 200),
        simsiam=('sgd', 512, 100),
        mocov3=('adamw', 4096, 300),
    )
    assert {m: r[m].weight_decay for m in lr} == dict(
        simclr=1e-6, byol=1.5e-6, moco=1e-4, simsiam=1e-4, mocov3=0.1
    )
    assert {m for m in r if r[m].decay_all} == {'moco', 'simsiam', 'mocov3'}
    assert {m for m in r if r[m].constant_lr} == {'simsiam'}
    assert {m: r[m].warmup for m in lr} == dict(simclr=10, byol=10, moco=0, simsiam=0, mocov3=40)
    assert {m for m in r if r[m].encoder == 'resnet50' and r[m].patch_size is None} == {
        'simclr',
        'byol',
        'moco',
        'simsiam',
    }
    assert all('UNVERIFIED' in r[m].note for m in ('momentum_projector', 'sdssl'))
    assert all(r[m].note for m in r)


@pytest.mark.parametrize('method', method_names())
def test_recipes_know_their_method_and_scale(method):
    scales = scales_of(method)
    assert 'laptop' in scales
    for scale in scales:
        assert recipe(method, scale).method == method
        assert recipe(method, scale).scale == scale


def test_layer_decay_is_mae_s():
    "util/lr_decay.py, with its names: norm and head are a layer above the last block."
    vit = encoder('vit_nano', img_size=16, patch_size=8, depth=3)
    vit.head = nn.Linear(vit.width, 5)
    n = len(vit.blocks) + 1

    def official(name):
        if name in ('cls_token', 'pos_embed') or name.startswith('patch_embed'):
            return 0
        return int(name.split('.')[1]) + 1 if name.startswith('blocks') else n

    scale = {
        id(p): (g['lr_scale'], g['weight_decay']) for g in param_groups(vit, 0.05, 0.65) for p in g['params']
    }
    for name, p in vit.named_parameters():
        assert layer_of(name, len(vit.blocks)) == official(name)
        assert scale[id(p)] == (0.65 ** (n - official(name)), 0.0 if p.ndim == 1 else 0.05), name
    o = make_optimizer('adamw', param_groups(vit, 0.05, 0.65), 1.0)
    set_lr(o, 0.4)
    assert {g['lr'] for g in o.param_groups} == {0.4 * 0.65 ** (n - i) for i in range(n + 1)}


def test_layer_decay_of_a_resnet():
    "Stem, four stages, head: fine-tuning's layer decay must not pass a ResNet by."
    model = nn.ModuleDict(dict(encoder=encoder('resnet_nano'), head=nn.Linear(128, 5)))
    scale = {id(p): g['lr_scale'] for g in param_groups(model, 0.05, 0.5) for p in g['params']}

    def expect(n):
        if n.startswith('head'):
            return 1.0
        stage = int(n.split('.')[1][5]) if 'layer' in n else 0
        return 0.5 ** (5 - stage)

    for n, p in model.named_parameters():
        assert scale[id(p)] == expect(n), n
    assert set(scale.values()) == {0.5**i for i in range(6)}


def test_groups_of_mae():
    """As add_weight_decay of the official run:
    CLS and mask token decay, biases and norms don't, the fixed tables aren't trained."""
    r = small(steps=1)
    method = build(r, load('digits'))
    groups = param_groups(method, 0.05)
    grouped = {id(p): g['weight_decay'] for g in groups for p in g['params']}
    names = dict(method.named_parameters())
    assert grouped[id(method.encoder.cls_token)] == 0.05
    assert grouped[id(method.decoder.mask_token)] == 0.05
    assert (
        {n for n, p in names.items() if id(p) not in grouped}
        == {n for n, p in names.items() if not p.requires_grad}
        == {'encoder.pos_embed', 'decoder.pos_embed'}
    )
    assert all((grouped[id(p)] == 0) == (p.ndim == 1) for p in names.values() if p.requires_grad)


def test_lars_is_mae_s():
    "util/lars.py, one step from rest: the trust ratio on matrices only. In float64, to seven digits."
    model = nn.Linear(6, 4).double()
    before = weights(model)
    o = make_optimizer('lars', param_groups(model, 0.0), lr=0.5, momentum=0.9)
    model(torch.randn(9, 6, dtype=torch.float64)).pow(2).sum().backward()
    o.step()
    w = before['weight']
    g = model.weight.grad
    adapted = -0.5 * (0.001 * w.norm() / g.norm()) * g
    torch.testing.assert_close(model.weight.detach() - w, adapted, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        model.bias.detach() - before['bias'], -0.5 * model.bias.grad, rtol=1e-7, atol=0
    )


def test_adamw_by_hand():
    "The first step: decay, then lr * sign of the gradient, up to eps."
    p = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    p.grad = torch.tensor([[3.0, -4.0]])
    make_optimizer('adamw', [dict(params=[p], weight_decay=0.1)], lr=0.01).step()
    torch.testing.assert_close(
        p.detach(), torch.tensor([[1.0, -2.0]]) * (1 - 0.01 * 0.1) - 0.01 * torch.tensor([[1.0, -1.0]])
    )


def test_paper_s_recipe():
    r = recipe('mae', 'paper')
    assert not differing(
        r,
        batch_size=4096,
        epochs=800,
        warmup=40,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        optimizer='adamw',
        clip_grad=None,
    )
    assert r.lr == pytest.approx(2.4e-3)
    assert not differing(r, encoder='vit_large', img_size=224, patch_size=16)
    o = r.method_options
    assert not differing(
        o, decoder_width=512, decoder_depth=8, decoder_heads=16, mask_ratio=0.75, norm_pix=True
    )


# --- what a run computes


def test_micro_batches_change_nothing():
    a, ha = whole(steps=3, batch_size=101)
    b, hb = whole(steps=3, batch_size=101, accumulate=4)
    for x, y in zip(ha.rows, hb.rows):
        assert x['loss'] == pytest.approx(y['loss'], abs=1e-6)
        assert x['grad_norm'] == pytest.approx(y['grad_norm'], rel=1e-4)


def test_first_step_changes_nothing_and_seed_decides():
    "The learning rate starts at exactly 0, so AdamW does not even decay."
    fresh = build(small(steps=5), load('digits'))
    one, _ = whole(steps=1, warmup=1)
    assert equal(weights(fresh), weights(one))
    again, _ = whole(steps=5)
    same, _ = whole(steps=5)
    other, _ = whole(steps=5, seed=1)
    assert equal(weights(again), weights(same))
    assert not equal(weights(again), weights(other))


def test_averaged_encoder():
    seen = []
    m, h = whole(steps=3, ema=0.5, warmup=0)  # the copies are taken by the method's own hook
    r = small(steps=3, ema=0.5, warmup=0)
    method = build(r, load('digits'))
    start = weights(method.encoder)
    method.after_step = lambda progress: seen.append(weights(method.encoder))
    averaged = pretrain(method, load('digits'), r, quiet=True, device='cpu').ema
    for w in seen:
        start = {k: 0.5 * start[k] + 0.5 * w[k] for k in start}
    for k, v in averaged.state_dict().items():
        torch.testing.assert_close(v, start[k])
    assert equal(weights(h.ema), weights(averaged))


def test_clipping_bounds_the_step():
    "SGD with lr 1: the weights move by the clipped norm."
    r = dict(steps=1, optimizer='sgd', momentum=0.0, base_lr=1.0, warmup=0, weight_decay=0.0)
    a, _ = whole(**r, clip_grad=1e-3)
    start = weights(build(small(**r), load('digits')))
    moved = torch.cat([(v - start[k]).flatten() for k, v in a.state_dict().items()]).norm()
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_bf16_runs_and_gives_the_forward_back():
    m, h = whole(steps=2, precision='bf16')
    assert h.finished
    assert 'forward' not in m.__dict__
    assert m.encoder.cls_token.dtype == torch.float32
    assert m.encoder(torch.zeros(1, 1, 8, 8)).pooled.dtype == torch.float32


def test_a_folder_streams_and_resumes(tmp_path):
    "Images from worker processes: a run that goes on at step 3 equals one that never stopped."
    chance = np.random.default_rng(0)
    for c in ('a', 'b'):
        (tmp_path / 'images' / 'train' / c).mkdir(parents=True)
        for i in range(9):
            Image.fromarray(chance.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(
                tmp_path / 'images' / 'train' / c / f'{i}.png'
            )
    data = load(f"folder:{tmp_path / 'images'}", size=16)
    r = small(data='folder', img_size=16, patch_size=8, steps=6, batch_size=7, drop_last=False, workers=1)

    def run(out):
        m = build(r, data)
        pretrain(m, data, r, out=out, quiet=True, device='cpu')
        return weights(m)

    once = run(tmp_path / 'run')
    ckpt.remove_checkpoint(ckpt.checkpoint_folder(tmp_path / 'run', 6))
    assert equal(once, run(tmp_path / 'run'))


# --- what a run leaves behind


def test_files_of_a_run(tmp_path):
    method, h = whole(tmp_path / 'run', steps=7, keep=1)
    assert ckpt.checkpoints(tmp_path / 'run') == [7]
    assert {f.suffix for f in (tmp_path / 'run').rglob('*') if f.is_file()} == {
        '.json',
        '.jsonl',
        '.csv',
        '.safetensors',
        '.lock',
    }, "nothing is pickled"
    lines = [json.loads(x) for x in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    assert lines == h.rows
    assert (tmp_path / 'run' / 'log.csv').read_text().count('\n') == 8
    assert {'step', 'loss', 'lr', 'grad_norm', 'seconds', 'images', 'images_per_second', 'pred_std'} <= set(
        h.frame().columns
    )
    assert equal(weights(loop.load_run(tmp_path / 'run')), weights(method))
    assert h.figure().axes[0].get_xlabel() == 'step'
    assert 'finished' in repr(h)


def test_probe_and_tensorboard(tmp_path):
    r = small(steps=4, probe_every=2)
    data = load('digits')
    m = build(r, data)

    def probe(method, step):
        assert not method.training
        assert not torch.is_grad_enabled()
        return dict(answer=step * 10)

    h = pretrain(m, data, r, out=tmp_path, probe=probe, trackers=['tensorboard'], quiet=True, device='cpu')
    assert [row.get('answer') for row in h.rows] == [None, 20.0, None, 40.0]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / 'tensorboard').glob('events*')).parent))
    events.Reload()
    assert [e.value for e in events.Scalars('loss')] == pytest.approx([row['loss'] for row in h.rows])


# --- what can go wrong


class Breaks(nn.Module):
    "A method whose loss, or gradient, stops being a number at its 7th forward."

    needs = ()

    def __init__(self, what='loss'):
        super().__init__()
        self.encoder = nn.Linear(64, 4)
        self.views = nn.Identity()
        self.what = what
        self.n = 0

    def forward(self, images):
        self.n += 1
        x = self.encoder(images.flatten(1).float() / 255)
        if self.n < 7:
            return dict(loss=x.square().mean())
        return (
            dict(loss=x.square().mean() * float('nan'))
            if self.what == 'loss'
            else dict(loss=(x * 0).sqrt().sum())
        )

    def after_step(self, progress): ...


@pytest.mark.parametrize(
    'what,message', [('loss', 'the loss is nan'), ('gradient', 'the gradient is not finite')]
)
def test_non_finite(tmp_path, what, message):
    method = Breaks(what)
    with pytest.raises(
        FloatingPointError, match=f"step 7 of 20: {message}; the last good checkpoint is step 6"
    ) as e:
        pretrain(method, load('digits'), small(steps=20), out=tmp_path, quiet=True, device='cpu')
    assert str(e.value).count('. ') <= 1
    good = ckpt.load_checkpoint(tmp_path)[0]['method']
    assert all(v.isfinite().all() for v in good.values()), "the update is not made"
    assert equal(good, weights(method)), "the update is not made"
    assert len((tmp_path / 'log.csv').read_text().splitlines()) == 7


def test_non_finite_is_seen_without_looking_at_every_step(tmp_path, monkeypatch):
    "As on a GPU: the step is noted on the device, and read where a checkpoint is written."
    true = loop.Run.open_data
    monkeypatch.setattr(
        loop.Run, 'open_data', lambda self: (true(self), setattr(self, 'check_every_step', False))
    )
    method = Breaks()
    with pytest.raises(
        FloatingPointError, match="step 7 of 20: the loss is nan; the last good checkpoint is step 6"
    ):
        pretrain(
            method, load('digits'), small(steps=20, log_every=50), out=tmp_path, quiet=True, device='cpu'
        )
    assert method.n == 9, "it ran on to the next checkpoint, and did not write it"


@pytest.mark.parametrize('full', ['full disk', 'limit'])
def test_disk_full(tmp_path, monkeypatch, full):
    "A real error of the kernel while a checkpoint is written: /dev/full, and a limit on a file's size."
    if not Path('/dev/full').exists():
        pytest.skip("needs Linux's /dev/full")
    import resource

    whole(tmp_path, steps=6)
    ckpt.remove_checkpoint(ckpt.checkpoint_folder(tmp_path, 6))
    kept = ckpt.load_checkpoint(tmp_path)[0]['method']
    true = ckpt.write_file
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    reason = 'the disk is full' if full == 'full disk' else 'file too large'
    message = (
        f"Could not write the checkpoint of step 6 to .*: {reason}; "
        "the checkpoint of step 3 is whole. Make room"
    )
    if full == 'full disk':

        def write_file(path, data):
            true(Path('/dev/full') if path.name == 'optimizer.safetensors' else path, data)

        monkeypatch.setattr(ckpt, 'write_file', write_file)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=message):
            whole(tmp_path, steps=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ckpt.checkpoints(tmp_path) == [3]
    assert equal(kept, ckpt.load_checkpoint(tmp_path)[0]['method'])
    assert not list((tmp_path / 'checkpoints').glob('.*'))
    monkeypatch.undo()
    m, h = whole(tmp_path, steps=6)
    straight, _ = whole(steps=6)
    assert h.finished
    assert equal(weights(m), weights(straight))


def test_another_run_s_folder(tmp_path):
    whole(tmp_path, steps=3)
    message = (
        "belongs to another run .base_lr 0.00[0-9]* there, 0.5 here.: give resume='extend' .*resume=False"
    )
    with pytest.raises(ValueError, match=message):
        whole(tmp_path, steps=3, base_lr=0.5)
    whole(tmp_path, steps=3, log_every=2, keep=1)  # what changes no weight may change
    r = small(steps=3, base_lr=0.5)
    data = load('digits')
    assert pretrain(build(r, data), data, r, out=tmp_path, resume=False, quiet=True, device='cpu').finished
    with pytest.raises(ValueError, match="belongs to another run .data.n"):
        pretrain(build(r, data), data.subset(500), r, out=tmp_path, quiet=True, device='cpu')
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match="Could not write the run to"):
        whole(tmp_path / 'file', steps=3)


def test_damaged_checkpoints(tmp_path):
    whole(tmp_path, steps=3)
    path = ckpt.checkpoint_folder(tmp_path, 3) / 'method.safetensors'
    data = path.read_bytes()
    for bad in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), b''):
        path.write_bytes(bad)
        with pytest.raises(
            ValueError, match=r"is damaged \(method.safetensors is truncated or changed\): remove that folder"
        ):
            whole(tmp_path, steps=3)
    path.write_bytes(data)
    (path.parent / 'state.json').write_text('{"step"')
    with pytest.raises(ValueError, match="is damaged"):
        whole(tmp_path, steps=3)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        loop.load_run(tmp_path / 'elsewhere')


def test_checkpoint_of_another_shape(tmp_path):
    r = small(steps=3)
    data = load('digits')
    pretrain(build(r, data), data, r, out=tmp_path, quiet=True, device='cpu')
    wide = build(small(steps=3, encoder_options=dict(embed_dim=32, depth=1, num_heads=2)), data)
    with pytest.raises(ValueError, match="belongs to another run .encoder.embed_dim 24 there, 32 here"):
        pretrain(wide, data, r, out=tmp_path, quiet=True, device='cpu')
    message = r"The checkpoint is of another model: encoder.* is \(.*24\) there and \(.*32\) here"
    with pytest.raises(ValueError, match=message):
        ckpt.load_into(wide, ckpt.load_checkpoint(tmp_path)[0]['method'], "The checkpoint")


def test_unknown_names(tmp_path):
    r = small(steps=1)
    data = load('digits')
    with pytest.raises(ValueError, match="no tracker 'tensorbord'. Did you mean 'tensorboard'"):
        pretrain(build(r, data), data, r, out=tmp_path, trackers=['tensorbord'])
    with pytest.raises(ValueError, match="give out= a folder"):
        pretrain(build(r, data), data, r, trackers=['tensorboard'])
    with pytest.raises(ValueError, match="no encoder 'vit_nanno'. Did you mean 'vit_nano'"):
        build(small(steps=1, encoder='vit_nanno'), data)
    with pytest.raises(ValueError, match="holds no image"):
        pretrain(build(r, data), data.at(torch.zeros(0, dtype=torch.int64)), r)


# --- the command line


def test_command_line_is_the_same_run(tmp_path, monkeypatch, capsys):
    from test_distributed import flags

    cli.run(
        cli.parse(
            ['mae', '--out', str(tmp_path / 'run'), '--device', 'cpu', *flags(SMALL), '--set', 'steps=3']
        )
    )
    m, _ = whole(steps=3)
    assert equal(weights(loop.load_run(tmp_path / 'run')), weights(m))
    assert re.search(r"mae on digits: finished, loss [\d.]+, 3 steps", capsys.readouterr().out)


@pytest.mark.parametrize(
    'argv,message',
    [
        (['mea'], "Did you mean 'mae'"),
        (['mae', 'labtop'], "Did you mean 'laptop'"),
        (['mae', '--data', 'scene', '--set', 'steps=1'], "Did you mean 'scenes'"),
        (['mae', '--set', 'stps=1'], "Did you mean 'steps'"),
        (['mae', '--set', 'steps'], "takes name=value"),
    ],
)
def test_command_line_says_what_is_wrong(tmp_path, monkeypatch, argv, message):
    monkeypatch.setattr(sys, 'argv', ['cli', *argv, '--out', str(tmp_path)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert message in str(e.value)
    assert '\n' not in str(e.value)
