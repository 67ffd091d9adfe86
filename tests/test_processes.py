"""What processes do together equals what one does with the whole batch: values, gradients, running
statistics, whole runs. Real processes over gloo."""

import copy, multiprocessing, signal
from helpers import close_states, equal, seeded
import pytest, torch
import torch.nn.functional as F
from torch import nn
from small_run import die_after
from vit_ssl_lab.components import processes as P
from vit_ssl_lab.components.heads import simclr_head
from vit_ssl_lab.components.momentum import momentum_copy
from vit_ssl_lab.components.queue import Queue
from vit_ssl_lab.data import load
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training import checkpoints as ckpt


def own(x, counts):
    "This process's rows; the first row for a process that has none."
    return x.split(counts)[P.get_rank()] if counts[P.get_rank()] else x[:1]


def idle(counts):
    return P.idle_rank(not counts[P.get_rank()])


def random_tensor(*shape):
    return torch.randn(*shape, generator=seeded(0))


SPLITS = [[4, 4], [2, 6], [7, 1]]

# -- gathering


def gather_job(x, counts):
    """A loss over rows that looks at all rows, weighted as the loop does: share of the batch times processes,
    then the mean over processes."""
    mine = own(x, counts).clone().requires_grad_()
    with idle(counts):
        rows = P.gather(mine)
        at = P.rank_offset(len(mine))
        loss = F.cross_entropy(mine @ rows.T, at + torch.arange(len(mine)))
        (loss * (counts[P.get_rank()] / len(x) * P.get_world_size())).backward()
    return (
        rows.detach(),
        at,
        loss.item() * counts[P.get_rank()] / len(x),
        mine.grad[: counts[P.get_rank()]] / P.get_world_size(),
    )


def check_gather(processes, counts):
    x = random_tensor(sum(counts), 5)
    answers = processes(gather_job, x, counts)
    whole = x.clone().requires_grad_()
    loss = F.cross_entropy(whole @ whole.T, torch.arange(len(x)))
    loss.backward()
    for i, (rows, at, *_) in enumerate(answers):
        assert torch.equal(rows, x)
        assert at == (sum(counts[:i]) if counts[i] else 0)
    assert sum(part for _, _, part, _ in answers) == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(torch.cat([g for *_, g in answers]), whole.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('counts', SPLITS)
def test_gather_rows_and_gradient(two_processes, counts):
    check_gather(two_processes, counts)


@pytest.mark.parametrize('counts', [[0, 1, 1], [3, 0, 2]])
def test_a_bystander_adds_no_row(three_processes, counts):
    check_gather(three_processes, counts)


def kinds_job():
    rank = P.get_rank()
    kinds = [
        torch.tensor([rank]),
        torch.tensor([rank == 0]),
        torch.tensor([[rank + 0.5]], dtype=torch.bfloat16),
        torch.zeros(2 * rank, 1),
    ]
    return [(P.gather(x).dtype, P.gather(x).tolist()) for x in kinds]


def test_gather_other_kinds(two_processes):
    "Integers, booleans, bf16, and a process without rows."
    expected = [
        (torch.int64, [0, 1]),
        (torch.bool, [True, False]),
        (torch.bfloat16, [[0.5], [1.5]]),
        (torch.float32, [[0.0], [0.0]]),
    ]
    assert two_processes(kinds_job) == [expected, expected]


def alone_job():
    if P.get_rank() == 1:
        return P.get_world_size()
    with P.local_only():
        return (
            P.get_world_size(),
            P.gather(torch.ones(3)).shape,
            P.rank_offset(3),
            P.SyncBatchNorm(2)(torch.rand(4, 2)).shape,
        )


def test_alone_nobody_waits(two_processes):
    assert two_processes(alone_job) == [(1, (3,), 0, (4, 2)), 2]


# -- shuffling


def shuffle_job(x, counts, seed):
    mine = own(x, counts)
    torch.manual_seed(100 + P.get_rank())  # the processes' own chance differs; the first one's counts
    generator = None if seed is None else seeded(seed)
    mixed, restore = P.shuffle(mine, generator)
    return mixed, P.unshuffle(mixed * 2, restore)


@pytest.mark.parametrize('counts', [[6, 6], [5, 7]])
@pytest.mark.parametrize('seed', [3, None])
def test_shuffle_deals_anew_and_brings_back(two_processes, counts, seed):
    x = torch.arange(12.0)[:, None].expand(12, 3)
    answers = two_processes(shuffle_job, x, counts, seed)
    order = torch.randperm(12, generator=seeded(100 if seed is None else seed))
    assert torch.equal(torch.cat([m for m, _ in answers]), x[order]), (
        "the first process's permutation, for all"
    )
    assert torch.equal(torch.cat([b for _, b in answers]), 2 * x)
    there = torch.arange(12) < counts[0]
    assert 0 < (there[order] != there).sum() < 12, "rows change the process"


# -- BatchNorm


def network(dims):
    torch.manual_seed(1)
    bn, layer = (nn.BatchNorm1d(6), nn.Linear(4, 6)) if dims == 0 else (nn.BatchNorm2d(6), nn.Conv2d(4, 6, 3))
    net = (
        nn.Sequential(
            layer, bn, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3), nn.BatchNorm1d(3, affine=False)
        ).double()
        if dims
        else nn.Sequential(layer, bn, nn.ReLU(), nn.Linear(6, 3), nn.BatchNorm1d(3, affine=False)).double()
    )
    net(random_tensor(5, 4, *[5] * dims).double())
    return net


def loss_of(y, target):
    return (y * target + y**3).flatten(1).sum(1).mean()


def bn_job(dims, x, target, counts, no_grad=False):
    net = P.sync_batchnorm(network(dims)).train()
    assert sum(isinstance(m, P.SyncBatchNorm) for m in net) == 2
    mine = own(x, counts).clone().requires_grad_()
    with idle(counts), torch.set_grad_enabled(not no_grad):
        y = net(mine)
        if not no_grad:
            (
                loss_of(y, own(target, counts)) * (counts[P.get_rank()] / len(x) * P.get_world_size())
            ).backward()
    n = counts[P.get_rank()]
    grads = [p.grad for p in net.parameters()]
    for g in grads if not no_grad else []:
        torch.distributed.all_reduce(g)
        g /= P.get_world_size()  # what DDP does
    return (
        y.detach()[:n],
        grads,
        None if no_grad else mine.grad[:n] / P.get_world_size(),
        net.state_dict(),
        net.eval()(x).detach(),
    )


def check_bn(processes, dims, counts):
    x = random_tensor(sum(counts), 4, *[5] * dims).double() * 2 + 1
    target = random_tensor(sum(counts), 3).double()
    answers = processes(bn_job, dims, x, target, counts)
    net = network(dims).train()
    whole = x.clone().requires_grad_()
    y = net(whole)
    loss_of(y, target).backward()
    close = dict(atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(torch.cat([a[0] for a in answers]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([a[2] for a in answers]), whole.grad, **close)
    for _, grads, _, state, _ in answers:
        for a, b in zip(grads, net.parameters()):
            torch.testing.assert_close(a, b.grad, **close)
        torch.testing.assert_close(state, net.state_dict(), **close)
    torch.testing.assert_close(answers[0][4], net.eval()(x).detach(), **close)


@pytest.mark.parametrize('dims', [0, 2])
@pytest.mark.parametrize('counts', SPLITS)
def test_sync_batchnorm_is_that_of_the_whole_batch(two_processes, dims, counts):
    check_bn(two_processes, dims, counts)


def test_sync_batchnorm_with_a_bystander(three_processes):
    check_bn(three_processes, 0, [4, 0, 3])


def test_sync_batchnorm_without_gradient(two_processes):
    x = random_tensor(8, 4).double()
    answers = two_processes(bn_job, 0, x, x[:, :3], [3, 5], True)
    torch.testing.assert_close(
        torch.cat([a[0] for a in answers]), network(0).train()(x).detach(), atol=1e-10, rtol=1e-9
    )


def one_picture_job():
    with P.idle_rank(P.get_rank() == 0):
        try:
            P.SyncBatchNorm(3)(torch.ones(1, 3))
        except ValueError as e:
            return str(e)


def test_one_picture_for_all(two_processes):
    for text in two_processes(one_picture_job):
        assert 'no variance to divide by' in text
        assert 'drop_last=True' in text


def test_split_batchnorm_is_a_batchnorm_a_group():
    """Values and gradients of a loop over groups; running statistics are the mean of those that each group
    would have."""
    x = random_tensor(12, 5, 3, 3)
    split = P.SplitBatchNorm(5, 4)
    loops = [nn.BatchNorm2d(5) for _ in range(4)]
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = split(a)
    z = torch.cat([bn(part) for bn, part in zip(loops, b.chunk(4))])
    torch.testing.assert_close(y, z)
    (y**3).sum().backward()
    (z**3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    for name in ('running_mean', 'running_var'):
        torch.testing.assert_close(
            getattr(split, name), torch.stack([getattr(bn, name) for bn in loops]).mean(0)
        )
    assert split.num_batches_tracked == 1
    one = P.SplitBatchNorm(5, 1)
    torch.testing.assert_close(one(x), nn.BatchNorm2d(5)(x))


def test_conversions_keep_weights_copies_and_splits():
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sequential(nn.BatchNorm1d(6), P.SplitBatchNorm(6, 2))
    )
    weights = list(net.parameters())
    slow = momentum_copy(net)
    assert P.sync_batchnorm(net) is net
    assert [type(m).__name__ for m in net.modules()][2:] == [
        'SyncBatchNorm',
        'Sequential',
        'SyncBatchNorm',
        'SplitBatchNorm',
    ]
    assert all(a is b for a, b in zip(weights, net.parameters()))
    P.sync_batchnorm(slow)
    assert not any(p.requires_grad for p in slow.parameters())
    assert isinstance(P.sync_batchnorm(nn.BatchNorm1d(3)), P.SyncBatchNorm)
    # only its name: no GPU is touched
    assert type(P.sync_batchnorm(nn.BatchNorm1d(3), 'cuda')) is P.CudaSyncBatchNorm
    gamma = P.sync_batchnorm(simclr_head(4, dim=3))
    assert [type(m).__name__ for m in gamma][1::3] == ['SyncBatchNorm'] * 2, "also the one without beta"
    double = copy.deepcopy(net).double()
    assert double[1].weight.dtype == torch.float64
    assert net[1].weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize('kind', [P.SyncBatchNorm, lambda width: P.SplitBatchNorm(width, 2)])
def test_bf16_and_compile(kind):
    net = nn.Sequential(nn.Linear(4, 6), kind(6))
    x = random_tensor(8, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert net(x).isfinite().all()
    expected = copy.deepcopy(net)(x)
    torch.testing.assert_close(torch.compile(copy.deepcopy(net), backend='aot_eager')(x), expected)


# -- the queue


def queue_job(batches, counts):
    queue = Queue(24, 3, seeded(5))
    for keys in batches:
        queue.enqueue(own(keys, counts))
    return queue.state_dict()


@pytest.mark.parametrize('counts', [[4, 4], [3, 5]])
def test_queue_is_the_same_everywhere(two_processes, counts):
    batches = list(random_tensor(5, 8, 3))
    queue = Queue(24, 3, seeded(5))
    for keys in batches:
        queue.enqueue(keys)
    for state in two_processes(queue_job, batches, counts):
        assert state.keys() == queue.state_dict().keys()
        assert equal(state, queue.state_dict())


@pytest.mark.parametrize('steps', range(1, 9))
def test_queue_holds_exactly_the_last_keys(steps):
    "After t steps: the last min(tB, K) keys at their rows, noise elsewhere."
    keys = F.normalize(random_tensor(8, 4, 3), dim=2)
    queue = Queue(12, 3)
    expected = queue.keys.clone()
    for step in range(steps):
        queue.enqueue(keys[step])
        expected[4 * step % 12 : 4 * step % 12 + 4] = keys[step]
    torch.testing.assert_close(queue.keys, expected, atol=1e-6, rtol=0)
    assert queue.filled == min(4 * steps, 12)
    assert queue.pointer.item() == 4 * steps % 12


# -- whole runs

OPTIONS = dict(
    simclr=dict(hidden=16, dim=8),
    byol=dict(hidden=16, dim=8),
    moco=dict(dim=8, queue=574),
    simsiam=dict(dim=16, pred_dim=8),
    mocov3=dict(hidden=16, dim=8),
)
METHODS = list(OPTIONS)


def tiny(method, **changes):
    """A method in miniature on 1,438 digits of 8x8 pixels.
    SGD without momentum: the change of the weights is the gradient."""
    return recipe(
        method,
        'laptop',
        **{
            **dict(
                data='digits',
                img_size=8,
                patch_size=2,
                encoder='vit_nano',
                encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
                method_options=OPTIONS[method],
                batch_size=287,
                drop_last=method == 'moco',
                steps=6,
                optimizer='sgd',
                momentum=0.0,
                base_lr=0.1,
                min_lr=0.1,
                warmup=0,
                weight_decay=0.0,
                clip_grad=None,
                log_every=1,
                checkpoint_every=100,
            ),
            **changes,
        },
    )


def train(r, out=None):
    data = load('digits')
    method = build(
        r, data
    ).double()  # a BatchNorm of few values multiplies float32's noise: in float64 a difference is a mistake
    for name in ('encoder', 'momentum_encoder'):
        if hasattr(method, name):
            getattr(method, name).register_forward_pre_hook(
                lambda module, args: (args[0].double(), *args[1:])
            )
    history = pretrain(method, data, r, out=out, quiet=True, device='cpu')
    return [(row['loss'], row['grad_norm'], row['images']) for row in history.rows], method.state_dict()


def check_run(processes, r):
    torch.set_num_threads(1)
    rows, state = train(r)
    for theirs, other in processes(train, r):
        for a, b in zip(rows, theirs):
            assert a[2] == b[2]
            assert a[0] == pytest.approx(b[0], abs=1e-5)
            assert a[1] == pytest.approx(b[1], rel=1e-6)
        assert len(rows) == len(theirs) == r.steps
        close_states(other, state, rtol=1e-6, atol=1e-8)
    return rows


@pytest.mark.parametrize('method', METHODS)
def test_two_processes_train_as_one(two_processes, method):
    """Losses, gradients, momentum copies, running statistics and the queue after six steps; batches of 287
    are uneven, the last one of the epoch has three images."""
    rows = check_run(two_processes, tiny(method))
    assert rows[4][2] - rows[3][2] == 287
    assert rows[5][2] - rows[4][2] == (287 if method == 'moco' else 3)


@pytest.mark.parametrize('method', METHODS[:1])
def test_a_process_without_an_image(three_processes, method):
    "1,438 = 4 * 359 + 2: the first of three processes has no image in the last batch."
    check_run(three_processes, tiny(method, batch_size=359, steps=5))


# -- kill and resume


def moco_run(out, *death):
    torch.set_num_threads(1)
    if death:
        die_after(*death)
    train(tiny('moco', steps=12, checkpoint_every=2, base_lr=0.05, momentum=0.9), out)


@pytest.mark.parametrize('method', METHODS[2:3])
def test_a_killed_moco_keeps_queue_and_momentum_copies(two_processes, tmp_path, method):
    "Killed by SIGKILL, gone on with; and gone on with on two processes."
    context = multiprocessing.get_context('forkserver')
    for out, *death in ((tmp_path / 'whole',), (tmp_path / 'killed', 7, 0.5), (tmp_path / 'killed',)):
        p = context.Process(target=moco_run, args=(out, *death))
        p.start()
        p.join()
        assert p.exitcode == (-signal.SIGKILL if death else 0)
    whole, killed = (ckpt.load_checkpoint(tmp_path / name)[0]['method'] for name in ('whole', 'killed'))
    assert any('momentum_encoder' in k for k in whole)
    assert any(k.endswith('keys') for k in whole)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    ckpt.remove_checkpoint(ckpt.checkpoint_folder(tmp_path / 'killed', 12))
    two_processes(moco_run, tmp_path / 'killed')
    again = ckpt.load_checkpoint(tmp_path / 'killed')[0]['method']
    for k in whole:
        torch.testing.assert_close(again[k], whole[k], atol=1e-7, rtol=1e-6)
