"""CONTRIBUTING.md's walk from an empty notebook to a trained run, made to the letter in a scratch copy of the
checkout."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import nbformat
import pytest
from lint import ROOT, lint_notebook, undocumented

pytestmark = pytest.mark.notebooks

NOTEBOOK = 'nbs/methods/20_vicreg.ipynb'
TEST = 'tests/test_vicreg.py'
BLOCK = re.compile(r'^```(\w+) *(\S*)\n(.*?)^```$', re.M | re.S)
NEEDED = ['nbs', 'vit_ssl_lab', 'tests', 'benchmarks', 'results', 'index.ipynb', 'settings.ini', 'pytest.ini']
NEEDED += ['pyproject.toml', 'setup.py']


def blocks() -> list[tuple[str, str, str]]:
    "The page's fenced blocks: (language, file, text)."
    return BLOCK.findall((ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8'))


def write_notebook(path) -> None:
    "The blocks that name the notebook, each a cell."
    nb = nbformat.v4.new_notebook()
    for language, file, text in blocks():
        if file == NOTEBOOK:
            new = nbformat.v4.new_markdown_cell if language == 'markdown' else nbformat.v4.new_code_cell
            nb.cells.append(new(text.strip('\n')))
    nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    nbformat.write(nb, path)


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
    "A copy of the checkout in which the walk is made; the package that is imported there is the copy."
    folder = tmp_path_factory.mktemp('walk')
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__')
            )
        elif source.exists():
            shutil.copy(source, folder / name)
    write_notebook(folder / NOTEBOOK)
    texts = [text for _, file, text in blocks() if file == TEST]
    (folder / TEST).write_text('\n'.join(texts), encoding='utf-8')
    run(folder, '-c', 'from nbdev.doclinks import nbdev_export\nnbdev_export()')
    return folder


def run(folder, *arguments: str) -> str:
    "Run this Python in the copy; what it printed."
    env = {**os.environ, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_nothing_else_was_touched(scratch):
    "A method touches its notebook and its test; nothing lists methods by hand."
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / 'vit_ssl_lab').rglob('*.py')}
    theirs = {str(p.relative_to(scratch)) for p in (scratch / 'vit_ssl_lab').rglob('*.py')}
    assert theirs - ours == {'vit_ssl_lab/methods/vicreg.py'}
    for name in ours - {'vit_ssl_lab/_modidx.py'}:
        assert (ROOT / name).read_bytes() == (scratch / name).read_bytes()


def test_the_method_is_found(scratch):
    code = 'from vit_ssl_lab.training.build import method_names; print(*method_names())'
    assert 'vicreg' in run(scratch, '-c', code).split()


def test_its_test_passes(scratch):
    assert '2 passed' in run(scratch, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', TEST)


def test_the_other_tests_stay_green(scratch):
    "Those that go through all methods: recipes, the registry, stored rows."
    files = ['tests/test_training.py', 'tests/test_fair_benchmark.py']
    some = 'recipes or papers or names or row or budget'
    assert 'passed' in run(scratch, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-k', some, *files)


def test_no_placeholder_is_left():
    assert not re.search(r'@[A-Z]+@', (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8'))


def test_the_notebook_runs_and_keeps_the_rules(scratch):
    "Executed in a real kernel: it trains, and its last assertion says that the loss fell."
    run(scratch, '-m', 'vit_ssl_lab.notebook', NOTEBOOK)
    run(scratch, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()')
    text = (scratch / NOTEBOOK).read_text(encoding='utf-8')
    assert not lint_notebook(json.loads(text), NOTEBOOK, len(text))
    module = (scratch / 'vit_ssl_lab/methods/vicreg.py').read_text(encoding='utf-8')
    assert not undocumented(module)


def test_the_command_line_trains_it(scratch):
    commands = [text for language, _, text in blocks() if language == 'sh']
    commands = [line for text in commands for line in text.splitlines() if 'training.cli vicreg' in line]
    assert len(commands) == 1
    run(scratch, *shlex.split(commands[0])[1:])
    rows = (scratch / 'runs/vicreg/log.jsonl').read_text(encoding='utf-8').splitlines()
    assert json.loads(rows[-1])['step'] == 30
