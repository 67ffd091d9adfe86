"""Every notebook runs from top to bottom, cells without a flag only, as nbdev runs them. pytest reports each one's time."""
import os, subprocess, sys
import pytest
from test_linter import NOTEBOOKS, ROOT, name_of

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_runs(path, tmp_path):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'VIT_SSL_LAB_RESULTS': str(ROOT / 'results')}
    code = f"from pathlib import Path; from nbdev.test import test_nb; ok, seconds = test_nb(Path({str(path)!r}), skip_flags=['slow', 'gpu']); raise SystemExit(not ok)"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
