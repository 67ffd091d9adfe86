"""Two processes over gloo compute what one process computes with the whole batch.
Real processes, started as a user starts them."""

import json, os, socket, subprocess, sys
from pathlib import Path
import pytest, torch
from small_run import SMALL, whole
from vit_ssl_lab.training import checkpoints as ckpt

pytestmark = pytest.mark.processes


def flags(changes: dict) -> list[str]:
    "A recipe's changes as the command line takes them."
    entries = [(f'{k}.{e}', x) for k, v in changes.items() if isinstance(v, dict) for e, x in v.items()] + [
        (k, v) for k, v in changes.items() if not isinstance(v, dict)
    ]
    return [word for k, v in entries for word in ('--set', f'{k}={v}')]


def launch(launcher: list[str], out: Path, **changes):
    "Run the command line under a launcher with two processes; the text that it printed."
    command = [
        sys.executable,
        '-m',
        *launcher,
        '-m',
        'vit_ssl_lab.training.cli',
        'mae',
        'laptop',
        '--out',
        str(out),
        '--device',
        'cpu',
        *flags({**SMALL, **changes}),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


TORCHRUN = ['torch.distributed.run', '--nproc-per-node=2', '--master-addr=127.0.0.1']
ACCELERATE = [
    'accelerate.commands.launch',
    '--cpu',
    '--num_processes=2',
    '--num_machines=1',
    '--mixed_precision=no',
    '--dynamo_backend=no',
]


def rows(out):
    return [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]


def test_loss_and_gradient_of_uneven_batches(tmp_path):
    """1,438 digits in batches of 479: uneven halves, and a last batch of a single image, which leaves one
    process with none. SGD without momentum: the change of the weights is the gradient."""
    run = dict(
        steps=4,
        batch_size=479,
        drop_last=False,
        optimizer='sgd',
        momentum=0.0,
        base_lr=0.1,
        min_lr=0.1,
        warmup=0,
        weight_decay=0.0,
    )
    text = launch([*TORCHRUN, f'--master-port={free_port()}'], tmp_path / 'two', **run)
    assert text.count('finished') == 1, "one process reports"
    one, history = whole(tmp_path / 'one', **run)
    two = ckpt.load_checkpoint(tmp_path / 'two')[0]['method']
    for a, b in zip(history.rows, rows(tmp_path / 'two')):
        assert a['images'] == b['images']
        assert a['loss'] == pytest.approx(b['loss'], abs=1e-6)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-5)
    assert history.rows[-1]['images'] == 1438
    for k, v in one.state_dict().items():
        torch.testing.assert_close(two[k], v, atol=1e-6, rtol=1e-5)


def test_accelerate_launch_micro_batches_and_one_process_goes_on(tmp_path):
    """AdamW, clipping, micro-batches, averaged copy: the first half on two processes, the second half of the
    same run on one."""
    run = dict(steps=8, batch_size=101, accumulate=2, clip_grad=0.5, ema=0.9, checkpoint_every=4)
    launch([*ACCELERATE, f'--main_process_port={free_port()}'], tmp_path / 'two', **run)
    one, history = whole(tmp_path / 'one', **{**run, 'accumulate': 1})
    both = rows(tmp_path / 'two')
    assert [r['step'] for r in both] == list(range(1, 9))
    for a, b in zip(history.rows, both):
        assert a['loss'] == pytest.approx(b['loss'], abs=2e-6)
    ckpt.remove_checkpoint(ckpt.checkpoint_folder(tmp_path / 'two', 8))
    again, later = whole(tmp_path / 'two', **run)
    assert [r['step'] for r in later.rows] == list(range(1, 9))
    for a, b in zip(later.rows, history.rows):
        assert a['loss'] == pytest.approx(b['loss'], abs=2e-6)
