"""Every notebook runs from top to bottom, cells without a flag only, as nbdev runs them. pytest reports each one's time."""

import os, subprocess, sys
import pytest
from test_linter import NOTEBOOKS, ROOT, name_of


@pytest.fixture(scope='module')
def runner():
    "Give it a notebook and a file for what it prints; it answers with the exit code."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'VIT_SSL_LAB_RESULTS': str(ROOT / 'results')}
    if not hasattr(os, 'fork'):  # Windows: a new Python each
        code = "import sys, notebook_run; notebook_run.run(*sys.argv[1:])"
        yield (
            lambda *args: (
                subprocess.run(
                    [sys.executable, '-c', code, *map(str, args)], cwd=ROOT / 'tests', env=env, timeout=300
                ).returncode
            )
        )
        return
    with subprocess.Popen(
        [sys.executable, ROOT / 'tests' / 'notebook_run.py'],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def ask(*args):
            print(*args, sep='\t', file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_runs(path, tmp_path, runner):
    log = tmp_path / 'log'
    code = runner(path, log)
    assert code == 0, f"exit code {code}: {log.read_text()[-8000:]}"
