"""Every notebook runs from top to bottom, cells without a flag only, as nbdev runs them. pytest reports each
one's time."""

import os
import signal
import subprocess
import sys

import pytest
from test_linter import NOTEBOOKS, ROOT, name_of

pytestmark = pytest.mark.notebooks
WALL_SECONDS = 3600
# What notebook_run.py's guards send. Windows has neither signal.
GUARDS = {
    -getattr(signal, name): f"{name}: it ran for far longer than any notebook needs"
    for name in ('SIGXCPU', 'SIGALRM')
    if hasattr(signal, name)
}


@pytest.fixture(scope='module')
def runner():
    "Give it a notebook and a file for what it prints; it answers with the exit code."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'VIT_SSL_LAB_RESULTS': str(ROOT / 'results')}
    if not hasattr(os, 'fork'):  # Windows: a new Python each

        def run_alone(*args):
            code = "import sys, notebook_run; notebook_run.run(*sys.argv[1:])"
            command = [sys.executable, '-c', code, *map(str, args)]
            return subprocess.run(command, cwd=ROOT / 'tests', env=env, timeout=WALL_SECONDS).returncode

        yield run_alone
        return
    command = [sys.executable, ROOT / 'tests' / 'notebook_run.py']
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as server:

        def ask(*args):
            print(*args, sep='\t', file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_runs(path, tmp_path, runner):
    log = tmp_path / 'log'
    code = runner(path, log)
    assert code == 0, f"exit code {code} {GUARDS.get(code, '')}: {log.read_text()[-8000:]}"
