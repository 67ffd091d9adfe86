"""Every notebook, module and script against the rules of tests/lint.py, and each rule against a spoiled
example."""

import ast
import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lint import JS_WIDTH, LECTURE, REWRITTEN_LATER, ROOT, WIDTH
from lint import lint_lecture, lint_notebook, lint_python, lint_size, undocumented, wide_lines

BIN = Path(sys.executable).parent
NOTEBOOKS = [
    ROOT / 'index.ipynb',
    *sorted(
        p
        for p in (ROOT / 'nbs').rglob('*.ipynb')
        if not p.is_symlink() and '.ipynb_checkpoints' not in p.parts
    ),
]
MODULES = sorted(p for p in (ROOT / 'vit_ssl_lab').rglob('*.py') if p.name != '_modidx.py')
SCRIPTS = [
    ROOT / 'setup.py',
    *sorted(p for folder in ('tests', 'benchmarks', 'scripts') for p in (ROOT / folder).rglob('*.py')),
]
STATIC = sorted((ROOT / 'vit_ssl_lab' / 'explorers' / 'static').glob('*.*'))

# A module imports from its own folder and from floors above it in this list.
FLOORS = [
    {'check'},
    {'core', 'blueprint'},
    {'show', 'results'},
    {'comparison'},
    {'notebook'},
    {'components', 'data', 'recipe'},
    {'encoders'},
    {'methods'},
    {'weight_files', 'weight_layouts'},
    {'weights'},
    {'training'},
    {'evaluation'},
    {'explorers'},
    {'studies'},
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(*command, cwd=ROOT) -> str:
    "A tool's complaints: what it prints if it fails, else nothing."
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    return (done.stdout + done.stderr)[-6000:] if done.returncode else ''


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebook(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert not lint_notebook(nb, name_of(path), path.stat().st_size)


@pytest.mark.parametrize('name', REWRITTEN_LATER)
def test_list_of_lectures_to_rewrite_gets_shorter(name):
    "A lecture whose own cells keep the rules leaves the list."
    cells = json.loads((ROOT / name).read_text(encoding='utf-8'))['cells']
    code = [c for c in cells if c['cell_type'] == 'code']
    complaints = [s for i, c in enumerate(code) for s in lint_size(c, f'cell {i}')]
    assert complaints, f"{name} keeps the rules: take it out of REWRITTEN_LATER"


def test_no_lecture_joins_the_list():
    assert len(REWRITTEN_LATER) <= 22


def test_the_checkout_is_light():
    "A machine that is lent for a run takes 64 MiB, data included."
    tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in tracked.stdout.split('\0') if name]
    assert sum(p.lstat().st_size for p in paths if p.exists()) < 40e6


@pytest.mark.parametrize('path', SCRIPTS, ids=name_of)
def test_script(path):
    assert not lint_python(path.read_text(encoding='utf-8'))


@pytest.mark.parametrize('path', STATIC, ids=name_of)
def test_static_file(path):
    assert not wide_lines(path.read_text(encoding='utf-8'), JS_WIDTH)


def test_ruff_format():
    assert not run(BIN / 'ruff', 'format', '--check', '.'), "run `make format`"


def test_ruff_check():
    assert not run(BIN / 'ruff', 'check', '.')


@pytest.mark.slow
def test_pyright():
    "The type checker finds nothing in the whole package (pyrightconfig.json)."
    assert not run(BIN / 'pyright')


def broken(**changes) -> list[str]:
    "Complaints about a small good notebook with one thing spoiled."
    good = dict(
        cell_type='code',
        source='1 + 1',
        metadata={},
        execution_count=None,
        outputs=[dict(output_type='execute_result', data={'text/plain': '2'}, metadata={})],
    )
    title = dict(cell_type='markdown', source='# Title\n\n> subtitle', metadata={})
    return lint_notebook(dict(metadata={}, cells=[title, {**good, **changes}]), 'nbs/x.ipynb')


def stream(text: str, name: str = 'stdout') -> dict:
    return dict(outputs=[dict(output_type='stream', name=name, text=text)])


@pytest.mark.parametrize(
    'changes, complaint',
    [
        (dict(source='#| eval: false\n1'), 'eval: false'),
        (dict(source='x.cuda()'), 'flag gpu'),
        (dict(source='#| export\n' + 'x = 1\n' * 170), 'over 160'),
        (dict(source=f'x = {"1 + " * 40}1'), 'over 110 columns'),
        (dict(source='x = 1; y = 2'), 'one statement a line'),
        (dict(source='name = value_of(1)\n' * 40), 'over 600'),
        (dict(source='ax.plot(x, y)\n' * 4), 'lines that draw'),
        (
            dict(source='draw_a_point(1)\n' * 100, metadata=dict(jupyter=dict(source_hidden=True))),
            'even for a folded',
        ),
        (stream('w', 'stderr'), 'stderr'),
        (dict(outputs=[dict(output_type='error')]), 'traceback'),
        (
            dict(outputs=[dict(output_type='display_data', data={'image/png': 'AAAA'}, metadata={})]),
            'alt text',
        ),
        (stream('in /home/me/x'), 'absolute path'),
        (stream(' 10%|#  | 1/10'), 'progress bar'),
        (stream('<object at 0x7f00aa11bb22>'), 'memory address'),
        (dict(execution_count=3), 'execution count'),
    ],
)
def test_the_linter_sees(changes, complaint):
    assert not broken()
    assert any(complaint in c for c in broken(**changes))


def test_the_linter_lets_pass():
    "Semicolons in strings, and a folded cell that draws."
    assert not broken(source='"a; b"  # c; d')
    long = ('draw(' + '1, ' * 30 + '1)\n') * 8
    assert broken(source=long)
    assert not broken(source=long, metadata=dict(jupyter=dict(source_hidden=True)))


def test_a_lecture_has_its_sections_unless_it_is_a_research_page():
    title = dict(cell_type='markdown', source='# X\n\n> subtitle', metadata={})
    page = dict(cell_type='markdown', source='# X\n\n> A research page: X in a screen', metadata={})
    assert len(lint_lecture([title])) == len(LECTURE)
    assert not lint_lecture([page])


def test_scripts_are_held_to_the_same_width():
    assert lint_python('x = 1; y = 2')
    assert lint_python('# ' + 'w' * WIDTH)
    assert not lint_python('# ' + 'w' * (WIDTH - 2))


def test_export_is_in_sync(tmp_path):
    "The package is what the notebooks export, to the letter."
    shutil.copytree(ROOT / 'nbs', tmp_path / 'nbs', symlinks=True)
    for name in ('settings.ini', 'index.ipynb', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / 'vit_ssl_lab').mkdir()
    export = 'from nbdev.doclinks import nbdev_export\nnbdev_export()'
    assert not run(sys.executable, '-c', export, cwd=tmp_path)
    fresh = {str(p.relative_to(tmp_path)) for p in (tmp_path / 'vit_ssl_lab').rglob('*.py')}
    stored = {name_of(p) for p in (ROOT / 'vit_ssl_lab').rglob('*.py')}
    assert fresh == stored, "a module without a notebook, or the other way round"
    _, different, missing = filecmp.cmpfiles(tmp_path, ROOT, sorted(fresh), shallow=False)
    assert not different and not missing, f"run nbdev_export: {different + missing}"


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_public_names_have_docments(path):
    assert not undocumented(path.read_text(encoding='utf-8'))


def test_a_parameter_without_a_comment_is_seen():
    good = "__all__ = ['f']\ndef f(\n    x: int,  # a number\n    # another\n    y: int,\n):\n    'Doc.'\n"
    assert not undocumented(good)
    assert undocumented(good.replace('  # a number', ''))
    assert undocumented(good.replace('    # another\n', ''))


def imported_from(path: Path) -> list[tuple[str, ...]]:
    "What a module imports of the package: ('components', 'losses') and the like."
    parts = path.relative_to(ROOT / 'vit_ssl_lab').with_suffix('').parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = (node.module or '').split('.')
        if node.level:
            module = [*parts[: -node.level], *module]
        elif module[0] == 'vit_ssl_lab':
            module = module[1:]
        else:
            continue
        module = tuple(part for part in module if part)
        found += [module] if module else [(alias.name,) for alias in node.names]
    return found


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_imports_go_down(path):
    "A module imports from its own floor's folder and from floors below; no method imports another."
    level = {part: i for i, floor in enumerate(FLOORS) for part in floor}
    parts = path.relative_to(ROOT / 'vit_ssl_lab').with_suffix('').parts
    if parts == ('__init__',):
        return
    for target in imported_from(path):
        if target[0] == 'methods' == parts[0]:
            allowed = target[1:2] == ('base',) or target == parts
            assert allowed, f"a method imports another: {target}"
        elif target[0] != parts[0]:
            below = level[target[0]] < level[parts[0]]
            assert below, f"{'.'.join(parts)} imports {'.'.join(target)}, which is not below it"
