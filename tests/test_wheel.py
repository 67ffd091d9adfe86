"""What a reader gets who installs the wheel and opens a lecture in an empty folder: stored results and
networks come with it."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from lint import ROOT, source
from test_linter import NOTEBOOKS, name_of

pytestmark = pytest.mark.notebooks

READ = re.compile(r'\b(load_result|load_arms|load_network|load_trained)\(\s*[\'"](\w+)[\'"]')
FILE_OF = {
    'load_result': '{}.json',
    'load_arms': '{}.json',
    'load_network': '{}.safetensors.xz',
    'load_trained': '{}_laptop.safetensors.xz',
}


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A folder that holds what the wheel installs."
    folder = tmp_path_factory.mktemp('wheel')
    build = [sys.executable, '-m', 'uv', 'build', '--wheel', '--no-build-isolation', '-o', folder, ROOT]
    done = subprocess.run([*map(str, build)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = folder / 'site'
    zipfile.ZipFile(next(folder.glob('*.whl'))).extractall(site)
    return site


def stored_reads(path) -> set[str]:
    "The stored files that a notebook's cells without a flag read by name."
    nb = json.loads(path.read_text(encoding='utf-8'))
    cells = [source(c) for c in nb['cells'] if c['cell_type'] == 'code']
    plain = [text for text in cells if not re.search(r'^#\|\s*(slow|gpu|export)\s*$', text, re.M)]
    return {FILE_OF[function].format(name) for text in plain for function, name in READ.findall(text)}


def test_the_pattern_finds_what_lectures_read():
    assert 'mae_slow.safetensors.xz' in stored_reads(ROOT / 'nbs/methods/01_mae.ipynb')
    assert 'byol_laptop.safetensors.xz' in stored_reads(ROOT / 'nbs/methods/03_byol.ipynb')


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if stored_reads(p)], ids=name_of)
def test_stored_files_come_with_the_wheel(installed, path):
    "What the checkout has is in the wheel, too; an arm that was never run is in neither."
    there = {p.name for p in (installed / 'vit_ssl_lab' / 'stored').iterdir()}
    checkout = {p.name for p in (ROOT / 'results').iterdir()}
    assert stored_reads(path) & checkout <= there


def test_the_wheel_is_small(installed):
    "Networks in half precision: at most 1.5 MB each, 15 MB together."
    networks = [p.stat().st_size for p in (installed / 'vit_ssl_lab' / 'stored').glob('*.safetensors.xz')]
    assert max(networks) <= 1.5e6
    assert sum(networks) <= 15e6


def run(installed, folder, *arguments) -> subprocess.CompletedProcess:
    "Python with the installed wheel, in a folder outside the checkout, without a network for the Hub."
    env = {k: v for k, v in os.environ.items() if k not in ('VIT_SSL_LAB_RESULTS', 'PYTHONPATH')}
    env |= dict(PYTHONPATH=str(installed), IN_TEST='1', OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize('lecture', ['03_byol'])
def test_a_lecture_runs_in_an_empty_folder(installed, tmp_path, lecture):
    shutil.copy(ROOT / 'nbs/methods' / f'{lecture}.ipynb', tmp_path)
    done = run(installed, tmp_path, '-m', 'vit_ssl_lab.notebook', f'{lecture}.ipynb')
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    cells = json.loads((tmp_path / f'{lecture}.ipynb').read_text(encoding='utf-8'))['cells']
    assert sum(bool(c.get('outputs')) for c in cells) > 10


def test_what_is_not_stored_is_said_in_one_sentence(installed, tmp_path):
    code = 'from vit_ssl_lab.results import load_result; load_result("nothing_of_this_name")'
    done = run(installed, tmp_path, '-c', code)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: No stored result 'nothing_of_this_name.json'")
