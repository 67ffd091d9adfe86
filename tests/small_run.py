"""A run of a second that has all a run can have, shared by the tests of training.
Importable by a child process."""

import multiprocessing, multiprocessing.forkserver, os, signal, threading, time
from pathlib import Path
import pytest
import torch
import sklearn.datasets  # noqa: F401, so that a fork server has imported all before it makes children
import vit_ssl_lab.methods.mae  # noqa: F401
from vit_ssl_lab.data import load
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training import checkpoints as ckpt, loop

SMALL = dict(
    data='digits',
    img_size=8,
    patch_size=2,
    encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
    method_options=dict(decoder_width=16, decoder_depth=1, decoder_heads=2),
    checkpoint_every=3,
    log_every=1,
)


def fork_server(preload: str) -> multiprocessing.context.BaseContext:
    """A context whose child processes have imported `preload` already: each is a real process, and starts at
    once. Before Python 3.13 the server looks for what it preloads only where a new Python would, and is
    silent if it finds nothing."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([preload])
    places = [str(Path(__file__).parent), os.environ.get('PYTHONPATH')]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(filter(None, places)))
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        multiprocessing.forkserver.ensure_running()
    return context


def small(**changes):
    "The recipe of MAE in miniature, on scikit-learn's digits."
    return recipe('mae', 'laptop', **{**SMALL, **changes})


def whole(out=None, **changes):
    "Train it in this process: the method and its history."
    r = small(**changes)
    data = load('digits')
    method = build(r, data)
    return method, pretrain(method, data, r, out=out, quiet=True, device='cpu')


def die_while_writing(write: int):
    "From the `write`-th file on, get half of it to the disk and then die like a process that is killed."
    true, count = ckpt.write_file, [0]

    def write_file(path, data):
        count[0] += 1
        if count[0] < write:
            return true(path, data)
        true(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    ckpt.write_file = write_file


def die_after(steps: int, more: float):
    """SIGKILL, from a clock that knows nothing of the run, some steps after the start and `more` times the
    length of a step later."""
    true, times = loop.update, []

    def update(run, step):
        times.append(time.monotonic())
        if len(times) == steps:
            threading.Timer(more * (times[-1] - times[-2]), os.kill, (os.getpid(), signal.SIGKILL)).start()
        return true(run, step)

    loop.update = update


def child(out, changes, death=None, *when):
    "What a child process runs."
    torch.set_num_threads(1)
    if death:
        death(*when)
    whole(out, **changes)
