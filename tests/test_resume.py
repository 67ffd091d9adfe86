"A run that is killed at any moment goes on to bitwise the same weights."

import json, os, random, signal
from pathlib import Path
from helpers import equal
import pytest, torch
from small_run import fork_server, child, die_after, die_while_writing, whole
from vit_ssl_lab.training import checkpoints as ckpt

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.name != 'posix', reason="SIGKILL and fork servers are POSIX"),
]
RUN = dict(steps=32, batch_size=200, drop_last=False, ema=0.9, accumulate=2, clip_grad=1.0)


@pytest.fixture(scope='module')
def context():
    return fork_server('small_run')


@pytest.fixture(scope='module')
def uninterrupted(context, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole') / 'run'
    p = context.Process(target=child, args=(out, RUN))
    p.start()
    p.join()
    assert p.exitcode == 0
    return out


def rows_without_times(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
    for row in rows:
        del row['seconds'], row['images_per_second']
    return rows


def same(a: Path, b: Path):
    "All tensors of the last checkpoint bit for bit, and every row of the log except its times."
    steps = ckpt.checkpoints(a)
    assert steps[-1] == ckpt.checkpoints(b)[-1] == RUN['steps']
    for name in ('method', 'optimizer', 'ema'):
        x, y = (ckpt.load_checkpoint(o)[0][name] for o in (a, b))
        assert x.keys() == y.keys(), name
        assert all(torch.equal(x[k], y[k]) for k in x), name
    assert rows_without_times(a) == rows_without_times(b)
    assert [row['step'] for row in rows_without_times(a)] == list(range(1, RUN['steps'] + 1))


def test_killed_at_random_moments(context, uninterrupted, tmp_path):
    """Four kills, each a random number of steps after the start and at a random moment of what the run then
    does; then it may finish."""
    chance = random.Random(0)
    out = tmp_path / 'run'
    for _ in range(4):
        p = context.Process(
            target=child, args=(out, RUN, die_after, chance.randint(2, 6), chance.uniform(0, 3))
        )
        p.start()
        p.join()
        assert p.exitcode == -signal.SIGKILL
    p = context.Process(target=child, args=(out, RUN))
    p.start()
    p.join()
    assert p.exitcode == 0
    same(uninterrupted, out)


@pytest.mark.parametrize('write', [1, 4, 9])
def test_killed_while_a_checkpoint_is_written(context, uninterrupted, tmp_path, write):
    "Half a file on the disk, then SIGKILL: of run.json, of the first checkpoint, of a later one."
    out = tmp_path / 'run'
    p = context.Process(target=child, args=(out, RUN, die_while_writing, write))
    p.start()
    p.join()
    assert p.exitcode == -signal.SIGKILL
    for step in ckpt.checkpoints(out):
        ckpt.load_checkpoint(out, step)  # what looks whole is whole
    p = context.Process(target=child, args=(out, RUN))
    p.start()
    p.join()
    assert p.exitcode == 0
    same(uninterrupted, out)
    assert not [f for f in out.rglob('.*')], "a killed run's half-written files are cleared away"


def test_finished_run_is_read_back(uninterrupted):
    method, history = whole(uninterrupted, **RUN)
    stored = ckpt.load_checkpoint(uninterrupted)[0]['method']
    assert history.finished
    assert len(history.rows) == RUN['steps']
    assert equal(method.state_dict(), stored)


def test_chance_outside_does_not_matter(tmp_path):
    """Random numbers that the caller, or a probe, takes from torch's global generator change nothing, and the
    run gives the generator back as it was."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, _ = whole(steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(17)
    b, _ = whole(steps=3)
    assert equal(a.state_dict().values(), b.state_dict().values())
